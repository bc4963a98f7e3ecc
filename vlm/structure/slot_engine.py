"""Slots in the decoding loop: which tokens a cell may take, and a joint proposal that keeps every slot completable.

The engine is a plug-in of the loop with two entries. Called as a logit transform it excludes the tokens that would
leave a slot without completion. `propose` names, for all cells at once, the tokens of the most probable valid
completion of each slot: any subset of them may be committed together, in any order, and the slot stays completable,
because the completion itself remains as a witness. Re-masking a cell only enlarges the set of completions. Nothing that
matters is remembered between calls; committed cells are read from the canvas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm.errors import DecodingError, OptionError
from vlm.structure.reduction import Reducer, Space
from vlm.structure.scaffold import Scaffold
from vlm.structure.table import TokenTable
from vlm.structure.trellis import Paths, posterior, solve

if TYPE_CHECKING:
    from vlm.decoding.canvas import Canvas

#: What a proposal is scored by: its share of what the cell alone may take, or its exact probability given all cells of the slot.
SCORES = ("local", "posterior")


@dataclass(frozen=True)
class _Group:
    """Slots of one automaton and budget: canvas cells as rows [S] and columns [S, T], and the pointer of each."""

    table: TokenTable
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    pointers: list[str]


@dataclass
class _Solved:
    """A group at one step.

    Attributes:
        where: [n] indices of the group's cells among the rows of the logits; slot, cell: [n] their place in the group.
        reducer, values: the logits of the cells by class, [n, M]; shaken: [n, M] the same, perturbed for a draw.
        sums: [n, C] log-sum of the logits of each class. scores: [S, T, C] the same in place, committed cells fixed.
        paths: over the group's unfinished slots.
    """

    group: _Group
    where: NDArray[np.int64]
    slot: NDArray[np.int64]
    cell: NDArray[np.int64]
    reducer: Reducer
    values: Tensor
    shaken: Tensor | None
    sums: NDArray[np.float64]
    scores: NDArray[np.float64]
    paths: Paths


class SlotEngine:
    """Constrains the slots of a batch of canvases.

    Args:
        scaffolds: one per canvas row, or one for all rows.
        offsets: first canvas column of each row's scaffold.
        temperature: 0 proposes the most probable completion; above, completions are drawn from the model's
            factorised distribution at that temperature, conditioned on being valid.
        seed: of the draws, one or one for each row; rows draw independently, so that a batch draws what its rows would alone.
        score: one of :data:`SCORES`.

    Attributes:
        valid: for each row, by slot pointer, the probability that free draws for all cells of the slot would have been
            valid, as seen when the slot was first looked at as a whole.
    """

    def __init__(
        self, scaffolds: Scaffold | Sequence[Scaffold], offsets: int | Sequence[int] = 0, *,
        temperature: float = 0.0, seed: int | Sequence[int] = 0, score: str = "local",
    ) -> None:  # fmt: skip
        if score not in SCORES:
            raise OptionError(f"unknown score {score!r}", remedy=f"use one of {', '.join(SCORES)}")
        self.scaffolds, self.offsets = scaffolds, offsets
        self.temperature, self.score = temperature, score
        self.seed: int | Sequence[int] = seed
        self.valid: list[dict[str, float]] = []
        self._generators: list[torch.Generator] = []
        self._groups: list[_Group] = []
        self._batch = -1
        self._space = Space()

    def rows(self, batch: int) -> list[Scaffold]:
        """The scaffold of each row."""
        return [self.scaffolds] * batch if isinstance(self.scaffolds, Scaffold) else list(self.scaffolds)

    def __call__(self, canvas: Canvas, cells: Tensor, logits: Tensor) -> Tensor:
        """Logits [N, V] of the True cells of `cells` [B, L], with excluded tokens at -inf.

        Excluded are the tokens after which, with the committed cells of the slot, no valid value fits. A cell outside
        slots is left alone; so are the cells of a slot whose committed cells already contradict its automaton, except
        that control tokens stay excluded there.
        """
        out = logits
        for solved in self._solve(canvas, cells, logits, None):
            allowed = solved.paths.allowed[solved.slot, solved.cell].copy()  # [n, C]
            allowed[~solved.paths.feasible[solved.slot], 1:] = True
            class_of = torch.from_numpy(solved.group.table.class_of).to(logits.device, torch.long)
            keep = torch.zeros(len(allowed), logits.shape[1], dtype=torch.bool, device=logits.device)
            keep[:, : len(class_of)] = torch.from_numpy(allowed).to(logits.device)[:, class_of]
            where = torch.from_numpy(solved.where).to(logits.device)
            if out is logits:
                out = logits.clone()
            out[where] = logits[where].masked_fill(~keep, -torch.inf)
        return out

    def propose(self, canvas: Canvas, cells: Tensor, logits: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tokens [N] and scores [N] for the True cells of `cells` [B, L], or None when none lies in a slot.

        In slots: the token on the slot's best completion and its score. Elsewhere: the most probable token and its
        probability. `logits` [N, V] are raw.
        """
        self._prepare(*cells.shape)
        noise = self._gumbel(cells, logits) if self.temperature > 0 else None
        outside = torch.ones(logits.shape[0], dtype=torch.bool)
        ids = torch.empty(logits.shape[0], dtype=torch.long, device=logits.device)
        score = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
        governed = False
        for solved in self._solve(canvas, cells, logits, noise):
            governed = True
            token, chance = self._read_off(solved)
            where = torch.from_numpy(solved.where)
            outside[where] = False
            ids[where.to(ids.device)] = token
            score[where.to(ids.device)] = chance
            self._note_valid(canvas, solved, logits)
        if not governed:
            return None
        if bool(outside.any()):
            rest = outside.to(logits.device)
            score[rest], ids[rest] = logits[rest].float().softmax(dim=-1).max(dim=-1)
        return ids, score

    def _gumbel(self, cells: Tensor, logits: Tensor) -> Tensor:
        """[N, V] noise, each row's from its own generator."""
        counts = cells.sum(dim=1).tolist()
        parts = [torch.rand((n, logits.shape[1]), dtype=torch.float64, generator=g) for n, g in zip(counts, self._generators, strict=True) if n]
        return -torch.log(-torch.log(torch.cat(parts).clamp(1e-300, 1 - 2**-53))).to(logits.device)

    def _read_off(self, solved: _Solved) -> tuple[Tensor, Tensor]:
        """Tokens and scores of a group's cells from its paths."""
        chosen = solved.paths.path[solved.slot, solved.cell]
        allowed = solved.paths.allowed[solved.slot, solved.cell].copy()
        broken = ~solved.paths.feasible[solved.slot]
        if broken.any():  # no completion: each cell for itself, among value tokens; the reader repairs
            allowed[broken, 1:] = True
            chosen = np.where(broken, np.where(allowed, solved.sums, -np.inf).argmax(axis=1), chosen)
        token, place = solved.reducer.pick(solved.values if solved.shaken is None else solved.shaken, chosen)
        own = solved.values.gather(1, place.unsqueeze(1)).squeeze(1).double().cpu().numpy()
        if self.score == "posterior" and not broken.any():
            law = posterior(solved.group.table, solved.scores).classes[solved.slot, solved.cell]
            count = np.arange(len(chosen))
            chance = law[count, chosen] * np.exp(np.clip(own - solved.sums[count, chosen], -700.0, 0.0))
        else:
            sums = np.where(allowed, solved.sums, -np.inf)
            top = sums.max(axis=1)
            total = top + np.log(np.exp(sums - top[:, None]).sum(axis=1))
            chance = np.exp(np.clip(own - total, -700.0, 0.0))
        return token, torch.from_numpy(np.clip(chance, 0.0, 1.0)).to(token.device, torch.float32)

    def _note_valid(self, canvas: Canvas, solved: _Solved, logits: Tensor) -> None:
        """Note how probable valid values are in slots that are looked at as a whole for the first time."""
        group = solved.group
        if all(pointer in self.valid[row] for row, pointer in zip(group.rows.tolist(), group.pointers, strict=True)):
            return
        counts = np.bincount(solved.slot, minlength=len(group.rows))
        fresh = [s for s in range(len(group.rows)) if counts[s] == group.columns.shape[1] and group.pointers[s] not in self.valid[group.rows[s]]]
        if not fresh:
            return
        mine = np.isin(solved.slot, fresh)
        full = logits[torch.from_numpy(solved.where[mine]).to(logits.device)].float().logsumexp(dim=1).double().cpu().numpy()
        whole = np.zeros(len(group.rows))
        np.add.at(whole, solved.slot[mine], full)
        total = posterior(group.table, solved.scores[fresh]).total
        for s, log in zip(fresh, total - whole[fresh], strict=True):
            self.valid[group.rows[s]][group.pointers[s]] = float(np.exp(min(log, 0.0)))

    def _solve(self, canvas: Canvas, cells: Tensor, logits: Tensor, noise: Tensor | None) -> Iterator[_Solved]:
        """Trellis of every group that has cells among `cells`, one after the other: gathered logits are large."""
        self._prepare(*cells.shape)
        wanted = cells.cpu().numpy()
        masked = canvas.masked.cpu().numpy()
        ids = canvas.ids.cpu().numpy()
        row_of = np.full(wanted.shape, -1, np.int64)  # which row of the logits a cell has
        row_of[wanted] = np.arange(int(wanted.sum()))
        uniform = None if noise is None else self._uniform(wanted.shape)
        for group in self._groups:
            rows = row_of[group.rows[:, None], group.columns]
            active: NDArray[np.bool_] = np.asarray((rows >= 0).any(axis=1))
            if active.any():
                names = [group.pointers[i] for i in np.flatnonzero(active).tolist()]
                part = _Group(group.table, group.rows[active], group.columns[active], names)
                yield self._solve_group(part, rows[active], masked, ids, logits, noise, uniform)

    def _uniform(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """[B, L] numbers of each row's own generator; a row draws as many as its scaffold has cells."""
        out = np.zeros(shape)
        for row, (scaffold, generator) in enumerate(zip(self.rows(shape[0]), self._generators, strict=True)):
            begin = self.offsets if isinstance(self.offsets, int) else self.offsets[row]
            out[row, begin : begin + len(scaffold)] = torch.rand(len(scaffold), dtype=torch.float64, generator=generator).numpy()
        return out

    def _solve_group(
        self, group: _Group, rows: NDArray[np.int64], masked: NDArray[np.bool_], ids: NDArray[np.int64], logits: Tensor,
        noise: Tensor | None, uniform: NDArray[np.float64] | None,
    ) -> _Solved:  # fmt: skip
        slot, cell = np.nonzero(rows >= 0)
        where = rows[slot, cell]
        reducer = Reducer.of(group.table, logits.device)
        index = torch.from_numpy(where).to(logits.device)
        values, shaken = reducer.gather(logits, index, self._space), None
        weight, sums = reducer.reduce(values, self._space)
        if noise is not None:
            heated = values / self.temperature
            weight = sums if self.temperature == 1.0 else reducer.reduce(heated, self._space)[1]
            shaken = heated.add_(noise[index][:, reducer.tokens])
        shape = (*rows.shape, group.table.classes)
        fixed = ~masked[group.rows[:, None], group.columns]
        own = group.table.class_of[np.where(fixed, ids[group.rows[:, None], group.columns], 0)]  # a mask id may lie beyond the tokenizer

        def placed(values: NDArray[np.float64]) -> NDArray[np.float64]:
            scores = np.zeros(shape)  # a masked cell outside the window says nothing yet
            scores[slot, cell] = values
            scores[fixed] = np.where(np.arange(shape[2]) == own[fixed][:, None], 0.0, -np.inf)
            return scores

        drawn = None if uniform is None else uniform[group.rows[:, None], group.columns]
        return _Solved(group, where, slot, cell, reducer, values, shaken, sums, placed(sums), solve(group.table, placed(weight), drawn))

    def _prepare(self, batch: int, length: int) -> None:
        """Collect the slots of the batch into groups, once per batch size."""
        if batch == self._batch:
            return
        scaffolds = self.rows(batch)
        offsets = [self.offsets] * batch if isinstance(self.offsets, int) else list(self.offsets)
        if len(scaffolds) != batch or len(offsets) != batch:
            raise DecodingError(f"{len(scaffolds)} scaffolds and {len(offsets)} offsets for {batch} canvas rows")
        found: dict[tuple[int, int], tuple[TokenTable, list[int], list[int], list[str]]] = {}
        for row, (scaffold, offset) in enumerate(zip(scaffolds, offsets, strict=True)):
            if offset + len(scaffold) > length:
                raise DecodingError(f"row {row}: a scaffold of {len(scaffold)} cells on a canvas of {length}")
            for slot in scaffold.slots:
                table = slot.constraint
                _, rows, starts, pointers = found.setdefault((id(table), slot.budget), (table, [], [], []))
                rows.append(row)
                starts.append(offset + slot.start)
                pointers.append(slot.pointer)
        self._groups = [
            _Group(table, np.array(rows), np.array(starts)[:, None] + np.arange(budget), pointers)
            for (_, budget), (table, rows, starts, pointers) in found.items()
        ]
        self.valid = [{} for _ in scaffolds]
        seeds = [self.seed] * batch if isinstance(self.seed, int) else list(self.seed)
        self._generators = [torch.Generator().manual_seed(s * 1_000_003 + 29) for s in seeds]
        self._batch = batch

