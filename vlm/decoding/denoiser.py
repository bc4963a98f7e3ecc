"""Denoisers: a text backbone with its prompt, cached or not, and classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.backbone.model import DiffusionBackbone
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser, Prediction
from vlm.errors import OptionError


class BackboneDenoiser:
    """A backbone behind prompts of B rows.

    Args:
        backbone: the model.
        prompt: [B, P] ids; valid: [B, P], False on padding (left or right).
        rule: 'prefix' encodes the prompt once under the prefix-LM rule (exact cache); 'full' runs prompt and canvas
            together with full attention, as the LLaDA and Dream references do.
    """

    def __init__(self, backbone: DiffusionBackbone, prompt: Tensor, valid: Tensor | None = None, rule: str = "prefix") -> None:
        if rule not in ("prefix", "full"):
            raise OptionError(f"unknown attention rule {rule!r}", remedy="use 'prefix' or 'full'")
        self.backbone = backbone
        self.vocab_size = backbone.config.vocab_size
        self.prompt = prompt
        self.valid = torch.ones_like(prompt, dtype=torch.bool) if valid is None else valid.bool()
        self.positions = (self.valid.long().cumsum(1) - 1).clamp_min(0)
        self.lengths = self.valid.sum(1)
        self.cache = None
        if rule == "prefix":
            with torch.no_grad():
                self.cache = backbone.prefill(backbone.embed(prompt), self.positions, self.valid)

    @torch.no_grad()
    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits of the asked cells; one forward."""
        positions = self.lengths.unsqueeze(1) + torch.arange(canvas.ids.shape[1])
        width = self.prompt.shape[1]
        if self.cache is not None:
            hidden = self.backbone(self.backbone.embed(canvas.ids), positions, canvas.valid, cache=self.cache)
            last = self.lengths - 1 if bool(self.valid[:, 0].all()) else torch.full_like(self.lengths, width - 1)
            before = self.cache.hidden[torch.arange(len(last)), last].unsqueeze(1)
        else:
            ids = torch.cat((self.prompt, canvas.ids), dim=1)
            both = self.backbone(
                self.backbone.embed(ids), torch.cat((self.positions, positions), dim=1), torch.cat((self.valid, canvas.valid), dim=1)
            )
            hidden, before = both[:, width:], both[:, width - 1 : width]
        if self.backbone.config.logit_shift:
            hidden = torch.cat((before, hidden[:, :-1]), dim=1)
        return Prediction(self.backbone.logits(hidden[cells]).float())


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
