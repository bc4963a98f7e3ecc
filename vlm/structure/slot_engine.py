"""Slots in the decoding loop: which tokens a cell may take, and a joint proposal that keeps every slot completable.

The engine is a plug-in of the loop with two entries. Called as a logit transform it excludes the tokens that would
leave a slot without completion. `propose` names, for all cells at once, the tokens of the most probable valid
completion of each slot: any subset of them may be committed together, in any order, and the slot stays completable,
because the completion itself remains as a witness. Re-masking a cell only enlarges the set of completions. Nothing is
remembered between calls; committed cells are read from the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vlm.errors import DecodingError
from vlm.structure.lift import TokenTable
from vlm.structure.scaffold import Scaffold
from vlm.structure.trellis import Paths, solve

if TYPE_CHECKING:
    from vlm.decoding.canvas import Canvas

FLOOR = -1e9  # log-weight of a token that the model, or a ban, excludes: taken only when the schema leaves no other


@dataclass(frozen=True)
class _Group:
    """Slots of one automaton and budget: canvas cells as rows [S] and columns [S, T]."""

    table: TokenTable
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


@dataclass
class _Solved:
    """A group at one step.

    Attributes:
        where: [n] indices of the group's cells among the rows of the logits; slot, cell: [n] their place in the group.
        best, sums: [n, C] the token each class would take, and its log-sum of logits.
        paths: over the group's unfinished slots.
    """

    group: _Group
    where: NDArray[np.int64]
    slot: NDArray[np.int64]
    cell: NDArray[np.int64]
    best: NDArray[np.int64]
    sums: NDArray[np.float64]
    paths: Paths


class SlotEngine:
    """Constrains the slots of a batch of canvases.

    Args:
        scaffolds: one per canvas row, or one for all rows.
        offsets: first canvas column of each row's scaffold.
        temperature: 0 proposes the most probable completion; above, completions are drawn from the model's
            factorised distribution at that temperature, conditioned on being valid.
        generator: of the draws.
    """

    def __init__(
        self,
        scaffolds: Scaffold | Sequence[Scaffold],
        offsets: int | Sequence[int] = 0,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.scaffolds = scaffolds
        self.offsets = offsets
        self.temperature = temperature
        self.generator = generator
        self._groups: list[_Group] = []
        self._batch = -1

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
            class_of = F.pad(class_of, (0, logits.shape[1] - len(class_of)))  # columns beyond the tokenizer: class 0, never allowed
            keep = torch.from_numpy(allowed).to(logits.device)[:, class_of]
            where = torch.from_numpy(solved.where).to(logits.device)
            if out is logits:
                out = logits.clone()
            out[where] = logits[where].masked_fill(~keep, -torch.inf)
        return out

    def propose(self, canvas: Canvas, cells: Tensor, logits: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tokens [N] and scores [N] for the True cells of `cells` [B, L], or None when none lies in a slot.

        In slots: the token on the slot's best completion, scored by its probability among the tokens the cell may
        take. Elsewhere: the most probable token and its probability. `logits` [N, V] are raw.
        """
        noise = None
        if self.temperature > 0:
            uniform = torch.rand(logits.shape, dtype=torch.float64, generator=self.generator, device=logits.device)
            noise = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 2**-53)))  # Gumbel
        solved_groups = self._solve(canvas, cells, logits, noise)
        if not solved_groups:
            return None
        outside = torch.ones(logits.shape[0], dtype=torch.bool)
        ids = torch.empty(logits.shape[0], dtype=torch.long, device=logits.device)
        score = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
        for solved in solved_groups:
            token, chance = self._read_off(solved, logits)
            where = torch.from_numpy(solved.where)
            outside[where] = False
            ids[where.to(ids.device)] = token
            score[where.to(ids.device)] = chance
        if bool(outside.any()):
            rest = outside.to(logits.device)
            score[rest], ids[rest] = logits[rest].float().softmax(dim=-1).max(dim=-1)
        return ids, score

    def _read_off(self, solved: _Solved, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and scores of a group's cells from its paths."""
        count = np.arange(len(solved.where))
        chosen = solved.paths.path[solved.slot, solved.cell]
        allowed = solved.paths.allowed[solved.slot, solved.cell].copy()
        broken = ~solved.paths.feasible[solved.slot]
        if broken.any():  # no completion: each cell for itself, among value tokens; the reader repairs
            allowed[broken, 1:] = True
            chosen = np.where(broken, np.where(allowed, solved.sums, -np.inf).argmax(axis=1), chosen)
        token = torch.from_numpy(solved.best[count, chosen]).to(logits.device)
        where = torch.from_numpy(solved.where).to(logits.device)
        own = logits[where, token].double().cpu().numpy()
        sums = np.where(allowed, solved.sums, -np.inf)
        top = sums.max(axis=1)
        total = top + np.log(np.exp(sums - top[:, None]).sum(axis=1))
        chance = np.exp(np.clip(np.nan_to_num(own, nan=FLOOR, neginf=FLOOR) - total, -700.0, 0.0))
        return token, torch.from_numpy(chance).to(logits.device, torch.float32)

    def _solve(self, canvas: Canvas, cells: Tensor, logits: Tensor, noise: Tensor | None) -> list[_Solved]:
        """Trellis of every group that has cells among `cells`."""
        self._prepare(*cells.shape)
        wanted = cells.cpu().numpy()
        masked = canvas.masked.cpu().numpy()
        ids = canvas.ids.cpu().numpy()
        row_of = np.full(wanted.shape, -1, np.int64)  # which row of the logits a cell has
        row_of[wanted] = np.arange(int(wanted.sum()))
        out = []
        for group in self._groups:
            rows = row_of[group.rows[:, None], group.columns]
            active = (rows >= 0).any(axis=1)
            if active.any():
                part = _Group(group.table, group.rows[active], group.columns[active])
                out.append(self._solve_group(part, rows[active], masked, ids, logits, noise))
        return out

    def _solve_group(
        self,
        group: _Group,
        rows: NDArray[np.int64],
        masked: NDArray[np.bool_],
        ids: NDArray[np.int64],
        logits: Tensor,
        noise: Tensor | None,
    ) -> _Solved:
        slot, cell = np.nonzero(rows >= 0)
        where = rows[slot, cell]
        weight, best, sums = self._reduce(group.table, where, logits, noise)
        shape = (*rows.shape, group.table.classes)
        scores = np.zeros(shape)  # a masked cell outside the window says nothing yet
        scores[slot, cell] = weight
        fixed = ~masked[group.rows[:, None], group.columns]
        if fixed.any():
            known = np.where(fixed, ids[group.rows[:, None], group.columns], 0)  # a mask id may lie beyond the tokenizer
            own = group.table.class_of[known]
            scores[fixed] = np.where(np.arange(shape[2]) == own[fixed][:, None], 0.0, -np.inf)
        uniform = None
        if noise is not None:
            drawn = torch.rand(rows.shape, dtype=torch.float64, generator=self.generator, device=logits.device)
            uniform = drawn.cpu().numpy()
        return _Solved(group, where, slot, cell, best, sums, solve(group.table, scores, uniform))

    def _reduce(
        self, table: TokenTable, where: NDArray[np.int64], logits: Tensor, noise: Tensor | None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Weight, chosen token and log-sum of each class [n, C]; class 0 is left at the floor.

        The weight is what the trellis adds up: the largest logit, or when drawing the log-sum at the temperature. The
        token is the one of the largest logit, or when drawing that of the largest perturbed logit, which is a draw.
        """
        order, begin = table.order
        ends = np.append(begin[1:], len(order))
        order = order[begin[1] :]
        pick = torch.from_numpy(where).to(logits.device), torch.from_numpy(order).to(logits.device)
        values = logits[pick[0]][:, pick[1]].float()  # tokens of a class side by side
        heated = shaken = values
        if noise is not None:
            heated = values / self.temperature
            shaken = heated + noise[pick[0]][:, pick[1]]
        size = (len(where), table.classes)
        weight = torch.full(size, FLOOR, device=logits.device)
        total = torch.full(size, FLOOR, device=logits.device)
        place = torch.zeros(size, dtype=torch.long, device=logits.device)
        for index in range(1, table.classes):
            part = slice(int(begin[index] - begin[1]), int(ends[index] - begin[1]))
            if part.stop - part.start == 1:
                total[:, index] = values[:, part.start]
                weight[:, index] = heated[:, part.start]
                place[:, index] = part.start
                continue
            top = shaken[:, part].max(dim=1)
            place[:, index] = top.indices + part.start
            total[:, index] = values[:, part].logsumexp(dim=1)
            weight[:, index] = top.values if noise is None else heated[:, part].logsumexp(dim=1)
        return _finite(weight), order[place.cpu().numpy()], _finite(total)

    def _prepare(self, batch: int, length: int) -> None:
        """Collect the slots of the batch into groups, once per batch size."""
        if batch == self._batch:
            return
        scaffolds = [self.scaffolds] * batch if isinstance(self.scaffolds, Scaffold) else list(self.scaffolds)
        offsets = [self.offsets] * batch if isinstance(self.offsets, int) else list(self.offsets)
        if len(scaffolds) != batch or len(offsets) != batch:
            raise DecodingError(f"{len(scaffolds)} scaffolds and {len(offsets)} offsets for {batch} canvas rows")
        found: dict[tuple[int, int], tuple[TokenTable, list[int], list[int]]] = {}
        for row, (scaffold, offset) in enumerate(zip(scaffolds, offsets, strict=True)):
            if offset + len(scaffold) > length:
                raise DecodingError(f"row {row}: a scaffold of {len(scaffold)} cells on a canvas of {length}")
            for slot in scaffold.slots:
                table = slot.constraint
                _, rows, starts = found.setdefault((id(table), slot.budget), (table, [], []))
                rows.append(row)
                starts.append(offset + slot.start)
        self._groups = [
            _Group(table, np.array(rows), np.array(starts)[:, None] + np.arange(budget))
            for (_, budget), (table, rows, starts) in found.items()
        ]
        self._batch = batch


def _finite(values: Tensor) -> NDArray[np.float64]:
    """As numbers that can be added up: a ban becomes the floor, so that it yields where the schema leaves no other."""
    return np.clip(np.nan_to_num(values.double().cpu().numpy(), nan=FLOOR), FLOOR, -FLOOR)
