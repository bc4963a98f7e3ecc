"""The diffusion language backbone: a bidirectional transformer over prefix and canvas."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels.attention import attention
from kernels.linear import Linear, linear
from kernels.rms_norm import rms_norm
from kernels.rope import apply_rope, rope_table
from kernels.swiglu import swiglu
from vlm.backbone.cache import PrefixCache
from vlm.backbone.config import BackboneConfig
from vlm.backbone.copy_head import CopyHead

#: (number of blocks done, states) -> states.
Between = Callable[[int, Tensor], Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; queries, keys and values come from one matrix."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width_per_head
        self.sizes = (config.num_heads * width, config.num_kv_heads * width, config.num_kv_heads * width)
        self.qkv = Linear(config.hidden_size, sum(self.sizes), bias=config.qkv_bias)
        self.out = Linear(self.sizes[0], config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(width, config.rms_norm_eps)
            self.k_norm = RMSNorm(width, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (output [B,T,D], keys, values [B,Hkv,T,Dh] of this call's cells)."""
        q, k, v = self.project(x, rope)
        all_k, all_v = (k, v) if past is None else (torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2))
        mixed = attention(q, all_k, all_v, mask)
        return self.out(mixed.transpose(1, 2).flatten(-2)), k, v

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor], rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B,H,T,Dh] and keys, and values, [B,Hkv,T,Dh] of the cells `x` [B,T,D].

        Args:
            rows: [R] cells that ask (the others are only looked at): queries are [B,H,R,Dh].
        """
        width = self.config.width_per_head
        asking = rope
        if rows is None:
            parts = torch.split(self.qkv(x), list(self.sizes), dim=-1)
        else:
            first, weight, bias = self.sizes[0], self.qkv.weight, self.qkv.bias
            asking = (rope[0][:, :, rows], rope[1][:, :, rows])
            rest = linear(x, weight[first:], None if bias is None else bias[first:])
            parts = (linear(x[:, rows], weight[:first], None if bias is None else bias[:first]), *torch.split(rest, list(self.sizes[1:]), dim=-1))
        q, k, v = (t.unflatten(-1, (-1, width)).transpose(1, 2) for t in parts)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, asking, self.config.rope_fp32), apply_rope(k, rope, self.config.rope_fp32)
        return q.to(v.dtype), k.to(v.dtype), v


class Block(nn.Module):
    """Pre-norm attention and SwiGLU feed-forward (arXiv:2002.05202), each around a residual."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, k, v = self.attention(self.attention_norm(x), rope, mask, past)
        return self.feed_forward(x + mixed), k, v

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half: [B, T, D] -> [B, T, D]."""
        return x + self.down(swiglu(self.gate_up(self.mlp_norm(x))))


class DiffusionBackbone(nn.Module):
    """Masked-diffusion language model without a notion of time (LLaDA, arXiv:2502.09992; Dream, arXiv:2508.15487).

    Args:
        config: sizes and switches.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.hidden_size, config.logit_size, bias=False)
        self.slot_embed = nn.Embedding(config.slot_positions, config.hidden_size) if config.slot_positions else None
        self.copy_head = CopyHead(config.hidden_size, config.copy_head) if config.copy_head else None
        self.apply(self._init)
        residual = (2 * config.num_layers) ** -0.5
        for name, matrix in self.blocks.named_parameters():
            if name.endswith(("attention.out.weight", "down.weight")):
                matrix.data.mul_(residual)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear) and module.out_features > 1:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [B, T, D] of `ids` [B, T]."""
        return self.token_embed(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., D]."""
        return linear(hidden, self.token_embed.weight) if self.head is None else self.head(hidden)

    def prefill(
        self, embeds: Tensor, positions: Tensor, valid: Tensor, rule: Tensor | None = None, between: Between | None = None
    ) -> PrefixCache:
        """Encode prompt and media once.

        Args:
            embeds: [B, P, D]. positions: [B, P] rotary positions, or [B, P, 3] (see ``mrope_sections``).
            valid: [B, P], False on padding.
            rule: [B or 1, P, P] bool, which entry (row) may see which (column); None lets all see all.
            between: see :meth:`forward`.
        """
        hidden, keys, values = self._run(embeds, positions, _mask(valid, rule), None, between)
        return PrefixCache(keys, values, valid, positions, hidden)

    def extend(
        self, cache: PrefixCache, embeds: Tensor, positions: Tensor, valid: Tensor, rule: Tensor | None = None, between: Between | None = None
    ) -> PrefixCache:
        """A new cache with T further entries behind the P present ones (the commit pass of block diffusion).

        Args:
            embeds: [B, T, D]. positions: [B, T] or [B, T, 3]. valid: [B, T].
            rule: [B or 1, T, P + T] bool; None lets the new entries see everything. between: see :meth:`forward`.
        """
        both = torch.cat((cache.valid, valid), dim=1)
        hidden, keys, values = self._run(embeds, positions, _mask(both, rule), cache, between)
        return PrefixCache(
            [torch.cat(pair, dim=2) for pair in zip(cache.keys, keys, strict=True)],
            [torch.cat(pair, dim=2) for pair in zip(cache.values, values, strict=True)],
            both, torch.cat((cache.positions, positions), dim=1), torch.cat((cache.hidden, hidden), dim=1),
        )  # fmt: skip

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        valid: Tensor,
        cache: PrefixCache | None = None,
        prefix_lengths: Tensor | None = None,
        slot_index: Tensor | None = None,
        rule: Tensor | None = None,
        between: Between | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D].

        Args:
            embeds: [B, T, D]. positions: [B, T], or [B, T, 3]. valid: [B, T], False on padding.
            cache: prefix whose P entries every cell attends to, besides each other.
            prefix_lengths: [B], without a cache: the first entries of each row, which attend only among themselves
                (the prefix-LM rule in one pass). Neither: everything attends to everything.
            slot_index: [B, T] 1 + place in its slot, 0 outside slots.
            rule: [B or 1, T, P + T] bool, any other attention rule, e.g. block-causal.
            between: called with the number of blocks done and the states after each; returns the states to go on with.
        """
        if slot_index is not None and self.slot_embed is not None:
            embeds = embeds + self.slot_embed(slot_index.clamp_max(self.config.slot_positions - 1))
        if cache is not None:
            return self._run(embeds, positions, _mask(torch.cat((cache.valid, valid), dim=1), rule), cache, between)[0]
        if prefix_lengths is not None:
            in_prefix = torch.arange(embeds.shape[1], device=embeds.device) < prefix_lengths.unsqueeze(1)  # [B,T]
            prefix_rule = ~(in_prefix.unsqueeze(2) & ~in_prefix.unsqueeze(1))
            rule = prefix_rule if rule is None else rule & prefix_rule
        return self._run(embeds, positions, _mask(valid, rule), None, between)[0]

    def _run(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: PrefixCache | None, between: Between | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        config = self.config
        rope = rope_table(positions, config.width_per_head, config.rope_theta, config.mrope_sections, config.mrope_interleaved)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            past = None if cache is None else (cache.keys[i], cache.values[i])
            x, k, v = block(x, rope, mask, past)
            keys.append(k)
            values.append(v)
            if between is not None:
                x = between(i + 1, x)
        return self.norm(x), keys, values


def _mask(keys: Tensor, rule: Tensor | None) -> Tensor | None:
    """[B, 1, T or 1, S] of key validity [B, S] and a rule; None when everything may see everything.

    Rows of padding see the same keys as others; their output is never read.
    """
    valid = None if bool(keys.all()) else keys[:, None, None, :]
    if rule is None:
        return valid
    return rule.unsqueeze(1) if valid is None else rule.unsqueeze(1) & valid
