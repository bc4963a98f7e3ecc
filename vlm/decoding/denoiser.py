"""Denoisers: a text backbone with its prompt, cached or not, and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.backbone.cache import PrefixCache
from vlm.backbone.inputs import Inputs, deepstack
from vlm.backbone.model import DiffusionBackbone
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser, Prediction
from vlm.errors import OptionError


class BackboneDenoiser:
    """A backbone behind prompts of B rows. Runs on the backbone's device; canvas and logits stay on the canvas's.

    Args:
        backbone: the model.
        prompt: [B, P] ids, or [B, P, D] embeddings with the media already in their places.
        valid: [B, P], False on padding, left or right.
        rule: 'prefix' encodes the prompt once under the prefix-LM rule (exact cache); 'full' runs prompt and canvas
            together with full attention, as the LLaDA and Dream references do; 'first' keeps of the first such run what it
            computed for the prompt, as Dimple's prefilling does (the prompt has then seen an empty canvas: approximate).
        positions: [B, P] or [B, P, 3] rotary positions; None counts the valid entries.
        start: [B] position of the first canvas cell; None goes on counting after the valid entries.
        deep: see :class:`vlm.backbone.inputs.Inputs`.
    """

    def __init__(
        self, backbone: DiffusionBackbone, prompt: Tensor, valid: Tensor | None = None, rule: str = "prefix", *,
        positions: Tensor | None = None, start: Tensor | None = None, deep: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        if rule not in ("prefix", "full", "first"):
            raise OptionError(f"unknown attention rule {rule!r}", remedy="use 'prefix', 'full' or 'first'")
        device = backbone.token_embed.weight.device
        self.backbone, self.device = backbone, device
        self.vocab_size = backbone.config.logit_size
        self.valid = (torch.ones(prompt.shape[:2], dtype=torch.bool) if valid is None else valid.bool()).to(device)
        self.positions = ((self.valid.long().cumsum(1) - 1).clamp_min(0) if positions is None else positions).to(device)
        self.start = (self.valid.sum(1) if start is None else start).to(device)
        self.deep = tuple(d.to(device) for d in deep)
        self.cache: PrefixCache | None = None
        self.keeps = rule == "first"
        with torch.no_grad():
            self.embeds = prompt.to(device) if prompt.is_floating_point() else backbone.embed(prompt.to(device))
            if rule == "prefix":
                self.cache = backbone.prefill(self.embeds, self.positions, self.valid, between=deepstack(self.deep))

    @classmethod
    def of(cls, backbone: DiffusionBackbone, inputs: Inputs, rule: str = "prefix") -> BackboneDenoiser:
        """Behind prompts with media."""
        return cls(backbone, inputs.embeds, inputs.valid, rule, positions=inputs.positions, start=inputs.start, deep=inputs.deep)

    @torch.no_grad()
    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits of the asked cells; one forward. Rows without an asked cell are not computed."""
        rows = cells.any(dim=1).nonzero(as_tuple=True)[0]
        if self.keeps and self.cache is None:
            rows = torch.arange(len(cells))
        ids, valid, asked = (t[rows].to(self.device) for t in (canvas.ids, canvas.valid, cells))
        rows = rows.to(self.device)
        ahead = torch.arange(ids.shape[1], device=self.device)
        positions = self.start[rows].unsqueeze(1) + ahead
        if self.positions.ndim == 3:
            positions = positions.unsqueeze(-1).expand(-1, -1, 3)
        hidden = self._hidden(self.backbone.embed(ids), positions, valid, rows)
        return Prediction(self.backbone.logits(hidden[asked]).float().to(canvas.ids.device))

    def _hidden(self, embeds: Tensor, positions: Tensor, valid: Tensor, rows: Tensor) -> Tensor:
        """[n, L, D] states that speak of the canvas cells themselves, for the given rows."""
        width = self.valid.shape[1]
        if self.keeps and self.cache is not None:
            return self._behind_first(embeds, positions, valid, rows)
        if self.cache is not None:
            cache = self.cache if len(rows) == len(self.valid) else self.cache.select(rows)
            hidden, prefix = self.backbone(embeds, positions, valid, cache=cache), cache.hidden
        else:
            whole = (
                torch.cat((self.embeds[rows], embeds), dim=1), torch.cat((self.positions[rows], positions), dim=1),
                torch.cat((self.valid[rows], valid), dim=1),
            )  # fmt: skip
            between = deepstack([d[rows] for d in self.deep])
            if self.keeps:
                self.cache = self.backbone.prefill(*whole, between=between)
                both = self.cache.hidden
                self.cache = self._first(self.cache, width)
            else:
                both = self.backbone(*whole, between=between)
            hidden, prefix = both[:, width:], both[:, :width]
        if not self.backbone.config.logit_shift:
            return hidden
        return torch.cat((prefix[torch.arange(len(rows), device=self.device), self._last(rows)].unsqueeze(1), hidden[:, :-1]), dim=1)

    def _last(self, rows: Tensor) -> Tensor:
        """[n] place of the last valid prompt entry."""
        return (self.valid[rows] * torch.arange(1, self.valid.shape[1] + 1, device=self.device)).argmax(dim=1)

    def _first(self, cache: PrefixCache, width: int) -> PrefixCache:
        """The prompt's part of a cache of everything, without the last entry where that speaks of the first cell."""
        valid = cache.valid[:, :width].clone()
        if self.backbone.config.logit_shift:
            rows = torch.arange(len(valid), device=self.device)
            valid[rows, self._last(rows)] = False
        return PrefixCache(
            [k[:, :, :width] for k in cache.keys], [v[:, :, :width] for v in cache.values], valid, cache.positions[:, :width], cache.hidden[:, :width]
        )

    def _behind_first(self, embeds: Tensor, positions: Tensor, valid: Tensor, rows: Tensor) -> Tensor:
        """States behind the prompt as the first run saw it; with shifted logits its last entry is computed anew."""
        assert self.cache is not None
        cache = self.cache if len(rows) == len(self.valid) else self.cache.select(rows)
        if not self.backbone.config.logit_shift:
            return self.backbone(embeds, positions, valid, cache=cache)
        last = self._last(rows)
        embeds = torch.cat((self.embeds[rows, last].unsqueeze(1), embeds), dim=1)
        positions = torch.cat((self.positions[rows, last].unsqueeze(1), positions), dim=1)
        valid = torch.cat((torch.ones_like(valid[:, :1]), valid), dim=1)
        between = deepstack([d[rows, last].unsqueeze(1) for d in self.deep])
        return self.backbone(embeds, positions, valid, cache=cache, between=between)[:, :-1]


class GuidedDenoiser:
    """Classifier-free guidance (LLaDA, arXiv:2502.09992): z = z_u + (scale + 1)(z_c - z_u).

    Args:
        conditional, unconditional: the same model behind the prompt, and behind the prompt with all its ids masked.
        scale: 0 means no guidance.
    """

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, scale: float) -> None:
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale
        self.vocab_size = conditional.vocab_size

    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Guided logits; counts as one forward."""
        yes, no = self.conditional(canvas, cells), self.unconditional(canvas, cells)
        return Prediction(no.logits + (self.scale + 1) * (yes.logits - no.logits), yes.source, yes.source_weight)
