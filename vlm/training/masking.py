"""Which answer cells to hide: LaViDa's complementary pairs and variants.

A *view* is one masked copy of an answer. The complementary pair (LaViDa, arXiv:2505.16839, section 3.2) masks a random
set in one view and exactly the rest in the other, so that every answer cell gives a gradient once per sample, and the
picture is encoded once for both.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm.errors import ConfigError

RatioPolicy = Literal["uniform", "logit_normal", "mode"]


def sample_ratio(
    count: int, policy: RatioPolicy = "uniform", *, mean: float = 0.0, std: float = 1.0, scale: float = 1.29, floor: float = 1e-3,
    generator: torch.Generator | None = None, device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """[count] masking ratios t in floor..1.

    Args:
        policy: uniform (LLaDA, arXiv:2502.09992), logit_normal with `mean` and `std`, or mode with `scale`
            (the two of arXiv:2403.03206, section 3.1, which LaViDa offers).
        floor: smallest ratio; t becomes (1 - floor) t + floor, so that 1/t stays finite.
    """
    if policy not in get_args(RatioPolicy):
        raise ConfigError(f"unknown ratio policy {policy!r}", remedy=f"use one of {', '.join(get_args(RatioPolicy))}")
    u = torch.rand(count, generator=generator, device=device)
    if policy == "logit_normal":
        u = torch.sigmoid(mean + std * torch.randn(count, generator=generator, device=device))
    elif policy == "mode":
        u = (1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)).clamp(0, 1)
    return (1 - floor) * u + floor


def bernoulli_mask(answer: Tensor, ratio: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
    """LLaDA's noise: each answer cell [B, L] is masked by itself with the chance `ratio` [B]; `noise` [B, L] replaces the draw."""
    noise = torch.rand(answer.shape, generator=generator, device=answer.device) if noise is None else noise
    return (noise < ratio.unsqueeze(-1)) & answer


def complementary_pair(
    answer: Tensor, ratio: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None, reference_quirks: bool = False
) -> tuple[Tensor, Tensor]:
    """Two masks that together cover the answer exactly once.

    Args:
        answer: [B, L] bool, cells that may be masked.
        ratio: [B] share of the answer that the first view masks.
        noise: [B, L] uniforms that replace the draw.
        reference_quirks: as LaViDa's code does, the first view is sure of one cell of the whole row only, answer or not.

    Returns:
        (mask, complement), each [B, L] bool. The first masks at least one cell of every row that has an answer.
    """
    noise = torch.rand(answer.shape, generator=generator, device=answer.device) if noise is None else noise
    if not reference_quirks:
        noise = noise.masked_fill(~answer, 2.0)
    lowest = noise.min(dim=-1, keepdim=True).values
    mask = (noise <= torch.maximum(ratio.unsqueeze(-1).to(noise.dtype), lowest)) & answer
    return mask, answer & ~mask


def from_the_end(lengths: Tensor, width: int, jitter: float = 0.15, generator: torch.Generator | None = None) -> Tensor:
    """Noise [B, width] for :func:`views` that hides cells from the last one forward, roughly: what a text that is written from
    its beginning leaves open.

    Args:
        lengths: [B] cells of the text; those behind it are hidden first. jitter: share of the text by which cells change places.
    """
    place = torch.arange(width, device=lengths.device) / lengths.clamp_min(1).unsqueeze(1)
    shaken = place + (torch.rand(len(lengths), width, generator=generator, device=lengths.device) - 0.5) * jitter
    return (1 - shaken).clamp(0, 1)


def views(answer: Tensor, all_masked: float = 0.5, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
    """Two views of each row.

    With chance `all_masked` the first view hides the whole answer (the state decoding starts from) and the second a
    random part; else the two are a complementary pair with ratio uniform in 0.05..0.95.

    Args:
        answer: [B, L] bool. noise: [B, L] in 0..1, cells are hidden from the lowest up; None: uniform.

    Returns:
        [B, 2, L] bool masks.
    """
    batch = answer.shape[0]
    ratio = torch.rand(batch, generator=generator, device=answer.device) * 0.9 + 0.05
    first, second = complementary_pair(answer, ratio, generator, noise=noise)
    whole = torch.rand(batch, 1, generator=generator, device=answer.device) < all_masked
    return torch.stack((torch.where(whole, answer, first), torch.where(whole, first, second)), dim=1)


def hybrid_views(answer: Tensor, extent: Tensor, all_masked: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """:func:`views` and a third that asks for extents given their anchors (hybrid masking, arXiv:2603.26211).

    The first two are the linear phase. The third is deterministic: everything but the extent (the far corner of a box) is shown,
    the extent is hidden, which teaches p(x1, y1 | action, x0, y0, picture, words).

    Args:
        answer, extent: [B, L] bool; the extent lies inside the answer. Rows without one get an empty third view.

    Returns:
        [B, 3, L] bool masks.
    """
    return torch.cat((views(answer, all_masked, generator), (extent & answer).unsqueeze(1)), dim=1)
