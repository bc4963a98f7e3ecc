"""Pocket: reader tower, adapter and a small backbone with a copy head, as one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
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
from vlm.backbone.packed import Packed, PackedPrefix


def default_backbone() -> BackboneConfig:
    """Sizes of the shipped model's backbone."""
    return BackboneConfig(
        vocab_size=416, hidden_size=256, num_layers=6, num_heads=4, num_kv_heads=4, intermediate_size=704, qk_norm=True,
        tie_embeddings=True, mask_token_id=1, pad_token_id=0, eos_token_id=3, bos_token_id=2, max_position_embeddings=4096,
        slot_positions=97, copy_head=CopyHeadConfig(),
    )  # fmt: skip


@dataclass(frozen=True)
class PocketConfig:
    """Everything needed to build a :class:`PocketModel`.

    Attributes:
        first_char: token of the blank; the token of character class c of the tower is ``first_char + c``.
    """

    reader: ReaderConfig = field(default_factory=ReaderConfig)
    backbone: BackboneConfig = field(default_factory=default_backbone)
    first_char: int = 272

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with ``model_type``."""
        return {"model_type": "pocket", "reader": self.reader.to_dict(), "backbone": asdict(self.backbone), "first_char": self.first_char}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PocketConfig:
        """Inverse of :meth:`to_dict`."""
        return cls(ReaderConfig.from_dict(data["reader"]), BackboneConfig.from_dict(data["backbone"]), data["first_char"])


@dataclass
class Prefix:
    """Prompts and pictures of B rows, encoded once.

    Attributes:
        cache: keys and values of P prefix entries.
        memory: what the copy head can point at, over the same P entries.
        lengths: [B] valid entries of each row; canvas positions start there.
    """

    cache: PrefixCache
    memory: CopyMemory
    lengths: Tensor

    def select(self, rows: Tensor) -> Prefix:
        """The given rows."""
        return Prefix(self.cache.select(rows), self.memory.select(rows), self.lengths[rows])


class PocketModel(nn.Module):
    """Tower -> adapter -> backbone."""

    def __init__(self, config: PocketConfig | None = None) -> None:
        super().__init__()
        self.config = config or PocketConfig()
        reader, backbone = self.config.reader, self.config.backbone
        self.tower = ReaderTower(reader)
        self.adapter = ReaderAdapter(backbone.hidden_size, reader.width, 1 + len(reader.things), 1 + len(reader.colors))
        self.backbone = DiffusionBackbone(backbone)

    def prefix(self, ids: Tensor, valid: Tensor, media: Tensor, visual: VisualBatch | None) -> Prefix:
        """Encode prompts.

        Args:
            ids: [B, P] prompt ids, anything at media cells; valid: [B, P], False on padding.
            media: [B, P] cells that stand for visual entries, row by row in the order of the pictures in `visual`.
            visual: the entries of all pictures of all rows, one picture a row; None without pictures.
        """
        backbone = self.backbone
        embeds = backbone.embed(ids)
        tokens = torch.zeros(*ids.shape, self.config.backbone.vocab_size, device=ids.device)
        if visual is not None:
            first = self.config.first_char
            table = backbone.embed(torch.arange(first, first + len(self.config.reader.alphabet) + 1, device=ids.device))
            seen = self.adapter(visual, table)
            embeds = embeds.clone()
            embeds[media] = seen[visual.valid].to(embeds.dtype)
            tokens[media] = self._copyable(visual)[visual.valid]
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        cache = backbone.prefill(embeds, positions, valid)
        head = backbone.copy_head
        assert head is not None
        return Prefix(cache, head.memory(cache.hidden, media & valid, tokens), valid.sum(1))

    def _copyable(self, visual: VisualBatch) -> Tensor:
        """[N, K, V] characters by their probabilities; a blank between words, segments and rows; nothing on things."""
        first = self.config.first_char
        tokens = torch.zeros(*visual.kind.shape, self.config.backbone.vocab_size, device=visual.kind.device)
        is_char = visual.kind == CHAR
        ids = (visual.classes + first) * is_char.unsqueeze(-1)
        tokens.scatter_add_(2, ids, visual.probs * is_char.unsqueeze(-1))
        tokens[..., first] += (~is_char & (visual.kind != THING)).float()
        return tokens

    def canvas(self, ids: Tensor, valid: Tensor, slot_index: Tensor, prefix: Prefix) -> Tensor:
        """Hidden states [B, L, D] of canvases `ids` [B, L] behind their prefixes."""
        length = ids.shape[1]
        positions = prefix.lengths.unsqueeze(1) + torch.arange(length, device=ids.device)
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


@dataclass
class PackedMemory:
    """Prompts of B rows, encoded once without padding (:mod:`vlm.backbone.packed`).

    Attributes:
        prefix: keys and values.
        memory: what the copy head can point at: the K visual entries of each row only.
        lengths: entries of each row; canvas positions start there.
    """

    prefix: PackedPrefix
    memory: CopyMemory
    lengths: list[int]


class PackedPocket:
    """The training-time forward of a :class:`PocketModel`: no padding, and only the asked cells reach the head.

    Args:
        model: the model to run; compile: see :class:`vlm.backbone.packed.Packed`.
    """

    def __init__(self, model: PocketModel, compile: bool = False) -> None:
        self.model = model
        self.packed = Packed(model.backbone, compile)

    def prefix(self, ids: Tensor, valid: Tensor, media: Tensor, visual: VisualBatch) -> PackedMemory:
        """Encode prompts; arguments as of :meth:`PocketModel.prefix`."""
        model = self.model
        first = model.config.first_char
        table = model.backbone.embed(torch.arange(first, first + len(model.config.reader.alphabet) + 1, device=ids.device))
        entries = VisualBatch(**{f.name: getattr(visual, f.name)[visual.valid] for f in fields(visual)})  # [T, ...]
        shown = media[valid]
        embeds = model.backbone.embed(ids[valid]).clone()  # [T, D]
        embeds[shown] = model.adapter(entries, table).to(embeds.dtype)
        positions = (valid.long().cumsum(1) - 1)[valid]
        lengths = valid.sum(1).tolist()
        prefix = self.packed.prefill(embeds, positions, lengths)
        hidden = prefix.hidden.new_zeros(*visual.valid.shape, prefix.hidden.shape[-1])
        hidden[visual.valid] = prefix.hidden[shown]
        head = model.backbone.copy_head
        assert head is not None
        return PackedMemory(prefix, head.memory(hidden, visual.valid, model._copyable(visual)), lengths)

    def cells(
        self, ids: Tensor, slot_index: Tensor, asked: Tensor, lengths: Sequence[int], row: Sequence[int], behind: PackedMemory
    ) -> tuple[Tensor, Tensor]:
        """Logits [R, V] and pointer scores [R, K + 1] of the asked cells.

        Args:
            ids, slot_index, asked: [T] canvases of the given lengths end to end; `asked` is a mask of R cells.
            row: prefix row of each canvas, never falling.
        """
        model = self.model
        slots = model.backbone.slot_embed
        embeds = model.backbone.embed(ids)
        if slots is not None:
            embeds = embeds + slots(slot_index.clamp_max(slots.num_embeddings - 1))
        positions = torch.cat([torch.arange(behind.lengths[r], behind.lengths[r] + n) for n, r in zip(lengths, row, strict=True)])
        counts = [int(part.sum()) for part in asked.cpu().split(list(lengths))]
        where = asked.nonzero()[:, 0]
        hidden = self.packed.forward(embeds, positions.to(ids.device), lengths, behind.prefix, row, where, counts)  # [R, D]
        head = model.backbone.copy_head
        assert head is not None
        per_row = [sum(c for c, r in zip(counts, row, strict=True) if r == wanted) for wanted in range(len(behind.lengths))]
        scores, bonus = [], []
        for r, states in enumerate(hidden.split(per_row)):
            if len(states):
                memory = behind.memory.select(torch.tensor([r], device=ids.device))
                scores.append(head.scores(states[None], memory)[0])
                bonus.append(head.bonus(states[None], torch.softmax(scores[-1], -1)[None], memory)[0])
        return model.backbone.logits(hidden).float() + torch.cat(bonus), torch.cat(scores)
