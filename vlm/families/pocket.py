"""Pocket: reader tower, adapter and a small backbone with a copy head, as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vision.adapter import ReaderAdapter, VisualBatch
from vision.mentions import Mentions
from vision.reader import ReaderConfig, ReaderTower
from vision.tokens import BLANK, CHAR, GAP, ROW_END, THING
from vision.words import ROLES, Match, WordEmbedding, WordMatch
from vlm.backbone.cache import PrefixCache
from vlm.backbone.config import BackboneConfig
from vlm.backbone.copy_head import Chain, CopyHead, CopyHeadConfig, CopyMemory, Pointing
from vlm.backbone.model import DiffusionBackbone
from vlm.backbone.packed import Packed, PackedPrefix
from vlm.backbone.slots import KEY_WORDS, KINDS, NUMBERS, SlotEmbedding, SlotTable
from vlm.errors import ConfigError

#: Characters a number is written with, besides what the schema's automaton leaves out anyway.
NUMERIC = "0123456789.-"
_NUMBERS = torch.tensor([KINDS.index(kind) for kind in NUMBERS])


def default_backbone() -> BackboneConfig:
    """Sizes of the shipped model's backbone."""
    return BackboneConfig(
        vocab_size=416, hidden_size=256, num_layers=5, num_heads=4, num_kv_heads=4, intermediate_size=704, qk_norm=True,
        tie_embeddings=True, mask_token_id=1, pad_token_id=0, eos_token_id=3, bos_token_id=2, max_position_embeddings=4096,
        slot_positions=97, copy_head=CopyHeadConfig(),
    )  # fmt: skip


@dataclass(frozen=True)
class PocketConfig:
    """Everything needed to build a :class:`PocketModel`.

    Attributes:
        first_char: token of the blank; the token of character class c of the tower is ``first_char + c``.
        null_bias: added to the logit of the null token; chosen on drawn documents so that absent fields are not filled.
    """

    reader: ReaderConfig = field(default_factory=ReaderConfig)
    backbone: BackboneConfig = field(default_factory=default_backbone)
    first_char: int = 272
    null_bias: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with ``model_type``."""
        return {
            "model_type": "pocket", "reader": self.reader.to_dict(), "backbone": asdict(self.backbone), "first_char": self.first_char,
            "null_bias": self.null_bias,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PocketConfig:
        """Inverse of :meth:`to_dict`."""
        return cls(ReaderConfig.from_dict(data["reader"]), BackboneConfig.from_dict(data["backbone"]), data["first_char"], float(data.get("null_bias", 0.0)))


@dataclass
class Slots:
    """Slots of a batch of canvases, see :class:`vlm.backbone.slots.SlotTable`.

    Attributes:
        index: [B, L] 1 + place of a cell in its slot, 0 outside slots. slot: [B, L]; keys, kind, item, previous: of the slots.
    """

    index: Tensor
    slot: Tensor
    keys: Tensor
    kind: Tensor
    item: Tensor
    previous: Tensor

    @classmethod
    def of(cls, index: Tensor, table: SlotTable) -> Slots:
        """From the places in slots and the table of the same canvases."""
        return cls(index, *(torch.from_numpy(a).to(index.device) for a in (table.slot, table.keys, table.kind, table.item, table.previous)))

    def at(self, cells: Any) -> Slots:
        """The given cells or canvases (any index of [B, L])."""
        return replace(self, index=self.index[cells], slot=self.slot[cells])


@dataclass
class Words:
    """Words of prompts: `rows` [1 + W, FEATURES] of the word table, `word` [B, P] of each token, 0 for none."""

    rows: Tensor
    word: Tensor


_HOLDERS = ("roles", "lead", "left", "above", "ordinal")


@dataclass
class Labels:
    """Words of the pages behind prompts, for :class:`vision.words.WordMatch`.

    Attributes:
        words: [W, D]. holders: by name, roles [H, ROLES], lead, left, above and ordinal [H], see :class:`vision.words.Lexicon`.
        starts: [B, P] holder whose first entry this is, 0 for none.
        over: [B, P] first entry of the word above the one that starts here, -1 for none (see ``Lexicon.above``).
        spelled: where the keys of all slots are spelled there, if that is known already.
    """

    words: Tensor
    holders: Mapping[str, Tensor]
    starts: Tensor
    over: Tensor
    spelled: Match | None = None

    @classmethod
    def of(cls, words: Tensor, visual: VisualBatch, holder: Tensor) -> Labels:
        """From the lexicon of `visual`, its word vectors and the holder [B, P] of each entry."""
        starts = holder.masked_fill(holder == torch.nn.functional.pad(holder[:, :-1], (1, 0)), 0)
        row, entry = starts.nonzero(as_tuple=True)
        first = torch.full_like(visual.above, -1)
        first[starts[row, entry]] = entry
        over = first[visual.above[starts]].masked_fill(starts == 0, -1)
        return cls(words, {name: getattr(visual, name) for name in _HOLDERS}, starts, over)

    @classmethod
    def none(cls, shape: torch.Size, words: Tensor) -> Labels:
        """Of prompts [B, P] without pictures; `words` [1, D] is 'no word'."""
        nothing = torch.zeros(1, dtype=torch.long, device=words.device)
        starts = torch.zeros(shape, dtype=torch.long, device=words.device)
        holders = {name: nothing.expand(1, ROLES) if name == "roles" else nothing for name in _HOLDERS}
        return cls(words, holders, starts, starts - 1)

    def select(self, rows: Tensor) -> Labels:
        """The given rows."""
        return replace(self, starts=self.starts[rows], over=self.over[rows])


@dataclass
class Prefix:
    """Prompts and pictures of B rows, encoded once.

    Attributes:
        cache: keys and values of P prefix entries.
        memory: what the copy head can point at, over the same P entries; labels: the words there.
        lengths: [B] valid entries of each row; canvas positions start there.
    """

    cache: PrefixCache
    memory: CopyMemory
    labels: Labels
    lengths: Tensor

    def select(self, rows: Tensor) -> Prefix:
        """The given rows."""
        return Prefix(self.cache.select(rows), self.memory.select(rows), self.labels.select(rows), self.lengths[rows])


class PocketModel(nn.Module):
    """Tower -> adapter -> backbone, with word features beside the characters (:mod:`vision.words`)."""

    def __init__(self, config: PocketConfig | None = None) -> None:
        super().__init__()
        self.config = config or PocketConfig()
        reader, backbone = self.config.reader, self.config.backbone
        if backbone.copy_head is None:
            raise ConfigError("pocket needs a copy head", remedy="give copy_head in the backbone's config")
        width = backbone.hidden_size
        self.tower = ReaderTower(reader)
        self.words = WordEmbedding(width)
        self.adapter = ReaderAdapter(width, reader.width, 1 + len(reader.things), 1 + len(reader.colors))
        self.slots = SlotEmbedding(width)
        self.match = WordMatch(KEY_WORDS)
        self.prompt_words = nn.Linear(width, width, bias=False)
        self.mentions = Mentions(width)
        self.backbone = DiffusionBackbone(backbone)

    @property
    def head(self) -> CopyHead:
        """The copy head."""
        assert self.backbone.copy_head is not None
        return self.backbone.copy_head

    def embed_prompt(self, ids: Tensor, words: Words, visual: VisualBatch | None, media: Tensor, row: Tensor) -> Tensor:
        """Embeddings [..., D] of prompt tokens ids [...] with the entries of `visual`, packed, at the cells `media` [...];
        `row` [...] is the prompt that each is of."""
        backbone, first = self.backbone, self.config.first_char
        vectors = self.words(words.rows)
        told = self.prompt_words(vectors)
        if visual is None:
            return backbone.embed(ids) + told[words.word]
        table = backbone.embed(torch.arange(first, first + len(self.config.reader.alphabet) + 1, device=ids.device))
        pages = self.words(visual.rows)
        seen = self.adapter(visual, table, pages)
        prompt_row, holder_row = torch.full_like(words.rows[:, 0], -1), torch.full_like(visual.lead, -1)
        prompt_row[words.word], holder_row[visual.holder] = row, row[media]
        prompt_row[0] = holder_row[0] = -1
        known, mentioned = self.mentions(vectors, prompt_row, pages, visual.roles, visual.lead, holder_row)
        embeds = backbone.embed(ids) + (told + known)[words.word]
        seen = seen + mentioned[visual.holder]
        return embeds.masked_scatter(media.unsqueeze(-1), seen.to(embeds.dtype))

    def prefix(self, ids: Tensor, valid: Tensor, media: Tensor, words: Words, visual: VisualBatch | None) -> Prefix:
        """Encode prompts.

        Args:
            ids: [B, P] prompt ids, anything at media cells; valid: [B, P], False on padding.
            media: [B, P] cells that stand for visual entries, row by row in the order of the pictures in `visual`.
            words: of the prompts' text.
            visual: the entries of all pictures of all rows, one picture a row; None without pictures.
        """
        packed = visual.packed() if visual is not None else None
        embeds = self.embed_prompt(ids, words, packed, media, torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids))
        tokens = torch.zeros(*ids.shape, self.config.backbone.vocab_size, device=ids.device)
        kind, holder = torch.full_like(ids, THING), torch.zeros_like(ids)
        labels = Labels.none(ids.shape, embeds.new_zeros(1, embeds.shape[-1]))
        if packed is not None:
            tokens[media], kind[media], holder[media] = self.copyable(packed), packed.kind, packed.holder
            labels = Labels.of(self.words(packed.rows), packed, holder)
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        cache = self.backbone.prefill(embeds, positions, valid)
        memory = self.head.memory(cache.hidden, media & valid, tokens, self.numeric(tokens), breaks_before(kind))
        return Prefix(cache, memory, labels, valid.sum(1))

    def copyable(self, visual: VisualBatch) -> Tensor:
        """[..., V] characters by their probabilities; a blank between words, segments and rows; nothing on things."""
        first = self.config.first_char
        tokens = torch.zeros(*visual.kind.shape, self.config.backbone.vocab_size, device=visual.kind.device)
        is_char = visual.kind == CHAR
        ids = (visual.classes + first) * is_char.unsqueeze(-1)
        tokens.scatter_add_(-1, ids, visual.probs * is_char.unsqueeze(-1))
        tokens[..., first] += (~is_char & (visual.kind != THING)).float()
        return tokens

    def numeric(self, tokens: Tensor) -> Tensor:
        """[B, P] entries whose likeliest token [B, P, V] is a digit, a point or a minus sign."""
        first, alphabet = self.config.first_char, self.config.reader.alphabet
        ids = torch.tensor([first + 1 + alphabet.index(c) for c in NUMERIC if c in alphabet], device=tokens.device)
        return torch.isin(tokens.argmax(-1), ids)

    def embed_canvas(self, ids: Tensor, slots: Slots) -> Tensor:
        """Embeddings [..., D] of canvas cells ids [...]: token, and what a cell knows of its slot."""
        about = self.slots(self.words(slots.keys), slots.kind, slots.item)
        return self.backbone.embed(ids) + about[slots.slot]

    def canvas(self, ids: Tensor, valid: Tensor, slots: Slots, prefix: Prefix) -> tuple[Tensor, Pointing]:
        """Hidden states [B, L, D] of canvases `ids` [B, L] behind their prefixes, and where their cells point ([B, L, ...];
        ``start`` at the first cells of slots)."""
        batch, length = ids.shape
        positions = prefix.lengths.unsqueeze(1) + torch.arange(length, device=ids.device)
        entries = prefix.memory.keys.shape[1]
        scores = torch.full((batch, length, entries + 1), float("-inf"), device=ids.device)
        scores[..., -1] = 0.0
        found = Pointing(scores, torch.zeros(batch, length, self.config.backbone.vocab_size, device=ids.device), torch.zeros_like(scores))

        def point(done: int, states: Tensor) -> Tensor:
            if done != self.head_layer:
                return states
            states = states.clone()
            for row in range(batch):
                cells = ((slots.index[row] > 0) & valid[row]).nonzero(as_tuple=True)[0]
                if len(cells):
                    pointing, more = self.point(states[row, cells], slots.at((row, cells)), prefix.memory, prefix.labels, row)
                    found.scores[row, cells], found.copied[row, cells] = pointing.scores, pointing.copied
                    found.start[row, cells[slots.index[row, cells] == 1]] = pointing.start
                    states[row, cells] += more.to(states.dtype)
            return states

        hidden = self.backbone(
            self.embed_canvas(ids, slots), positions, valid, cache=prefix.cache, slot_index=slots.index, between=point
        )
        return hidden, found

    @property
    def head_layer(self) -> int:
        """Number of blocks before the cells point."""
        config = self.config.backbone.copy_head
        assert config is not None
        return config.layer

    def point(self, states: Tensor, slots: Slots, memory: CopyMemory, labels: Labels, row: int) -> tuple[Pointing, Tensor]:
        """:meth:`CopyHead.point` of n cells [n, D], helped by labels that spell the keys of the slots; the copied token's
        embedding is part of what is added to the states."""
        asked = slots.slot[slots.index == 1]  # [S]
        if labels.spelled is None:
            unique, back = asked.unique(return_inverse=True)
            match = self.spelled(slots, labels, unique)
        else:
            match, back = labels.spelled, asked
        starts = labels.starts[row]
        hint, label = ((told[:, starts] * (starts > 0))[back] for told in (match.hint, match.label))
        number = torch.isin(slots.kind[asked], _NUMBERS.to(asked.device))
        chain = Chain(_before(asked, slots.previous[asked]), slots.item[asked], labels.over[row])
        best = label.amax(1) if label.shape[1] else label.sum(1)
        pointing, seen = self.head.point(states, slots.index - 1, memory, row, hint, best, number, asked > 0, chain)
        return pointing, seen + pointing.copied.to(seen.dtype) @ self.backbone.token_embed.weight.to(seen.dtype)

    def spelled(self, slots: Slots, labels: Labels, which: Tensor) -> Match:
        """Where the keys of the slots `which` [S] are spelled on the pages."""
        return self.match(self.words(slots.keys[which]), slots.item[which], labels.words, labels.holders)

    def cell_logits(self, hidden: Tensor, copied: Tensor) -> Tensor:
        """Logits [N, V] of N cells from their final states [N, D] and what they would copy [N, V]."""
        return self.backbone.logits(hidden).float() + self.head.bonus(hidden, copied)


def _before(asked: Tensor, previous: Tensor) -> Tensor:
    """[S] which of the slots `asked` [S], canvas after canvas, is the `previous` one of each; -1 for none."""
    number = torch.arange(len(asked), device=asked.device)
    place = number - (asked - previous)  # slots of a canvas have rising numbers
    known = (previous > 0) & (place >= 0)
    place = place.clamp_min(0)
    return torch.where(known & (asked[place] == previous), place, -1) if len(asked) else number


def breaks_before(kind: Tensor) -> Tensor:
    """[B, P, BREAKS] float32: blanks, gaps and row ends before each entry, from the kinds of entries [B, P]."""
    each = torch.stack([kind == k for k in (BLANK, GAP, ROW_END)], dim=-1).float()
    return each.cumsum(1) - each


@dataclass
class Cells:
    """Predictions for R asked cells.

    Attributes:
        logits: [R, V]. scores: [R, K + 1] pointer logits.
        start: [S, K + 1] log-probability of where the slot starts, for each asked cell that is the first of its slot.
    """

    logits: Tensor
    scores: Tensor
    start: Tensor


@dataclass
class PackedMemory:
    """Prompts of B rows, encoded once without padding (:mod:`vlm.backbone.packed`).

    Attributes:
        prefix: keys and values.
        memory: what the copy head can point at: the K visual entries of each row only; labels: the words there.
        lengths: entries of each row; canvas positions start there.
    """

    prefix: PackedPrefix
    memory: CopyMemory
    labels: Labels
    lengths: list[int]


class PackedPocket:
    """The training-time forward of a :class:`PocketModel`: no padding, and only the asked cells reach the head.

    Args:
        model: the model to run; compile: see :class:`vlm.backbone.packed.Packed`.
    """

    def __init__(self, model: PocketModel, compile: bool = False) -> None:
        self.model = model
        self.packed = Packed(model.backbone, compile)

    def prefix(self, ids: Tensor, valid: Tensor, media: Tensor, words: Words, visual: VisualBatch) -> PackedMemory:
        """Encode prompts; arguments as of :meth:`PocketModel.prefix`."""
        model = self.model
        shown = media[valid]
        embeds = model.embed_prompt(ids[valid], Words(words.rows, words.word[valid]), visual.packed(), shown, valid.nonzero()[:, 0])
        positions = (valid.long().cumsum(1) - 1)[valid]
        lengths = valid.sum(1).tolist()
        prefix = self.packed.prefill(embeds, positions, lengths)
        hidden = prefix.hidden.new_zeros(*visual.valid.shape, prefix.hidden.shape[-1])
        hidden[visual.valid] = prefix.hidden[shown]
        tokens = model.copyable(visual)
        memory = model.head.memory(hidden, visual.valid, tokens, model.numeric(tokens), breaks_before(visual.kind))
        return PackedMemory(prefix, memory, Labels.of(model.words(visual.rows), visual, visual.holder), lengths)

    def cells(
        self, ids: Tensor, slots: Slots, asked: Tensor, lengths: Sequence[int], row: Sequence[int], behind: PackedMemory
    ) -> Cells:
        """Predictions for the asked cells.

        Args:
            ids, asked: [T] canvases of the given lengths end to end; `asked` is a mask of R cells, all in slots.
            slots: of the same cells ([T] each). row: prefix row of each canvas, never falling.
        """
        model = self.model
        table = model.backbone.slot_embed
        embeds = model.embed_canvas(ids, slots)
        if table is not None:
            embeds = embeds + table(slots.index.clamp_max(table.num_embeddings - 1))
        device = ids.device
        positions = torch.cat([torch.arange(behind.lengths[r], behind.lengths[r] + n, device=device) for n, r in zip(lengths, row, strict=True)])
        counts = [int(part.sum()) for part in torch.split(asked.cpu(), list(lengths))]
        pointed: list[Pointing] = []
        inside = (slots.index > 0).nonzero(as_tuple=True)[0]
        row_of = torch.repeat_interleave(torch.tensor(row, device=device), torch.tensor(list(lengths), device=device))[inside]
        per_row = torch.bincount(row_of, minlength=len(behind.lengths)).tolist()

        def point(done: int, states: Tensor) -> Tensor:
            if done != model.head_layer:
                return states
            more = []
            parts = torch.split(inside, per_row)
            for r, (part, cells) in enumerate(zip(torch.split(states[inside], per_row), parts, strict=True)):
                if len(part):
                    pointing, seen = model.point(part, slots.at(cells), behind.memory, behind.labels, r)
                    pointed.append(pointing)
                    more.append(seen)
            return states.index_add(0, inside, torch.cat(more).to(states.dtype))

        where = asked.nonzero(as_tuple=True)[0]
        if model.head_layer < model.config.backbone.num_layers:
            hidden = self.packed.forward(embeds, positions, lengths, behind.prefix, row, where, counts, point)  # [R, D]
        else:  # all cells of slots point after the last block: it cannot be cut short
            hidden = self.packed.forward(embeds, positions, lengths, behind.prefix, row, between=point)[where]
        wanted = asked[inside]
        copied, scores, start = (torch.cat([getattr(p, name) for p in pointed]) for name in ("copied", "scores", "start"))
        return Cells(model.cell_logits(hidden, copied[wanted]), scores[wanted], start[wanted[slots.index[inside] == 1]])
