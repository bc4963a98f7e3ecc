"""From logits over the vocabulary to scores over the classes of an automaton: the largest and the log-sum of each class.

The tokens of a class are gathered side by side; what follows are reductions of neighbouring runs. On an accelerator these are
two scatters, on the CPU numpy's `reduceat`, which is several times faster there than torch's scatter. A class that holds most of
the vocabulary, as that of free text does, is not picked token by token: the row is copied and what is not of the class struck out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm.structure.table import TokenTable

FLOOR = -1e9  # log-weight of what the model, or a ban, excludes: taken only when the schema leaves no other
FAR = 60.0  # nats below a row's best beyond which a class is summed for itself
NEAR = 1 << 19  # values that stay in the processor's cache from one pass to the next
PLAIN = (-20.0, 60.0)  # nats a row's best may have for its exponentials to be taken as they are: none overflows, none above FAR vanishes


class Space:
    """Memory that one decoding loop gathers into again and again: asking the system for as much anew costs more than the sums."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, tokens: Tensor) -> Tensor:
        """[rows, M] float32 of any content for `tokens` [M], on their device; what was taken by that name before is lost."""
        size, held = rows * len(tokens), self._held.get(name)
        if held is None or held.numel() < size or held.device != tokens.device:
            held = self._held[name] = torch.empty(size, device=tokens.device)
        return held[:size].view(rows, len(tokens))


@dataclass
class Reducer:
    """The index tensors of one table on one device.

    Attributes:
        tokens: [M] tokens of classes other than 0, sorted by class; where one class holds most tokens it comes last, and
            one of its own, then the whole vocabulary stands for it.
        picked: how many of them are gathered; the rest is copied. struck: [X] where in the rest tokens lie that do not count.
        labels: [K] the classes that have tokens, in the order of `tokens`. first: [K + 1] where each begins, and M.
        run: [M] place of each token's class among `labels`. place: [C] place of each class among `labels`, -1 for none.
    """

    classes: int
    tokens: Tensor
    picked: int
    struck: Tensor
    labels: NDArray[np.int64]
    first: NDArray[np.int64]
    run: Tensor
    place: NDArray[np.int64]

    @classmethod
    def of(cls, table: TokenTable, device: torch.device) -> Reducer:
        """From memory where it was made before."""
        found = table.reducers.get(str(device))
        if found is not None:
            return found
        sizes = np.bincount(table.class_of, minlength=table.classes)
        sizes[0] = 0
        labels = np.flatnonzero(sizes)
        size, whole = len(table.class_of), int(sizes.argmax())
        order = np.argsort(table.class_of, kind="stable")
        order = order[table.class_of[order] > 0]
        if 2 * sizes[whole] <= size:
            struck, picked = np.zeros(0, np.int64), len(order)
        else:  # its first token comes before the rest, so that a search for the best that finds only -inf ends there
            labels, sizes[whole] = np.append(labels[labels != whole], whole), size + 1
            leader = np.flatnonzero(table.class_of == whole)[0]
            order = np.append(order[table.class_of[order] != whole], leader)
            struck, picked = np.append(np.flatnonzero(table.class_of != whole), leader) + len(order), len(order)
            order = np.append(order, np.arange(size))
        place = np.full(table.classes, -1)
        place[labels] = np.arange(len(labels))
        first = np.append(0, np.cumsum(sizes[labels]))
        run = torch.from_numpy(np.repeat(np.arange(len(labels)), sizes[labels])).to(device)
        made = cls(table.classes, torch.from_numpy(order).to(device), picked, torch.from_numpy(struck).to(device), labels, first, run, place)
        table.reducers[str(device)] = made
        return made

    def gather(self, logits: Tensor, where: Tensor, space: Space) -> Tensor:
        """[n, M] rows `where` [n] of logits [N, >= V] by class, in the memory of `space`: until something else is gathered there."""
        first, count = int(where[0]), len(where)
        rows = logits[first : first + count] if int(where[-1]) == first + count - 1 and bool((where.diff() == 1).all()) else logits[where]
        values, few = space.take("values", count, self.tokens), self.picked
        if few == values.shape[1] and rows.dtype == values.dtype:
            return torch.index_select(rows, 1, self.tokens, out=values)
        values[:, :few] = rows.index_select(1, self.tokens[:few])
        values[:, few:] = rows[:, : values.shape[1] - few]
        return values.index_fill_(1, self.struck, -torch.inf)

    def reduce(self, values: Tensor, space: Space) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(largest, log-sum) [n, C] of gathered values [n, M]; classes without tokens are left at the floor.

        Values that are no numbers or +inf, and rows without any finite one, are made finite in place.
        """
        top = np.full((len(values), self.classes), FLOOR)
        total = top.copy()
        found = self._runs(values, space) if values.device.type == "cpu" else self._scattered(self._mend(values))
        top[:, self.labels], total[:, self.labels] = found
        return top, total

    def _mend(self, values: Tensor) -> Tensor:
        return values.nan_to_num_(nan=FLOOR, neginf=FLOOR, posinf=-FLOOR).index_fill_(1, self.struck, -torch.inf)

    def _runs(self, gathered: Tensor, space: Space) -> tuple[NDArray[Any], NDArray[Any]]:
        step = max(1, NEAR // gathered.shape[1])
        parts = [self._few_runs(part, space.take("shares", len(part), self.tokens)) for part in gathered.split(step)]
        tops, totals = zip(*parts, strict=True)
        return np.concatenate(tops), np.concatenate(totals)

    def _few_runs(self, gathered: Tensor, shares: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        values, begins = gathered.numpy(), self.first[:-1]
        top = np.maximum.reduceat(values, begins, axis=1)
        if not (np.isfinite(top.max(axis=1)).all() and (top < np.inf).all()):  # -inf below a row's best needs no mending, and all values no look
            self._mend(gathered)
            top = np.maximum.reduceat(values, begins, axis=1)
        top = np.maximum(top, FLOOR)
        best = top.max(axis=1, keepdims=True)
        # of one number for the row: one pass, where every class its own would take three
        base = np.where((best >= PLAIN[0]) & (best <= PLAIN[1]), np.float32(0.0), best)
        torch.exp(torch.sub(gathered, torch.from_numpy(base), out=shares) if base.any() else gathered, out=shares)
        total = np.add.reduceat(shares.numpy(), begins, axis=1)
        with np.errstate(divide="ignore"):
            total = np.log(total) + base
            for at in np.flatnonzero((top < best - FAR).any(axis=0)).tolist():  # there float32 runs out of digits
                rows = np.flatnonzero(top[:, at] < best[:, 0] - FAR)
                part = values[rows, begins[at] : self.first[at + 1]] - top[rows, at : at + 1]
                total[rows, at] = np.log(np.exp(part).sum(axis=1)) + top[rows, at]
        return top, np.maximum(total, FLOOR)

    def _scattered(self, values: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        index = self.run.expand_as(values)
        empty = torch.full((len(values), len(self.labels)), -torch.inf, device=values.device)
        top = empty.scatter_reduce(1, index, values, "amax")
        sums = torch.zeros_like(top).scatter_add_(1, index, (values - top.gather(1, index)).exp())
        return top.cpu().numpy(), (sums.log() + top).cpu().numpy()

    def pick(self, values: Tensor, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """([n] likeliest token, [n] where it lies among the M) of a class [n] in each row of gathered values."""
        if values.device.type == "cpu":  # row by row: no copy of a large class
            table = values.numpy()
            found = torch.tensor([self._best(table[row], at) if at >= 0 else 0 for row, at in enumerate(self.place[chosen].tolist())])
            return self.tokens[found], found
        place = torch.zeros(len(values), dtype=torch.long, device=values.device)
        for at, label in enumerate(self.labels.tolist()):
            where = np.flatnonzero(chosen == label)
            if len(where):
                begin, end = int(self.first[at]), int(self.first[at + 1])
                rows = torch.from_numpy(where).to(values.device)
                place[rows] = begin if end == begin + 1 else values[rows, begin:end].argmax(dim=1) + begin
        return self.tokens[place], place

    def _best(self, row: NDArray[np.float32], at: int) -> int:
        """Place of the likeliest token of the class that is number `at` among the labels."""
        begin, end = int(self.first[at]), int(self.first[at + 1])
        return begin if end == begin + 1 else int(row[begin:end].argmax()) + begin
