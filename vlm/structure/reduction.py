"""From logits over the vocabulary to scores over the classes of an automaton: the largest and the log-sum of each class.

Large classes (the letters of free text are most of a vocabulary) are reduced over whole rows with the other tokens blanked;
the tokens of small classes are gathered side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm.structure.table import TokenTable

LARGE = 2048  # tokens from which a class is reduced over whole rows
FLOOR = -1e9  # log-weight of what the model, or a ban, excludes: taken only when the schema leaves no other


@dataclass
class Reducer:
    """The index tensors of one table on one device.

    Attributes:
        large: (class, the tokens outside it) of large classes.
        tokens, label: [M] tokens of small classes sorted by class, and their class; classes, first: the small classes that
            have tokens, and where each begins. class_of: [V] int32.
    """

    table: TokenTable
    large: list[tuple[int, Tensor]]
    tokens: Tensor
    label: Tensor
    classes: Tensor
    first: NDArray[np.int64]
    class_of: Tensor

    @classmethod
    def of(cls, table: TokenTable, device: torch.device) -> Reducer:
        """From memory where it was made before and is still in use."""
        found = table.reducers.get(str(device))
        if found is not None:
            return found
        counts = np.bincount(table.class_of, minlength=table.classes)
        big = [c for c in range(1, table.classes) if counts[c] >= LARGE]
        order = np.argsort(table.class_of, kind="stable")
        order = order[(table.class_of[order] > 0) & ~np.isin(table.class_of[order], big)]
        label = table.class_of[order].astype(np.int64)
        classes, first = np.unique(label, return_index=True)

        def put(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(values).to(device)

        made = cls(table, [(c, put(np.flatnonzero(table.class_of != c))) for c in big], put(order), put(label), put(classes), first, put(table.class_of))
        table.reducers[str(device)] = made
        return made

    def reduce(self, logits: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """(largest, log-sum) [n, C] of logits [n, >= V] by class, divided by the temperature first; class 0 is left at the floor."""
        rows = logits[:, : len(self.class_of)].float()
        if temperature != 1.0:
            rows = rows / temperature
        top = torch.full((len(rows), self.table.classes), -torch.inf, device=rows.device)
        total = top.clone()
        for label, others in self.large:
            part = rows.index_fill(1, others, -torch.inf)
            top[:, label], total[:, label] = part.amax(dim=1), part.logsumexp(dim=1)
        if len(self.tokens):
            values = rows[:, self.tokens]
            found = self._segments(values) if rows.device.type == "cpu" else self._scattered(values)
            top[:, self.classes], total[:, self.classes] = found
        return top, total

    def _segments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Small classes on the CPU: runs of neighbours."""
        array = np.nan_to_num(values.numpy(), nan=FLOOR, neginf=FLOOR, posinf=-FLOOR)
        top = np.maximum.reduceat(array, self.first, axis=1)
        lengths = np.diff(np.append(self.first, array.shape[1]))
        sums = np.add.reduceat(np.exp(array - np.repeat(top, lengths, axis=1)), self.first, axis=1)
        return torch.from_numpy(top), torch.from_numpy(np.log(sums) + top)

    def _scattered(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Small classes on an accelerator: one scatter for the largest, one for the sums."""
        values = values.nan_to_num(nan=FLOOR, neginf=FLOOR, posinf=-FLOOR)
        index = torch.searchsorted(self.classes, self.label).expand_as(values)
        empty = torch.full((len(values), len(self.classes)), -torch.inf, device=values.device)
        top = empty.scatter_reduce(1, index, values, "amax")
        sums = torch.zeros_like(top).scatter_add_(1, index, (values - top.gather(1, index)).exp())
        return top, sums.log() + top

    def pick(self, logits: Tensor, label: NDArray[np.int64], *, noise: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """[n] the likeliest token of a class [n] in each row, or with Gumbel `noise` [n, V] a draw at the temperature."""
        rows = logits[:, : len(self.class_of)].float()
        if noise is not None:
            rows = rows / temperature + noise
        out = torch.empty(len(rows), dtype=torch.long, device=rows.device)
        large = dict(self.large)
        small = self.classes.tolist()
        ends = np.append(self.first, len(self.label))
        for number in np.unique(label).tolist():
            where = torch.from_numpy(np.flatnonzero(label == number)).to(rows.device)
            if number in large:
                out[where] = rows[where].nan_to_num(nan=FLOOR, neginf=FLOOR).index_fill(1, large[number], -torch.inf).argmax(dim=1)
            elif number in small:
                at = small.index(number)
                members = self.tokens[int(self.first[at]) : int(ends[at + 1])]
                out[where] = members[rows[where.unsqueeze(1), members].nan_to_num(nan=FLOOR, neginf=FLOOR).argmax(dim=1)]
            else:
                out[where] = 0
        return out
