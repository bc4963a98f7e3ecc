"""Denoisers whose answers are known: exact conditionals of a joint table, and a deterministic toy without batch effects."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Prediction


class JointDenoiser:
    """Exact conditionals of a joint distribution over L cells of V values, as log-probabilities.

    Args:
        table: [V ** L], cell 0 outermost. The vocabulary is V values, then the mask id.
    """

    def __init__(self, table: Tensor, vocab: int, length: int) -> None:
        self.joint = table.double().view((vocab,) * length)
        self.values, self.length, self.vocab_size = vocab, length, vocab + 1
        self._known: dict[tuple[int, ...], Tensor] = {}

    def conditionals(self, state: tuple[int, ...]) -> Tensor:
        """[L, V] distribution of each cell given the known ones (-1: open); rows of known cells are point masses."""
        if state not in self._known:
            picked = self.joint
            for axis, value in enumerate(state):
                if value >= 0:
                    picked = picked.index_select(axis, torch.tensor([value]))
            rows = []
            for axis, value in enumerate(state):
                others = [a for a in range(self.length) if a != axis]
                mass = picked.sum(dim=others) if others else picked
                rows.append(torch.nn.functional.one_hot(torch.tensor(value), self.values).double() if value >= 0 else mass / mass.sum())
            self._known[state] = torch.stack(rows)
        return self._known[state]

    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        ids = torch.where(canvas.masked, -1, canvas.ids)
        states, which = torch.unique(ids, dim=0, return_inverse=True)
        table = torch.stack([self.conditionals(tuple(s)) for s in states.tolist()]).log()  # [S, L, V]
        logits = torch.nn.functional.pad(table[which], (0, 1), value=-math.inf)
        return Prediction(logits[cells].float())


class ToyDenoiser:
    """Logits that depend on a row's own cells alone, summed in a fixed order in float64: batches change nothing.

    Args:
        vocab: size of the vocabulary. seed: of its weights. scale: of the logits.
    """

    def __init__(self, vocab: int, seed: int = 0, scale: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab
        self.bias = scale * torch.randn(64, vocab, generator=generator, dtype=torch.float64)
        self.seen = scale * 0.3 * torch.randn(vocab, 64, vocab, generator=generator, dtype=torch.float64)

    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        rows = []
        for row, column in cells.nonzero().tolist():
            total = self.bias[column].clone()
            for other in range(int(canvas.valid[row].sum())):
                if not canvas.masked[row, other]:
                    total += self.seen[int(canvas.ids[row, other]), (column - other) % 64]
            rows.append(total)
        return Prediction(torch.stack(rows).float())


def histogram(ids: Tensor, vocab: int) -> Tensor:
    """[V ** L] counts of rows [N, L], cell 0 outermost."""
    index = torch.zeros(len(ids), dtype=torch.long)
    for column in ids.T:
        index = index * vocab + column
    return torch.bincount(index, minlength=vocab ** ids.shape[1])


def chi_square(counts: Tensor, law: Tensor) -> float:
    """How many standard deviations the chi-square statistic of `counts` lies above its mean; inf for impossible draws.

    Cells expecting fewer than five draws are pooled.
    """
    law = law.double()
    if bool((counts[law < 1e-12] > 0).any()):
        return math.inf
    expected, counts = law * counts.sum(), counts.double()
    rare = expected < 5
    if bool(rare.any()):
        expected = torch.cat((expected[~rare], expected[rare].sum().view(1)))
        counts = torch.cat((counts[~rare], counts[rare].sum().view(1)))
    there = expected > 0
    statistic = float(((counts[there] - expected[there]) ** 2 / expected[there]).sum())
    freedom = max(int(there.sum()) - 1, 1)
    return (statistic - freedom) / math.sqrt(2 * freedom)
