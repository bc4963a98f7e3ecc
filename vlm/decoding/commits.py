"""Commit rules: top-k of a quota, thresholds, the factor rule, Dimple's mixture, Dream's coin flips."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Step
from vlm.decoding.quotas import check_times
from vlm.errors import OptionError


def ranks(step: Step, score: Tensor | None = None) -> Tensor:
    """[N] rank of each cell's score (or of another [N] `score`) within its row, 0 the highest; ties go to the left cell."""
    dense = torch.full(step.cells.shape, float("-inf"), dtype=torch.float64)
    dense[step.cells] = (step.score if score is None else score).double()
    order = dense.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return rank[step.cells]


@dataclass(frozen=True)
class TopK:
    """The surest `quota` cells of each row.

    Args:
        alg_temp: > 0 draws the cells instead, without replacement, from softmax(score / alg_temp) (Dream).
    """

    alg_temp: float = 0.0

    def __post_init__(self) -> None:
        if self.alg_temp < 0:
            raise OptionError(f"alg_temp is {self.alg_temp}", remedy="use 0 (the surest) or more")

    def start(self, canvas: Canvas) -> TopK:
        """No state."""
        return self

    def __call__(self, step: Step) -> Tensor:
        """[N] bool."""
        assert step.quota is not None
        if self.alg_temp > 0:  # Gumbel top-k is sampling without replacement
            noise = step.noise.uniform("commit", step)
            step.score, kept = step.score.double() / self.alg_temp - torch.log(-torch.log(noise)), step.score
            chosen = ranks(step) < step.quota[step.row]
            step.score = kept
            return chosen
        return ranks(step) < step.quota[step.row]


@dataclass(frozen=True)
class Leftmost:
    """The first `quota` cells of each row ('sequential' and 'autoregressive' of the published samplers)."""

    def start(self, canvas: Canvas) -> Leftmost:
        """No state."""
        return self

    def __call__(self, step: Step) -> Tensor:
        """[N] bool."""
        assert step.quota is not None
        return ranks(step, -step.column) < step.quota[step.row]


@dataclass(frozen=True)
class QuotaOrMore:
    """The surest `quota` cells of each row and every other with score > tau (SDAR, arXiv:2510.06303, 'dynamic')."""

    tau: float = 0.9

    def start(self, canvas: Canvas) -> QuotaOrMore:
        """No state."""
        return self

    def __call__(self, step: Step) -> Tensor:
        """[N] bool."""
        assert step.quota is not None
        return (step.score > self.tau) | (ranks(step) < step.quota[step.row])


@dataclass(frozen=True)
class Threshold:
    """Every cell with score >= tau, and the surest of each row (Fast-dLLM, arXiv:2505.22618)."""

    tau: float = 0.9

    def start(self, canvas: Canvas) -> Threshold:
        """No state."""
        return self

    def __call__(self, step: Step) -> Tensor:
        """[N] bool."""
        return (step.score >= self.tau) | (ranks(step) == 0)


@dataclass(frozen=True)
class Factor:
    """Longest prefix of the sorted scores with (m + 1)(1 - c_m) <= f, at least one (Fast-dLLM, factor mode).

    Args:
        factor: f. reference_quirks: also commit the last cell of a row when the scan reaches it and it fails, as
            every released copy does.
    """

    factor: float = 1.0
    reference_quirks: bool = False

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise OptionError(f"factor is {self.factor}", remedy="use a positive number")

    def start(self, canvas: Canvas) -> Factor:
        """No state."""
        return self

    def __call__(self, step: Step) -> Tensor:
        """[N] bool."""
        dense = torch.full(step.cells.shape, -1.0, dtype=torch.float64)
        dense[step.cells] = step.score.double()
        ordered = dense.sort(dim=1, descending=True).values
        place = torch.arange(1, ordered.shape[1] + 1)
        there = ordered >= 0
        good = ((ordered >= 1 - self.factor / (place + 1)) & there).int().cumprod(dim=1).sum(dim=1)
        count = good.clamp_min(1)
        if self.reference_quirks:
            total = there.sum(dim=1)
            count = torch.where(count == total - 1, total, count)
        return ranks(step) < count[step.row]


@dataclass
class ThresholdElseQuota:
    """Dimple's confident decoding (arXiv:2505.16990): all cells with score > gamma, else the quota's surest.

    Args:
        gamma: threshold; None: the quota always. steps: of the whole run; with a threshold the last one takes everything.
            None: no last step.
        order: of the quota's cells: 'score' the surest, 'random' any (Dimple's demo); 'left' is one cell, the first.
    """

    gamma: float | None = 0.95
    steps: int | None = None
    order: str = "score"
    _done: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.order not in ("score", "left", "random"):
            raise OptionError(f"unknown order {self.order!r}", remedy="use 'score', 'left' or 'random'")

    def start(self, canvas: Canvas) -> ThresholdElseQuota:
        """A copy at step 0."""
        return ThresholdElseQuota(self.gamma, self.steps, self.order)

    def __call__(self, step: Step) -> Tensor:
        """[N] bool."""
        assert step.quota is not None
        self._done += 1
        if self.steps is not None and self._done >= self.steps:
            return torch.ones(len(step.row), dtype=torch.bool)
        sure = torch.zeros(len(step.row), dtype=torch.bool) if self.gamma is None else step.score > self.gamma
        some = torch.zeros(step.cells.shape[0], dtype=torch.bool).index_put((step.row,), sure, accumulate=True)
        lacking = ~some[step.row]
        quota = step.quota.clamp_max(1) if self.order == "left" else step.quota
        return sure | (lacking & (ranks(step, self._order(step, lacking)) < quota[step.row]))

    def _order(self, step: Step, lacking: Tensor) -> Tensor | None:
        """What the quota goes by. Random numbers are drawn for the rows in need alone, so that rows do not depend on each other."""
        if self.order == "score":
            return None
        if self.order == "left":
            return -step.column
        drawn = torch.zeros(len(step.row), dtype=torch.float64)
        if bool(lacking.any()):
            drawn[lacking] = step.noise.uniform("commit", replace(step, row=step.row[lacking]))
        return drawn


@dataclass
class Bernoulli:
    """Dream's 'origin': each cell with probability 1 - s/t, everything in the last step.

    Args:
        steps: of the whole run. eps: last time.
    """

    steps: int
    eps: float = 1e-3
    _done: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        check_times(self.steps, self.eps)

    def start(self, canvas: Canvas) -> Bernoulli:
        """A copy at step 0."""
        return Bernoulli(self.steps, self.eps)

    def __call__(self, step: Step) -> Tensor:
        """[N] bool."""
        times = torch.linspace(1, self.eps, self.steps + 1)
        last = self._done >= self.steps - 1
        chance = 1.0 if last else float(1 - times[self._done + 1] / times[self._done])
        self._done += 1
        if last:
            return torch.ones(len(step.row), dtype=torch.bool)
        return step.noise.uniform("commit", step) < chance
