"""Layouts of block-diffusion training: attention rules over noisy and clean copies, noise levels of blocks, end filling.

Two layouts are published: [noisy | clean] of the whole sequence (BD3-LM, arXiv:2503.09573; DiffusionVL, SDAR-VL), and
[prefix | clean | noisy], in which prompt and pictures stand once (BARD-VL, arXiv:2604.16514).
"""

from __future__ import annotations

import torch
from torch import Tensor


def doubled_rule(block: Tensor, sample: Tensor | None = None) -> Tensor:
    """[..., 2T, 2T] who may see whom in [noisy | clean].

    A noisy entry sees the noisy ones of its block and the clean ones of earlier blocks; a clean entry the clean ones up to its
    block. Nobody sees its own answer.

    Args:
        block: [..., T] block number of each entry. sample: [..., T] number of the packed sample, which sees only itself.
    """
    same, later = block.unsqueeze(-1) == block.unsqueeze(-2), block.unsqueeze(-1) > block.unsqueeze(-2)
    if sample is not None:
        own = sample.unsqueeze(-1) == sample.unsqueeze(-2)
        same, later = same & own, later & own
    return torch.cat((torch.cat((same, later), dim=-1), torch.cat((torch.zeros_like(same), same | later), dim=-1)), dim=-2)


def prefix_rule(prefix: int, response: int, block: int, *, reference_quirks: bool = False) -> Tensor:
    """[N, N] who may see whom in [prefix | clean response | noisy response], N = prefix + 2 * response.

    Blocks of the response begin behind the prefix. The clean part sees what a decoder's cache holds; with `reference_quirks` it also
    sees the noisy copies up to its block, as in BARD-VL's code, which decoding never has.
    """
    first = -(-prefix // block)
    answer = first + torch.arange(response) // block
    number = torch.cat((torch.arange(prefix) // block, answer, answer))
    place = torch.arange(len(number))
    noisy = place >= prefix + response
    same, later = number.unsqueeze(1) == number, number.unsqueeze(1) > number
    from_noisy = (~noisy & later) | (noisy & same)
    from_clean = (same | later) & (~noisy | reference_quirks)
    return torch.where(noisy.unsqueeze(1), from_noisy, from_clean)


def stratified_levels(uniform: Tensor, low: float = 1e-3, high: float = 1.0) -> Tensor:
    """[B, N] noise levels of blocks: one in each of B * N equal strata, in order.

    Args:
        uniform: [B, N] draws in 0..1. low, high: of the levels.

    In order the first rows always get the low levels (DiffusionVL); permute the result over the blocks (BARD-VL) for training.
    """
    strata = torch.arange(uniform.numel(), dtype=uniform.dtype).view_as(uniform)
    return low + (high - low) * ((uniform + strata) / uniform.numel() % 1)
