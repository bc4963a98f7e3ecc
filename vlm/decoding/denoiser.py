"""Denoisers: a text backbone with its prompt, cached or not, and classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.backbone.cache import PrefixCache
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
            together with full attention, as the LLaDA and Dream references do.
        positions: [B, P] or [B, P, 3] rotary positions; None counts the valid entries.
        start: [B] position of the first canvas cell; None goes on counting after the valid entries.
    """

    def __init__(
        self, backbone: DiffusionBackbone, prompt: Tensor, valid: Tensor | None = None, rule: str = "prefix", *,
        positions: Tensor | None = None, start: Tensor | None = None,
    ) -> None:  # fmt: skip
        if rule not in ("prefix", "full"):
            raise OptionError(f"unknown attention rule {rule!r}", remedy="use 'prefix' or 'full'")
        device = backbone.token_embed.weight.device
        self.backbone, self.device = backbone, device
        self.vocab_size = backbone.config.logit_size
        self.valid = (torch.ones(prompt.shape[:2], dtype=torch.bool) if valid is None else valid.bool()).to(device)
        self.positions = ((self.valid.long().cumsum(1) - 1).clamp_min(0) if positions is None else positions).to(device)
        self.start = (self.valid.sum(1) if start is None else start).to(device)
        self.cache: PrefixCache | None = None
        with torch.no_grad():
            self.embeds = prompt.to(device) if prompt.is_floating_point() else backbone.embed(prompt.to(device))
            if rule == "prefix":
                self.cache = backbone.prefill(self.embeds, self.positions, self.valid)

    @torch.no_grad()
    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits of the asked cells; one forward. Rows without an asked cell are not computed."""
        rows = cells.any(dim=1).nonzero(as_tuple=True)[0]
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
        if self.cache is not None:
            cache = self.cache if len(rows) == len(self.valid) else self.cache.select(rows)
            hidden, prefix = self.backbone(embeds, positions, valid, cache=cache), cache.hidden
        else:
            both = self.backbone(
                torch.cat((self.embeds[rows], embeds), dim=1), torch.cat((self.positions[rows], positions), dim=1),
                torch.cat((self.valid[rows], valid), dim=1),
            )  # fmt: skip
            hidden, prefix = both[:, width:], both[:, :width]
        if not self.backbone.config.logit_shift:
            return hidden
        last = (self.valid[rows] * torch.arange(1, width + 1, device=self.device)).argmax(dim=1)
        return torch.cat((prefix[torch.arange(len(rows), device=self.device), last].unsqueeze(1), hidden[:, :-1]), dim=1)


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
