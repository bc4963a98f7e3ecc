"""Losses of masked diffusion. All work on masked cells only: an unmasked cell never reaches the output head.

Each returns a sum over cells divided by a total that the caller may give. With the totals of a whole step
(``totals(batch)`` of an objective, added over its micro-batches) micro-batches add up to the loss of one big batch.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.errors import ConfigError

#: Pointer targets that are no entry: the cell is copied from nowhere; nobody knows (not supervised).
NOWHERE, UNKNOWN = -1, -2
Weighting = Literal["plain", "llada", "realised", "answer"]


def cell_weights(masks: Tensor, answer: Tensor, ratio: Tensor | None = None, scheme: Weighting = "plain") -> tuple[Tensor, float]:
    """What a masked cell's cross-entropy counts, and the total to divide the sum by.

    plain: 1 each, mean over masked cells of all views. With a complementary pair each answer cell counts once, which is
        why no weight is needed (LaViDa, arXiv:2505.16839, section 3.2; its released loss has no 1/t).
    llada: 1/t over the row's answer length, mean over views: the bound on the likelihood (LLaDA, arXiv:2502.09992,
        equation 5; the same in LLaDA-V, arXiv:2505.16933).
    answer: 1/t, divided by the answer cells of the batch (the form of d1 and DIFFA: rows count by length).
    realised: like llada with the share of cells that was in fact masked for t (SDAR-VL, arXiv:2512.14068): less noise,
        and a row of one masked cell cannot blow up.

    Args:
        masks: [N, V, L] bool views. answer: [N, L] bool. ratio: [N, V] chance with which each cell was masked; needed
            by llada and answer.

    Returns:
        ([N, V, L] weights, zero at unmasked cells; total).
    """
    if scheme not in get_args(Weighting):
        raise ConfigError(f"unknown loss weighting {scheme!r}", remedy=f"use one of {', '.join(get_args(Weighting))}")
    hidden = masks.float()
    if scheme == "plain":
        return hidden, float(hidden.sum())
    length = answer.sum(-1).clamp_min(1).view(-1, 1)  # [N, 1]
    if scheme == "realised":
        ratio = hidden.sum(-1) / length  # [N, V]
    elif ratio is None:
        raise ConfigError(f"loss weighting {scheme!r} needs the masking ratio of each view")
    weight = hidden / ratio.clamp_min(1e-9).unsqueeze(-1)
    if scheme == "answer":
        return weight, float(answer.sum() * masks.shape[1])
    return weight / length.unsqueeze(-1), float(masks.shape[0] * masks.shape[1])


def context_weights(masked: Tensor, p: float = 0.1) -> Tensor:
    """[B, L] weights that grow with the clean context around a masked cell (CART of Dream, arXiv:2508.15487); 0 at clean cells.

    Each clean cell at distance d counts p (1 - p)^(d - 1) / 2.

    Args:
        masked: [B, L] bool.
    """
    place = torch.arange(masked.shape[1], device=masked.device)
    distance = (place.unsqueeze(0) - place.unsqueeze(1)).abs()
    kernel = 0.5 * p * (1 - p) ** (distance - 1).clamp_min(0).float()
    return ((~masked).float() @ kernel) * masked


def masked_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor, total: float | Tensor | None = None) -> Tensor:
    """sum(weight * cross-entropy) / total, over R masked cells.

    Args:
        logits: [R, V] of masked cells only. target: [R]. weight: [R]. total: divisor; the sum of the weights if None.
    """
    each = F.cross_entropy(logits.float(), target, reduction="none")
    return (each * weight).sum() / (weight.sum() if total is None else total)


def pointer_loss(scores: Tensor, pointer: Tensor, nowhere_weight: float = 0.3, total: float | Tensor | None = None) -> Tensor:
    """Cross-entropy of the copy head's attention against the entry each cell is copied from.

    Supervised attention is what makes a small model look at the page at all (``vlm.backbone.copy_head``).

    Args:
        scores: [R, K + 1], last column 'nowhere'.
        pointer: [R] entry, NOWHERE or UNKNOWN (left out).
        nowhere_weight: what a cell copied from nowhere counts.
        total: divisor; the number of cells that are not UNKNOWN if None.
    """
    known = pointer != UNKNOWN
    scores, pointer = scores[known], pointer[known]
    aim = torch.where(pointer == NOWHERE, scores.shape[-1] - 1, pointer)
    each = F.cross_entropy(scores.float(), aim, reduction="none")
    return (each * torch.where(pointer == NOWHERE, nowhere_weight, 1.0)).sum() / (known.sum() if total is None else total)
