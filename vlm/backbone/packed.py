"""The backbone over rows of unequal length laid end to end: no cell of padding is ever computed.

Training batches hold canvases of 30 to 300 cells behind pages of 100 to 600 entries; padded to rectangles, half of the
arithmetic is spent on filling. Here everything but attention runs on one flat axis of real cells, and attention runs
row by row (:mod:`kernels.ragged_attention`). Same weights and, up to rounding, same numbers as
:class:`vlm.backbone.model.DiffusionBackbone`'s padded calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from kernels.ragged_attention import Span, ragged_attention
from kernels.rope import rope_table
from vlm.backbone.model import Between, Block, DiffusionBackbone


@dataclass
class PackedPrefix:
    """Prompts of several rows, encoded once, end to end.

    Attributes:
        keys, values: one [Hkv, T, Dh] per layer, keys rotated already.
        hidden: [T, D] after the final norm.
        bounds: (first, end) entry of each row.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor
    bounds: list[tuple[int, int]]


def bounds_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(first, end) of rows of these lengths laid end to end."""
    return list(pairwise(accumulate(lengths, initial=0)))


class Packed:
    """Runs a backbone on packed rows.

    Args:
        backbone: any configuration.
        compile: fuse the element-wise work around the matrix products (a minute or two at the first steps; worth it
            on CPU from a few hundred steps on).
    """

    def __init__(self, backbone: DiffusionBackbone, compile: bool = False) -> None:
        self.backbone = backbone
        wrap: Callable[..., Any] = (lambda f: torch.compile(f, dynamic=True)) if compile else (lambda f: f)
        self._before, self._after = wrap(_before), wrap(_after)

    def prefill(self, embeds: Tensor, positions: Tensor, lengths: Sequence[int]) -> PackedPrefix:
        """Encode prompts: embeds [T, D] and positions [T] of rows of the given lengths."""
        bounds = bounds_of(lengths)
        hidden, keys, values = self._run(embeds, positions, [(b, b, (0, 0)) for b in bounds], None, None)
        return PackedPrefix(keys, values, hidden, bounds)

    def forward(
        self, embeds: Tensor, positions: Tensor, lengths: Sequence[int], prefix: PackedPrefix, row: Sequence[int],
        asked: Tensor | None = None, counts: Sequence[int] | None = None, between: Between | None = None,
    ) -> Tensor:  # fmt: skip
        """Final hidden states of canvases behind their prefixes.

        Args:
            embeds: [T, D]. positions: [T]. lengths: cells of each canvas. row: prefix row of each canvas.
            asked: [R] cells, rising, whose states are wanted; the last block computes only these. None: all.
            counts: how many of the asked cells lie in each canvas.
            between: see :meth:`DiffusionBackbone.forward`; the states are [T, D] here.

        Returns:
            [R, D] (or [T, D]).
        """
        bounds = bounds_of(lengths)
        spans = [(b, b, prefix.bounds[r]) for b, r in zip(bounds, row, strict=True)]
        last = None
        if asked is not None:
            assert counts is not None
            last = [(q, own, old) for q, (_, own, old) in zip(bounds_of(counts), spans, strict=True)]
        return self._run(embeds, positions, spans, prefix, None if asked is None or last is None else (asked, last), between)[0]

    def _run(
        self, x: Tensor, positions: Tensor, spans: list[Span], prefix: PackedPrefix | None, ending: tuple[Tensor, list[Span]] | None,
        between: Between | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        config = self.backbone.config
        groups = config.num_heads // config.num_kv_heads
        rope = rope_table(positions[None], config.width_per_head, config.rope_theta, config.mrope_sections, config.mrope_interleaved)
        keys, values = [], []
        for i, block in enumerate(self.backbone.blocks):
            rows = None
            if ending is not None and i == config.num_layers - 1:
                rows, spans = ending
            q, k, v = self._before(block, x, rope, rows)
            keys.append(k)
            values.append(v)
            past = None if prefix is None else (prefix.keys[i], prefix.values[i])
            if groups > 1:
                k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
                past = past and (past[0].repeat_interleave(groups, 0), past[1].repeat_interleave(groups, 0))
            mixed = ragged_attention(q, k, v, [s for s in spans if s[0][0] < s[0][1]], past)
            x = self._after(block, x if rows is None else x[rows], mixed)
            if between is not None:
                x = between(i + 1, x)
        return self.backbone.norm(x), keys, values


def _before(block: Block, x: Tensor, rope: tuple[Tensor, Tensor], rows: Tensor | None) -> tuple[Tensor, ...]:
    """Queries [H, R, Dh], keys and values [Hkv, T, Dh] of the cells x [T, D]."""
    return tuple(t[0].contiguous() for t in block.attention.project(block.attention_norm(x[None]), rope, rows))


def _after(block: Block, x: Tensor, mixed: Tensor) -> Tensor:
    """The block's output [T, D] from its input and the mixed values [H, T, Dh]."""
    return block.feed_forward(x + block.attention.out(mixed.transpose(0, 1).flatten(1)))
