"""From logits over the vocabulary to scores over the classes of an automaton: the largest and the log-sum of each class.

The tokens of a class are gathered side by side; what follows are reductions of neighbouring runs. On an accelerator these are
two scatters, on the CPU numpy's `reduceat`, which is several times faster there than torch's scatter.
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


@dataclass
class Reducer:
    """The index tensors of one table on one device.

    Attributes:
        tokens: [M] tokens of classes other than 0, sorted by class. labels: [K] the classes that have tokens.
        first: [K + 1] where each begins, and M. run: [M] place of each token's class among `labels`.
    """

    classes: int
    tokens: Tensor
    labels: NDArray[np.int64]
    first: NDArray[np.int64]
    run: Tensor

    @classmethod
    def of(cls, table: TokenTable, device: torch.device) -> Reducer:
        """From memory where it was made before."""
        found = table.reducers.get(str(device))
        if found is not None:
            return found
        order = np.argsort(table.class_of, kind="stable")
        order = order[table.class_of[order] > 0]
        labels, first, run = np.unique(table.class_of[order].astype(np.int64), return_index=True, return_inverse=True)
        tokens = torch.from_numpy(order).to(device)
        made = cls(table.classes, tokens, labels, np.append(first, len(order)), torch.from_numpy(run.reshape(-1)).to(device))
        table.reducers[str(device)] = made
        return made

    def gather(self, logits: Tensor, where: Tensor) -> Tensor:
        """[n, M] rows `where` [n] of logits [N, >= V] by class, finite."""
        first, count = int(where[0]), len(where)
        rows = logits[first : first + count] if int(where[-1]) == first + count - 1 and bool((where.diff() == 1).all()) else logits[where]
        return rows.index_select(1, self.tokens).float().nan_to_num_(nan=FLOOR, neginf=FLOOR, posinf=-FLOOR)

    def reduce(self, values: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(largest, log-sum) [n, C] of gathered values [n, M]; classes without tokens are left at the floor."""
        top = np.full((len(values), self.classes), FLOOR)
        total = top.copy()
        found = self._runs(values.numpy()) if values.device.type == "cpu" else self._scattered(values)
        top[:, self.labels], total[:, self.labels] = found
        return top, total

    def _runs(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        begins = self.first[:-1]
        top = np.maximum.reduceat(values, begins, axis=1)
        best = top.max(axis=1, keepdims=True)
        shares = values - best  # of the row's best: one pass, where every class its own would take three
        total = np.add.reduceat(np.exp(shares, out=shares), begins, axis=1)
        with np.errstate(divide="ignore"):
            total = np.log(total) + best
        for at in np.flatnonzero((top < best - FAR).any(axis=0)).tolist():  # there float32 runs out of digits
            rows = np.flatnonzero(top[:, at] < best[:, 0] - FAR)
            part = values[rows, begins[at] : self.first[at + 1]] - top[rows, at : at + 1]
            total[rows, at] = np.log(np.exp(part).sum(axis=1)) + top[rows, at]
        return top, total

    def _scattered(self, values: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        index = self.run.expand_as(values)
        empty = torch.full((len(values), len(self.labels)), -torch.inf, device=values.device)
        top = empty.scatter_reduce(1, index, values, "amax")
        sums = torch.zeros_like(top).scatter_add_(1, index, (values - top.gather(1, index)).exp())
        return top.cpu().numpy(), (sums.log() + top).cpu().numpy()

    def pick(self, values: Tensor, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """([n] likeliest token, [n] where it lies among the M) of a class [n] in each row of gathered values."""
        if values.device.type == "cpu":  # row by row: no copy of a large class
            table, which = values.numpy(), np.minimum(np.searchsorted(self.labels, chosen), len(self.labels) - 1)
            places = [self._best(table[row], at) for row, at in enumerate(which.tolist())]
            found = torch.tensor(np.where(self.labels[which] == chosen, places, 0), dtype=torch.long)
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
