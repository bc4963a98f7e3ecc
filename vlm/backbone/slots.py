"""What the cells of a slot know from the start: the words of their key, the kind of value, the place in an array.

The literal text of a scaffold says all of this, letter by letter; giving it to the slot's cells as vectors spares a small
model from having to spell it out of the canvas. Words share their table with the words of the page (:mod:`vision.words`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vision.words import FEATURES, RoleMixer, features_of, split_words

if TYPE_CHECKING:
    from vlm.structure.scaffold import Scaffold

#: Words of a key that are kept, counted from its end; places of an array that are told apart.
KEY_WORDS, ITEMS = 4, 24
#: Kinds of slots; 0 is free text without a schema.
KINDS = ("", "string", "integer", "number", "boolean", "enum", "date", "time", "date-time", "other")
#: Those of numbers, which are copied over what is no part of a number.
NUMBERS = ("integer", "number")


@dataclass(frozen=True)
class SlotTable:
    """Slots of one or several canvases; entry 0 is 'no slot'.

    Attributes:
        slot: [L] or [B, L], slot of each cell.
        keys: [1 + S, KEY_WORDS, FEATURES] word table rows of each slot's key, last word first.
        kind, item: [1 + S] number of the kind; 1 + place in the innermost array, 0 outside arrays.
        previous: [1 + S] the slot of the same key in the item before, 0 for none.
    """

    slot: NDArray[np.int64]
    keys: NDArray[np.int64]
    kind: NDArray[np.int64]
    item: NDArray[np.int64]
    previous: NDArray[np.int64]

    @classmethod
    def none(cls, length: int) -> SlotTable:
        """A canvas of free text."""
        nothing = np.zeros(1, np.int64)
        return cls(np.zeros(length, np.int64), np.zeros((1, KEY_WORDS, FEATURES), np.int64), nothing, nothing, nothing)

    @classmethod
    def of(cls, scaffold: Scaffold) -> SlotTable:
        """The slots of a scaffold."""
        keys = [np.zeros((KEY_WORDS, FEATURES), np.int64)]
        kinds, items, previous = [0], [0], [0]
        last: dict[tuple[str, ...], tuple[int, int]] = {}  # slot and item of each key so far
        for number, slot in enumerate(scaffold.slots):
            words, item = key_words(slot.pointer)
            rows = np.zeros((KEY_WORDS, FEATURES), np.int64)
            for i, word in enumerate(words[:KEY_WORDS]):
                rows[i] = features_of(word)
            keys.append(rows)
            kind = slot.kind.removesuffix("-local")
            kinds.append(KINDS.index(kind) if kind in KINDS else len(KINDS) - 1)
            items.append(item)
            before, place = last.get(tuple(words), (0, 0))
            previous.append(before if item > 1 and place == item - 1 else 0)
            last[tuple(words)] = (number + 1, item)
        return cls(np.array(scaffold.slot_of, np.int64) + 1, np.stack(keys), np.array(kinds), np.array(items), np.array(previous))


def key_words(pointer: str) -> tuple[list[str], int]:
    """Words of the property names of a JSON pointer, the last word of the last name first, and 1 + the last array place."""
    words: list[str] = []
    item = 0
    for part in reversed(pointer.split("/")[1:]):
        if part.isdigit():
            item = item or min(int(part) + 1, ITEMS)
        else:
            words += reversed(split_words(part.replace("~1", "/").replace("~0", "~"))[0])
    return words, item


def join(tables: Sequence[SlotTable], length: int) -> SlotTable:
    """Tables of several canvases as one, cells padded to [B, length]."""
    slot = np.zeros((len(tables), length), np.int64)
    count = 1
    previous = [tables[0].previous[:1]]
    for i, table in enumerate(tables):
        slot[i, : len(table.slot)] = np.where(table.slot > 0, table.slot + count - 1, 0)
        previous.append(np.where(table.previous[1:] > 0, table.previous[1:] + count - 1, 0))
        count += len(table.kind) - 1
    first = tables[0]
    return SlotTable(
        slot, np.concatenate((first.keys[:1], *(t.keys[1:] for t in tables))),
        np.concatenate((first.kind[:1], *(t.kind[1:] for t in tables))), np.concatenate((first.item[:1], *(t.item[1:] for t in tables))),
        np.concatenate(previous),
    )  # fmt: skip


class SlotEmbedding(nn.Module):
    """Vectors of slots.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.words = RoleMixer(hidden, KEY_WORDS)
        self.kind_embed = nn.Embedding(len(KINDS), hidden)
        self.item_embed = nn.Embedding(ITEMS + 1, hidden)
        for table in (self.kind_embed, self.item_embed):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, keys: Tensor, kind: Tensor, item: Tensor) -> Tensor:
        """[1 + S, D]: from the key's word vectors [1 + S, KEY_WORDS, D], kinds and places [1 + S]; slot 0 is zero."""
        told = self.words.mix(keys.flatten(-2)) + self.kind_embed(kind) + self.item_embed(item)
        return torch.cat((torch.zeros_like(told[:1]), told[1:]))
