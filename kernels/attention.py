"""Softmax attention over grouped heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v.

    Args:
        q: [B, H, T, Dh]. k, v: [B, Hkv, S, Dh] with H a multiple of Hkv.
        mask: broadcastable to [B, 1, T, S] bool, True where attention is allowed; None allows all.

    Returns:
        [B, H, T, Dh]. Rows that may attend to nothing are undefined.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
