"""Which answer cells to hide: LaViDa's complementary pairs and variants.

A *view* is one masked copy of an answer. The complementary pair (LaViDa, arXiv:2505.16839, section 3.2) masks a random
set in one view and exactly the rest in the other, so that every answer cell gives a gradient once per sample, and the
picture is encoded once for both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def complementary_pair(answer: Tensor, ratio: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Two masks that together cover the answer exactly once.

    Args:
        answer: [B, L] bool, cells that may be masked.
        ratio: [B] share of the answer that the first view masks.

    Returns:
        (mask, complement), each [B, L] bool. The first masks at least one cell of every row that has an answer.
    """
    noise = torch.rand(answer.shape, generator=generator, device=answer.device).masked_fill(~answer, 2.0)
    lowest = noise.min(dim=-1, keepdim=True).values
    mask = (noise <= torch.maximum(ratio.unsqueeze(-1).to(noise.dtype), lowest)) & answer
    return mask, answer & ~mask


def views(answer: Tensor, all_masked: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Two views of each row.

    With chance `all_masked` the first view hides the whole answer (the state decoding starts from) and the second a
    random part; else the two are a complementary pair with ratio uniform in 0.05..0.95.

    Args:
        answer: [B, L] bool.

    Returns:
        [B, 2, L] bool masks.
    """
    batch = answer.shape[0]
    ratio = torch.rand(batch, generator=generator, device=answer.device) * 0.9 + 0.05
    first, second = complementary_pair(answer, ratio, generator)
    whole = torch.rand(batch, 1, generator=generator, device=answer.device) < all_masked
    return torch.stack((torch.where(whole, answer, first), torch.where(whole, first, second)), dim=1)
