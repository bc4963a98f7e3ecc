"""Quotas: how many cells a row commits in a step. Tables come from the papers, counts are per row always."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Step
from vlm.errors import OptionError


def check_times(steps: int, eps: float = 1e-3) -> None:
    """OptionError unless there is at least one step and the last time lies in [0, 1)."""
    if steps < 1:
        raise OptionError(f"steps is {steps}", remedy="use 1 or more")
    if not 0 <= eps < 1:
        raise OptionError(f"eps is {eps}", remedy="use a number in [0, 1)")


def check_ratio(ratio: float | None) -> None:
    """OptionError unless a step ratio lies in (0, 1] or is None."""
    if ratio is not None and not 0 < ratio <= 1:
        raise OptionError(f"step_ratio is {ratio}", remedy="use a number in (0, 1]")


#: Curves of :func:`shaped_table`.
SHAPES = ("shift", "cosine", "linear", "logit_normal")


def linear_table(masks: int, steps: int) -> list[int]:
    """LLaDA: floor(masks / steps) each, the remainder one more in the first steps."""
    base, rest = divmod(masks, steps)
    return [base + (i < rest) for i in range(steps)]


def shaped_table(masks: int, steps: int, shape: str = "shift", shift: float = 1 / 3) -> list[int]:
    """LaViDa (arXiv:2505.16839, timestep shift): commits follow a curve of time, most first for shift < 1.

    Args:
        masks: cells to fill; steps: at most one step per cell is used.
        shape: 'shift' s(t) = a t / (1 + (a - 1) t); 'cosine' s(t) = 1 - (1 + cos(pi t)) / 2; 'linear' s(t) = t;
            'logit_normal' s(t) = Phi(ln(t / (1 - t))).
        shift: a of the shift curve; 1/3 commits many cells early, 3 few.
    """
    steps = max(1, min(steps, masks))
    times = torch.linspace(0, 1, steps + 1)
    if shape == "shift":
        curve = shift * times / (1 + (shift - 1) * times)
    elif shape == "cosine":
        curve = 1 - 0.5 * (1 + torch.cos(math.pi * times))
    elif shape == "linear":
        curve = times
    elif shape == "logit_normal":
        curve = torch.special.ndtr(torch.logit(times))
    else:
        raise OptionError(f"unknown schedule {shape!r}", remedy=f"use one of {', '.join(SHAPES)}")
    ends = (curve * masks).to(torch.int64)
    counts = (ends[1:] - ends[:-1]).clamp_min(1).tolist()
    surplus = sum(counts) - masks
    i = 0
    while surplus > 0:  # rounding up made too many: take them from entries that can spare one
        if counts[i] > 1:
            counts[i] -= 1
            surplus -= 1
        i = (i + 1) % steps
    counts[-1] += masks - sum(counts)
    return counts[::-1]


def dream_count(masked: int, step: int, steps: int, eps: float = 1e-3) -> int:
    """Dream: int(masked * (1 - s/t)) on linspace(1, eps, steps + 1) in float32; everything in the last step."""
    if step >= steps - 1:
        return masked
    times = torch.linspace(1, eps, steps + 1)
    return int(masked * (1 - times[step + 1] / times[step]))


def dream_table(masked: int, steps: int, eps: float = 1e-3) -> list[int]:
    """:func:`dream_count` of every step of a run."""
    counts: list[int] = []
    for step in range(steps):
        counts.append(dream_count(masked - sum(counts), step, steps, eps))
    return counts


@dataclass
class TableQuota:
    """A table per block, drawn up when a row enters the block.

    Args:
        steps: steps per block. shape: 'even' (LLaDA), or one of :data:`SHAPES` (LaViDa). shift: see
            :func:`shaped_table`.
        ratio: instead of `steps`, steps per cell of a block of `block` cells, or of the canvas where that is shorter.
        cells: draw the table up for so many cells, whatever a row has in the block (block diffusion).
    """

    steps: int
    shape: str = "even"
    shift: float = 1 / 3
    ratio: float | None = None
    block: int | None = None
    cells: int | None = None
    _block: list[int] = field(default_factory=list, repr=False)
    _table: list[list[int]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        check_times(self.steps)
        check_ratio(self.ratio)
        if self.shape != "even" and self.shape not in SHAPES:
            raise OptionError(f"unknown schedule {self.shape!r}", remedy=f"use 'even' or one of {', '.join(SHAPES)}")

    def start(self, canvas: Canvas) -> TableQuota:
        """A copy without history."""
        rows, length = canvas.ids.shape
        steps = self.steps if self.ratio is None else max(1, int(min(self.block or length, length) * self.ratio))
        return replace(self, steps=steps, ratio=None, block=None, _block=[-1] * rows, _table=[[] for _ in range(rows)])

    def __call__(self, step: Step, block: Tensor) -> Tensor:
        """[B] counts."""
        counts = torch.bincount(step.row, minlength=len(self._block)).tolist()
        out = []
        for row, (number, n) in enumerate(zip(block.tolist(), counts, strict=True)):
            if n == 0:
                out.append(0)
                continue
            if number != self._block[row]:
                self._block[row] = number
                n = self.cells or n
                table = linear_table(n, self.steps) if self.shape == "even" else shaped_table(n, self.steps, self.shape, self.shift)
                self._table[row] = table[::-1]
            # released code may propose the mask token and so outlast its table
            out.append(self._table[row].pop() if self._table[row] else 1)
        return torch.tensor(out)


@dataclass
class DreamQuota:
    """Dream's schedule, :func:`dream_count` of each row's open cells.

    Args:
        steps: of the whole run; None: as many as the canvas has cells. eps: last time.
        ratio: stop after so many steps per cell and take what is left in the last (LaViDa-Dream's `step_ratio`, which cuts
            the loop and not the times).
    """

    steps: int | None
    eps: float = 1e-3
    ratio: float | None = None
    _done: int = field(default=0, repr=False)
    _cells: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        check_times(1 if self.steps is None else self.steps, self.eps)
        check_ratio(self.ratio)

    def start(self, canvas: Canvas) -> DreamQuota:
        """A copy at step 0."""
        return DreamQuota(self.steps, self.eps, self.ratio, 0, canvas.ids.shape[1])

    def __call__(self, step: Step, block: Tensor) -> Tensor:
        """[B] counts."""
        counts = torch.bincount(step.row, minlength=len(block)).tolist()
        steps = self._cells if self.steps is None else self.steps
        last = self.ratio is not None and self._done + 1 >= max(1, int(self._cells * self.ratio))
        out = counts if last else [dream_count(n, self._done, steps, self.eps) for n in counts]
        self._done += 1
        return torch.tensor(out)


@cache
def _grid(steps: int, eps: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[steps + 1] times from 1 to `eps`, float32 as the published code has them."""
    return np.asarray(torch.linspace(1, eps, steps + 1).numpy())


def dimple_count(masked: int, total: int, step: int, steps: int, eps: float = 1e-3) -> int:
    """Dimple (arXiv:2505.16990): go on to the next time below the present share of masks that commits anything.

    Args:
        masked: cells left of `total`. step: number of the step, from 0, of `steps`.
    """
    if step >= steps - 1 or masked == 0:
        return masked
    times, share = _grid(steps, eps), np.float32(masked / total)
    below = int(np.argmax(times < share)) if bool((times < share).any()) else steps
    for at in range(max(below, step + 1), steps):
        count = int(np.float32(masked) * (np.float32(1) - times[at] / share))
        if count >= 1:
            return count
    return masked


@dataclass
class DimpleQuota:
    """Dimple's fallback, :func:`dimple_count` of each row.

    Args:
        steps: of the whole run; None: as many as a row has cells. eps: last time.
    """

    steps: int | None = None
    eps: float = 1e-3
    _done: int = field(default=0, repr=False)
    _cells: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        check_times(1 if self.steps is None else self.steps, self.eps)

    def start(self, canvas: Canvas) -> DimpleQuota:
        """A copy at step 0 that knows how many cells each row began with."""
        return DimpleQuota(self.steps, self.eps, 0, canvas.open.sum(1).tolist())

    def __call__(self, step: Step, block: Tensor) -> Tensor:
        """[B] counts."""
        left = torch.bincount(step.row, minlength=len(self._cells)).tolist()
        out = [dimple_count(n, total, self._done, self.steps or max(total, 1), self.eps) for n, total in zip(left, self._cells, strict=True)]
        self._done += 1
        return torch.tensor(out)
