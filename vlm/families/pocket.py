"""Pocket: reader tower, adapter and a small backbone with a copy head, as one module."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vision.adapter import ReaderAdapter, VisualBatch
from vision.reader import ReaderConfig, ReaderTower
from vision.tokens import CHAR, THING
from vlm.backbone.cache import PrefixCache
from vlm.backbone.config import BackboneConfig
from vlm.backbone.copy_head import CopyHeadConfig, CopyMemory
from vlm.backbone.model import DiffusionBackbone

#: Token of character class c is FIRST_CHAR + c (blank, class 0 in the tokenizer's order, is FIRST_CHAR itself).
FIRST_CHAR = 272
BOS, USER, ASSISTANT, END = 2, 6, 7, 9


def default_backbone() -> BackboneConfig:
    """Sizes of the shipped model's backbone."""
    return BackboneConfig(
        vocab_size=416, hidden_size=256, num_layers=6, num_heads=8, num_kv_heads=8, intermediate_size=704, qk_norm=True,
        tie_embeddings=True, mask_token_id=1, pad_token_id=0, eos_token_id=3, bos_token_id=2, max_position_embeddings=4096,
        slot_positions=97, copy_head=CopyHeadConfig(),
    )  # fmt: skip


@dataclass(frozen=True)
class PocketConfig:
    """Everything needed to build a :class:`PocketModel`."""

    reader: ReaderConfig = field(default_factory=ReaderConfig)
    backbone: BackboneConfig = field(default_factory=default_backbone)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with ``model_type``."""
        return {"model_type": "pocket", "reader": self.reader.to_dict(), "backbone": asdict(self.backbone)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PocketConfig:
        """Inverse of :meth:`to_dict`."""
        return cls(ReaderConfig.from_dict(data["reader"]), BackboneConfig.from_dict(data["backbone"]))


@dataclass
class Prefix:
    """Prompt and pictures of B rows, encoded once.

    Attributes:
        cache: keys and values of P prefix entries.
        memory: what the copy head can point at, over the same P entries.
        lengths: [B] valid entries of each row; canvas positions start there.
        first: index of the first visual entry among the P (the same in all rows).
        visual: [B] number of visual entries.
    """

    cache: PrefixCache
    memory: CopyMemory
    lengths: Tensor
    first: int
    visual: Tensor

    def select(self, rows: Tensor) -> Prefix:
        """The given rows."""
        return Prefix(self.cache.select(rows), self.memory.select(rows), self.lengths[rows], self.first, self.visual[rows])


class PocketModel(nn.Module):
    """Tower -> adapter -> backbone. Row layout of the prefix: bos, user, visual entries, text, end, assistant."""

    def __init__(self, config: PocketConfig | None = None) -> None:
        super().__init__()
        self.config = config or PocketConfig()
        reader, backbone = self.config.reader, self.config.backbone
        self.tower = ReaderTower(reader)
        self.adapter = ReaderAdapter(backbone.hidden_size, reader.width, 1 + len(reader.things), 1 + len(reader.colors))
        self.backbone = DiffusionBackbone(backbone)

    def prefix(self, visual: VisualBatch, text: Tensor, text_valid: Tensor) -> Prefix:
        """Encode prompts.

        Args:
            visual: B pictures of K entries (K may be 0). text: [B, T] ids of the user's text; text_valid: [B, T].
        """
        backbone = self.backbone
        batch, dtype = text.shape[0], torch.long
        head = torch.tensor([BOS, USER], dtype=dtype).expand(batch, 2)
        tail = torch.tensor([END, ASSISTANT], dtype=dtype).expand(batch, 2)
        classes = len(self.config.reader.alphabet) + 1
        table = backbone.embed(torch.arange(FIRST_CHAR, FIRST_CHAR + classes))
        seen = self.adapter(visual, table)
        embeds = torch.cat((backbone.embed(head), seen, backbone.embed(torch.cat((text, tail), dim=1))), dim=1)
        yes = torch.ones(batch, 2, dtype=torch.bool)
        valid = torch.cat((yes, visual.valid, text_valid, yes), dim=1)
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        cache = backbone.prefill(embeds, positions, valid)
        memory = self._memory(cache, visual, valid)
        return Prefix(cache, memory, valid.sum(1), 2, visual.valid.sum(1))

    def _memory(self, cache: PrefixCache, visual: VisualBatch, valid: Tensor) -> CopyMemory:
        """Copyable tokens: characters by their probabilities, a blank between words, segments and rows."""
        batch, entries = valid.shape
        k = visual.kind.shape[1]
        tokens = torch.zeros(batch, entries, self.config.backbone.vocab_size)
        part = tokens[:, 2 : 2 + k]
        is_char = (visual.kind == CHAR) & visual.valid
        ids = (visual.classes + FIRST_CHAR) * is_char.unsqueeze(-1)
        part.scatter_add_(2, ids, visual.probs * is_char.unsqueeze(-1))
        part[..., FIRST_CHAR] += (~is_char & (visual.kind != THING) & visual.valid).float()
        pointable = torch.zeros_like(valid)
        pointable[:, 2 : 2 + k] = visual.valid
        head = self.backbone.copy_head
        assert head is not None
        return head.memory(cache.hidden, pointable, tokens)

    def canvas(self, ids: Tensor, valid: Tensor, slot_index: Tensor, prefix: Prefix) -> Tensor:
        """Hidden states [B, L, D] of canvases `ids` [B, L] behind their prefixes."""
        length = ids.shape[1]
        positions = prefix.lengths.unsqueeze(1) + torch.arange(length)
        return self.backbone(self.backbone.embed(ids), positions, valid, cache=prefix.cache, slot_index=slot_index)

    def cell_logits(self, hidden: Tensor, scores: Tensor, memory: CopyMemory, cells: Tensor) -> Tensor:
        """Logits [N, V] of the cells marked in `cells` [B, L], copy head included.

        Args:
            hidden: [B, L, D]. scores: [B, L, P + 1] of the copy head.
        """
        head = self.backbone.copy_head
        assert head is not None
        attention = torch.softmax(scores, dim=-1)
        bonus = head.bonus(hidden, attention, memory)
        return self.backbone.logits(hidden[cells]).float() + bonus[cells]
