"""DiffusionGemma behind prompts: a causal encoder of prompt and finished text, and a decoder of canvases.

Both halves share their weights. The encoder writes keys and values, the decoder reads them and never writes, so the prefix is
exact.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Prediction


@dataclass
class _Prefix:
    """What the encoder made of the entries so far, for n of the batch's rows.

    Attributes:
        cache: transformers' keys and values. valid: [n, T] bool, False on padding. rows: their numbers in the batch.
    """

    cache: Any
    valid: Tensor
    rows: list[int]

    def select(self, rows: Sequence[int]) -> _Prefix:
        """The prefix of some of its rows; itself for all of them."""
        if list(rows) == self.rows:
            return self
        index = torch.tensor([self.rows.index(row) for row in rows], device=self.valid.device)
        cache = copy.copy(self.cache)  # the layers below replace their tensors and do not write into them
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(index)
        return _Prefix(cache, self.valid[index], list(rows))


class GemmaDenoiser:
    """The model behind B prompts, a :class:`vlm.decoding.uniform.NoiseDenoiser`. Runs on the module's device.

    Prompts are padded on the left, so that what a sliding window keeps of a row is what it would keep alone; positions count
    the valid entries. Picture entries see each other whatever their order (as ``generate`` has it; the encoder's plain
    ``forward`` would run them causally).

    Args:
        module: of :func:`vlm.backbone.diffusion_gemma.open_module`.
        embeds: [B, P, D] embeddings of the prompts with the pictures in their places. valid: [B, P], False on padding.
        media: [B, P] True on picture entries; neighbouring pictures must have an entry between them.

    Attributes:
        encoded: [n, T, D] last hidden states of the entries encoded last.
    """

    def __init__(self, module: Any, embeds: Tensor, valid: Tensor, media: Tensor) -> None:
        self.module, self.encoder = module, module.model.encoder
        self.vocab_size: int = module.config.text_config.vocab_size
        self.canvas_length: int = module.config.canvas_length
        # 5.24 renamed the argument; the old name still works there, and warns
        self._name = "cache" if "cache" in inspect.signature(type(module).forward).parameters else "past_key_values"
        self._prefix = self._chosen = self._encode(None, embeds, valid.to(embeds.device), list(range(len(embeds))), media.to(embeds.device))

    @torch.no_grad()
    def step(self, ids: Tensor, guess: Tensor | None, rows: Tensor) -> Tensor:
        """Logits [n, C, V] float32 of canvases [n, C]; see :class:`vlm.decoding.uniform.NoiseDenoiser`."""
        if self._chosen.rows != rows.tolist():
            self._chosen = self._prefix.select(rows.tolist())
        prefix = self._chosen
        ids = ids.to(prefix.valid.device)
        if guess is not None:
            guess = guess.to(self.encoder.get_input_embeddings().weight.dtype)
        out = self.module(
            decoder_input_ids=ids, self_conditioning_logits=guess, decoder_position_ids=self._positions(prefix.valid, ids.shape[1]),
            decoder_attention_mask=torch.cat((prefix.valid, torch.ones_like(ids, dtype=torch.bool)), dim=1), **{self._name: prefix.cache},
        )  # fmt: skip
        return out.logits.float()

    @torch.no_grad()
    def advance(self, ids: Tensor, rows: Tensor) -> None:
        """Encode finished canvases [n, C] of the given rows behind what is there; other rows are dropped."""
        prefix = self._prefix.select(rows.tolist())
        ids = ids.to(prefix.valid.device)
        self._prefix = self._chosen = self._encode(prefix, self.encoder.get_input_embeddings()(ids), torch.ones_like(ids, dtype=torch.bool), prefix.rows, None)

    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits of the asked cells of a canvas as it stands, at the place of the first one, without self-conditioning; one forward."""
        rows = cells.any(dim=1).nonzero(as_tuple=True)[0]
        return Prediction(self.step(canvas.ids[rows], None, rows)[cells[rows].to(self._prefix.valid.device)].to(canvas.ids.device))

    @torch.no_grad()
    def _encode(self, prefix: _Prefix | None, embeds: Tensor, valid: Tensor, rows: list[int], media: Tensor | None) -> _Prefix:
        """Run the encoder over new entries [n, T, D]; the cache of `prefix` grows."""
        if prefix is None:
            from transformers import DynamicCache

            cache, before = DynamicCache(config=self.module.config.get_text_config(decoder=True)), valid[:, :0]
        else:
            cache, before = prefix.cache, prefix.valid
        positions = self._positions(before, valid.shape[1], valid)
        both = torch.cat((before, valid), dim=1)
        masks = self.masks(cache, embeds, both, positions, media)
        out = self.encoder(inputs_embeds=embeds, attention_mask=masks, position_ids=positions, **{self._name: cache})
        self.encoded: Tensor = out.last_hidden_state  # [n, T, D]
        return _Prefix(cache, both, rows)

    def masks(self, cache: Any, embeds: Tensor, valid: Tensor, positions: Tensor, media: Tensor | None) -> dict[str, Any]:
        """transformers' attention masks by kind of layer, pictures seeing themselves."""
        return self.encoder.create_masks_for_generate(
            config=self.module.config, inputs_embeds=embeds, attention_mask=valid, position_ids=positions,
            mm_token_type_ids=None if media is None else media.long(), **{self._name: cache},
        )  # fmt: skip

    @staticmethod
    def _positions(before: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
        """[n, count] positions of entries behind `before` [n, T]: the number of valid entries ahead of each."""
        new = torch.ones(len(before), count, dtype=torch.long, device=before.device) if valid is None else valid.long()
        return before.sum(dim=1, keepdim=True) + (new.cumsum(dim=1) - 1).clamp_min(0)
