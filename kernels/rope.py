"""Rotary position embedding (arXiv:2104.09864), halves layout."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, width] in float32 for `positions` [B, T]."""
    frequency = theta ** -(torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angle = positions.unsqueeze(-1).float() * frequency  # [B,T,width/2]
    angle = torch.cat((angle, angle), dim=-1).unsqueeze(1)
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, table: tuple[Tensor, Tensor], fp32: bool) -> Tensor:
    """Rotate x [B, H, T, width] by the table; in float32 if `fp32`, else in the dtype of x."""
    cos, sin = table
    if not fp32:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
