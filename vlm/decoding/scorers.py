"""Scorers: probability of the proposal, margin, negative entropy, random; from raw or from filtered logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.decoding.contracts import Step
from vlm.errors import OptionError

KINDS = ("prob", "margin", "entropy", "random")


@dataclass(frozen=True)
class ConfidenceScorer:
    """How sure a proposal is.

    Args:
        kind: 'prob' p(proposal); 'margin' p(best) - p(second); 'entropy' sum p ln p; 'random' uniform.
        filtered: score the tempered and filtered logits (Dream) instead of the raw ones (LLaDA, Dimple).
        temperature: divides the logits (SDAR scores the tempered and not the filtered distribution).
        ignore: columns left out of the distribution before scoring (LLaDA's "EOS confidence" option).
    """

    kind: str = "prob"
    filtered: bool = False
    ignore: tuple[int, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"unknown score {self.kind!r}", remedy=f"use one of {', '.join(KINDS)}")

    def __call__(self, step: Step) -> Tensor:
        """[N] scores."""
        if self.kind == "random":
            return step.noise.uniform("score", step)
        logits = step.filtered if self.filtered else step.logits
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.ignore:
            logits = logits.index_fill(1, torch.tensor(self.ignore), float("-inf"))
        if self.kind == "prob":
            best = logits.gather(1, step.proposal.unsqueeze(1)).squeeze(1)
            return (best - logits.logsumexp(dim=-1)).exp()
        p = torch.softmax(logits, dim=-1)
        if self.kind == "margin":
            top = p.topk(2, dim=-1).values
            return top[:, 0] - top[:, 1]
        return (p * torch.log(p + 1e-10)).sum(dim=-1)
