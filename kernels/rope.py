"""Rotary position embedding (arXiv:2104.09864), halves layout."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(
    positions: Tensor, width: int, theta: float, sections: tuple[int, ...] | None = None, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, width] in float32.

    Args:
        positions: [B, T], or [B, T, 3] with a temporal, height and width position (arXiv:2409.12191).
        width: of a head. theta: base of the frequencies.
        sections: how many of the width / 2 frequencies each of the three positions turns.
        interleaved: frequencies take turns t, h, w, t, h, w, ... as long as h and w have some left, the rest is t.
    """
    frequency = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    if positions.ndim == 3 and sections is not None:
        axis = _axis_of_frequency(sections, interleaved).to(positions.device)
        angle = positions.float()[..., axis] * frequency  # [B,T,width/2]
    else:
        flat = positions[..., 0] if positions.ndim == 3 else positions
        angle = flat.unsqueeze(-1).float() * frequency
    angle = torch.cat((angle, angle), dim=-1).unsqueeze(1)
    return angle.cos(), angle.sin()


def _axis_of_frequency(sections: tuple[int, ...], interleaved: bool) -> Tensor:
    """[width / 2] 0, 1 or 2: which position turns each frequency."""
    if not interleaved:
        return torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    index = torch.arange(sum(sections))
    axis = index % 3
    return torch.where(index < 3 * torch.tensor(sections)[axis], axis, 0)


def apply_rope(x: Tensor, table: tuple[Tensor, Tensor], fp32: bool) -> Tensor:
    """Rotate x [B, H, T, width] by the table; in float32 if `fp32`, else in the dtype of x."""
    cos, sin = table
    if not fp32:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
