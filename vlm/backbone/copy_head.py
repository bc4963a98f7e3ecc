"""Copy head: a canvas cell may point at an entry of the prefix and take over the token found there.

The attention over the prefix is a pointer network (arXiv:1506.03134); its token distribution is added to the output
logits with a gate, as in pointer-generators (arXiv:1704.04368) but in logit space, so that the language model can still
overrule a misread character. Supervising the attention with the true place (``vlm.training.losses``) is what makes a
small model look at the picture at all; the same attention says where a field was read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CopyHeadConfig:
    """Sizes of a :class:`CopyHead`: ``key_dim`` of queries and keys, ``boost`` the gate's first value in nats."""

    key_dim: int = 128
    boost: float = 6.0


@dataclass
class CopyMemory:
    """What can be pointed at: P prefix entries per row.

    Attributes:
        keys: [B, P, key_dim] normalised.
        valid: [B, P] entries that may be pointed at (visual ones).
        tokens: [B, P, V] probability of each token at each entry; all zero where nothing can be copied.
    """

    keys: Tensor
    valid: Tensor
    tokens: Tensor

    def select(self, rows: Tensor) -> CopyMemory:
        """The given rows, [n] long."""
        return CopyMemory(self.keys[rows], self.valid[rows], self.tokens[rows])

    def repeat_interleave(self, n: int) -> CopyMemory:
        """Each row `n` times."""
        return CopyMemory(*(t.repeat_interleave(n, dim=0) for t in (self.keys, self.valid, self.tokens)))


class CopyHead(nn.Module):
    """Pointer over prefix entries.

    Args:
        hidden: width of the backbone.
        config: sizes.
    """

    def __init__(self, hidden: int, config: CopyHeadConfig) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, config.key_dim, bias=False)
        self.key = nn.Linear(hidden, config.key_dim, bias=False)
        self.nowhere = nn.Parameter(torch.randn(config.key_dim) * 0.5)
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.gate = nn.Linear(hidden, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, config.boost)

    def memory(self, hidden: Tensor, valid: Tensor, tokens: Tensor) -> CopyMemory:
        """Keys of the prefix: `hidden` [B, P, D], `valid` [B, P], `tokens` [B, P, V]."""
        key = self.key(hidden)
        return CopyMemory(F.rms_norm(key, key.shape[-1:]), valid, tokens)

    def scores(self, hidden: Tensor, memory: CopyMemory) -> Tensor:
        """Pointer logits [B, L, P + 1] of canvas states [B, L, D]; the last column means 'copied from nowhere'."""
        query = self.query(hidden)
        query = F.rms_norm(query, query.shape[-1:]) * (self.gain * query.shape[-1] ** -0.5)
        nowhere = F.rms_norm(self.nowhere, self.nowhere.shape).to(query.dtype)
        scores = query @ memory.keys.to(query.dtype).transpose(-1, -2)
        scores = scores.float().masked_fill(~memory.valid.unsqueeze(-2), float("-inf"))
        return torch.cat((scores, (query @ nowhere).float().unsqueeze(-1)), dim=-1)

    def bonus(self, hidden: Tensor, attention: Tensor, memory: CopyMemory) -> Tensor:
        """What to add to the logits of cells: gate * (probability that the pointer copies the token) [B, L, V].

        Args:
            hidden: [B, L, D]. attention: [B, L, P + 1] softmax of :meth:`scores`.
        """
        copied = attention[..., :-1].to(memory.tokens.dtype) @ memory.tokens
        return copied.float() * F.softplus(self.gate(hidden).float())
