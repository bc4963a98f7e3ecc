"""Proposers: temperature, top-k, top-p, then greedy, Gumbel-max or multinomial choice; and the banning of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Step
from vlm.errors import OptionError


@dataclass(frozen=True)
class Ban:
    """Tokens that can never come out: mask, control and media ids.

    Args:
        ids: token ids; their logits become -inf, and so their probability 0 in every score.
    """

    ids: tuple[int, ...]

    def __call__(self, canvas: Canvas, cells: Tensor, logits: Tensor) -> Tensor:
        """Logits [N, V] with the banned columns at -inf."""
        if not self.ids:
            return logits
        return logits.index_fill(1, torch.tensor(self.ids), float("-inf"))


@dataclass(frozen=True)
class EndPenalty:
    """Keeps end tokens back early in a run (Dream-VL): adds strength * ln(1 - t + eps) to their logits, t going from 1 to eps.

    Args:
        ids: end tokens. strength: 0 does nothing. steps, eps: of the run.
    """

    ids: tuple[int, ...]
    strength: float
    steps: int
    eps: float = 1e-3

    def __call__(self, canvas: Canvas, cells: Tensor, logits: Tensor) -> Tensor:
        """Logits [N, V] with the columns of the end tokens lowered."""
        times = torch.linspace(1, self.eps, self.steps + 1)
        row = cells.nonzero(as_tuple=True)[0]
        less = self.strength * torch.log(1 - times[canvas.step.clamp_max(self.steps)] + self.eps)  # [B]
        logits = logits.clone()
        logits[:, torch.tensor(self.ids)] += less[row].unsqueeze(1)
        return logits


def filter_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Keep the smallest set of mass `top_p`, then the `top_k` best of it (Dream's order); the best token always stays."""
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        before = torch.softmax(ordered, dim=-1).cumsum(dim=-1)
        drop = torch.zeros_like(before, dtype=torch.bool)
        drop[..., 1:] = before[..., :-1] > top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), float("-inf"))
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits


@dataclass(frozen=True)
class SampleProposer:
    """Greedy at temperature 0, else a sample.

    Args:
        temperature, top_k, top_p: as usual; filters act on the tempered logits.
        method: 'gumbel' takes argmax of z/T + Gumbel noise in float64 (float32 noise acts like a lower temperature:
            arXiv:2409.02908); 'multinomial' inverts the cumulative distribution in float64.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    method: str = "multinomial"

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise OptionError(f"temperature is {self.temperature}", remedy="use 0 (greedy) or more")
        if self.method not in ("gumbel", "multinomial"):
            raise OptionError(f"unknown sampling method {self.method!r}", remedy="use 'gumbel' or 'multinomial'")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}", remedy="use a number in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise OptionError(f"top_k is {self.top_k}", remedy="use 1 or more")

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        """(ids [N], tempered and filtered logits [N, V])."""
        logits = step.logits
        if self.temperature > 0 and self.method == "multinomial":
            logits = logits / self.temperature
        if self.top_k is not None or self.top_p is not None:
            logits = filter_logits(logits, self.top_k, self.top_p)
        if self.temperature == 0:
            return logits.argmax(dim=-1), logits
        if self.method == "gumbel":
            uniform = step.noise.uniform("token", step, logits.shape[-1])
            gumbel = -torch.log(-torch.log(uniform))
            return (logits.double() / self.temperature + gumbel).argmax(dim=-1), logits
        cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
        uniform = step.noise.uniform("token", step).unsqueeze(-1) * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, uniform).squeeze(-1)
        return ids.clamp_max(logits.shape[-1] - 1), logits
