"""Adapters from visual tokens into the backbone's embedding space."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from vision.tokens import CHAR, KINDS, MAX_CHAR, MAX_SEGMENT_INDEX, MAX_WORD, PLACE, THING, VisualTokens
from vision.words import DEPTHS, FEATURES, ROLES, RoleMixer

#: Fields of a batch that are about words and their holders, not about entries.
OF_WORDS = ("rows", "roles", "depth", "lead", "left", "above", "ordinal")


@dataclass
class VisualBatch:
    """Visual tokens of B pictures, padded to K entries; see :class:`vision.tokens.VisualTokens` for the fields.

    Attributes:
        features: [B, K, F] tower features at the entries' cells (zero where there is no cell).
        valid: [B, K] False on padding.
        rows: [W, FEATURES] words of all pictures, see :class:`vision.words.Lexicon`; roles: [H, ROLES], depth, lead,
            left, above and ordinal: [H] of their holders; holder: [B, K].
    """

    features: Tensor
    kind: Tensor
    classes: Tensor
    probs: Tensor
    color: Tensor
    place: Tensor
    index: Tensor
    score: Tensor
    valid: Tensor
    rows: Tensor
    roles: Tensor
    depth: Tensor
    lead: Tensor
    left: Tensor
    above: Tensor
    ordinal: Tensor
    holder: Tensor

    def packed(self) -> VisualBatch:
        """The valid entries of all pictures end to end: [T, ...] instead of [B, K, ...]."""
        flat = {f.name: getattr(self, f.name) for f in fields(self)}
        return VisualBatch(**{n: t if n in OF_WORDS else t[self.valid] for n, t in flat.items()})

    @classmethod
    def collate(cls, rows: list[VisualTokens], features: list[Tensor | None], width: int) -> VisualBatch:
        """Pad a list of sequences. ``features[i]`` is [F, h, w] of the tower, or None for zero features."""
        k = max((len(r) for r in rows), default=0)

        def padded(name: str) -> Tensor:
            first = getattr(rows[0], name)
            out = np.zeros((len(rows), k, *first.shape[1:]), first.dtype)
            for i, r in enumerate(rows):
                out[i, : len(r)] = getattr(r, name)
            return torch.from_numpy(out)

        valid = torch.zeros(len(rows), k, dtype=torch.bool)
        gathered = torch.zeros(len(rows), k, width)
        for i, r in enumerate(rows):
            valid[i, : len(r)] = True
            maps = features[i]
            if maps is not None and len(r):
                cells = torch.from_numpy(r.cells)
                has = cells >= 0
                gathered[i, : len(r)][has] = maps.flatten(1)[:, cells[has]].T.float()
        return cls(
            gathered, padded("kind"), padded("classes"), padded("probs"), padded("color"), padded("place"), padded("index"),
            padded("score"), valid, *_joined(rows, k),
        )  # fmt: skip


def _joined(pages: list[VisualTokens], k: int) -> tuple[Tensor, ...]:
    """The lexicons of several pictures as one: (rows, roles, depth, lead, left, above, ordinal, holder [B, K])."""
    rows = [np.zeros((1, FEATURES), np.int64)]
    roles = [np.zeros((1, ROLES), np.int64)]
    depth, lead, left, above, ordinal = ([np.zeros(1, np.int64)] for _ in range(5))
    holder = np.zeros((len(pages), k), np.int64)
    words = holders = 1
    for i, page in enumerate(pages):
        lexicon = page.lexicon
        rows.append(lexicon.rows[1:])
        here = lexicon.roles[1:]
        roles.append(np.where(here > 0, here + words - 1, 0))
        depth.append(lexicon.depth[1:])
        for parts, own in ((lead, lexicon.lead), (left, lexicon.left), (above, lexicon.above)):
            parts.append(np.where(own[1:] > 0, own[1:] + holders - 1, 0))
        ordinal.append(lexicon.ordinal[1:])
        holder[i, : len(page)] = np.where(lexicon.holder > 0, lexicon.holder + holders - 1, 0)
        words, holders = words + len(lexicon.rows) - 1, holders + len(here)
    joined = [np.concatenate(parts) for parts in (rows, roles, depth, lead, left, above, ordinal)]
    return tuple(torch.from_numpy(array) for array in (*joined, holder))


class ReaderAdapter(nn.Module):
    """Entries of a read page -> embeddings [B, K, D].

    An entry is the sum of: the backbone's own token embeddings of the characters it may be, weighted by their
    probabilities; what kind of entry, which thing, which colour; sine/cosine of its place; its place in the text; its
    word and the words around it (:mod:`vision.words`); and a projection of the tower's features (which starts at zero:
    the reading alone carries the first lessons).

    Args:
        hidden: D. features: F. things, colors: how many classes the tower names, 'none' included.
    """

    WAVES = 8
    waves: Tensor

    def __init__(self, hidden: int, features: int, things: int, colors: int) -> None:
        super().__init__()
        self.kind_embed = nn.Embedding(KINDS, hidden)
        self.thing_embed = nn.Embedding(things, hidden)
        self.color_embed = nn.Embedding(colors, hidden)
        self.segment_embed = nn.Embedding(MAX_SEGMENT_INDEX + 1, hidden)
        self.word_embed = nn.Embedding(MAX_WORD + 1, hidden)
        self.char_embed = nn.Embedding(MAX_CHAR + 1, hidden)
        self.depth_embed = nn.Embedding(DEPTHS, hidden)
        self.place = nn.Linear(4 * 2 * self.WAVES + PLACE, hidden)
        self.features = nn.Linear(features, hidden)
        self.words = RoleMixer(hidden)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for table in (self.thing_embed, self.color_embed):  # seldom seen, and all there is to a thing besides its place
            nn.init.normal_(table.weight, std=0.3)
        nn.init.zeros_(self.features.weight)
        nn.init.zeros_(self.features.bias)
        self.register_buffer("waves", self.fresh_buffer("waves"), persistent=False)

    def fresh_buffer(self, name: str) -> Tensor:
        """The buffer `name`, which no checkpoint holds: angular frequencies, wavelengths of 2 to 256 line heights."""
        return 2 * math.pi / (2.0 * 2.0 ** torch.arange(self.WAVES, dtype=torch.float32, device="cpu"))

    def forward(self, batch: VisualBatch, class_embed: Tensor, words: Tensor) -> Tensor:
        """Embed.

        Args:
            batch: B pictures of K entries.
            class_embed: [1 + A, D] embedding of each character class (row 0 unused), from the backbone.
            words: [W, D] vectors of ``batch.rows``.

        Returns:
            [B, K, D].
        """
        is_thing = (batch.kind == THING).unsqueeze(-1)
        is_char = (batch.kind == CHAR).unsqueeze(-1)
        chars = torch.where(is_char, batch.classes, 0)
        text = (class_embed[chars] * batch.probs.unsqueeze(-1)).sum(-2) * is_char
        thing = (self.thing_embed(torch.where(is_thing[..., 0], batch.classes[..., 0], 0)) + self.color_embed(batch.color)) * is_thing
        place = batch.place
        angles = place[..., [0, 1, 4, 5]].unsqueeze(-1) * self.waves  # [B,K,4,WAVES]
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        small = torch.cat((place[..., :2] * 0.02, place[..., 2:4], place[..., 4:6] * 0.02, place[..., 6:]), dim=-1)
        where = self.place(torch.cat((waves, small), dim=-1))
        order = self.segment_embed(batch.index[..., 0]) + self.word_embed(batch.index[..., 1]) + self.char_embed(batch.index[..., 2])
        told = (self.words(words, batch.roles) + self.depth_embed(batch.depth))[batch.holder]
        return text + thing + self.kind_embed(batch.kind) + where + order + told + self.features(batch.features)
