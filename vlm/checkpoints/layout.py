"""The two layouts of a checkpoint: its family's published one, and ours, the state dict of the module as it is.

Ours needs no joining at loading time. Keys that the module has no use for (rotary tables, a stored copy of tied
embeddings, layers of a tower behind the chosen one) are kept below ``published.``, so that the way back loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vlm.checkpoints.keymap import Part, Weight
from vlm.checkpoints.shards import Shards, Stored, read_into
from vlm.errors import CheckpointError

Layout = Literal["published", "native"]
#: Where keys without a place in the module stand in our layout.
KEPT = "published."
#: A parameter of every module of ours, and of no published layout.
_MARK = "backbone.token_embed.weight"


def layout_of(shards: Shards) -> Layout:
    """The layout that the keys of a checkpoint show."""
    return "native" if _MARK in shards.tensors else "published"


def native_weights(weights: Sequence[Weight], module: nn.Module) -> list[Weight]:
    """The key map of our layout, from that of the published one and the module (the meta device will do)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return [Weight(w.name, (Part(w.name, shapes[w.name]),), w.elastic, w.required) for w in weights if w.name in shapes]


@dataclass(frozen=True)
class Piece:
    """`count` elements of a stored tensor from `first` on."""

    stored: Stored
    first: int
    count: int


@dataclass(frozen=True)
class Output:
    """A tensor to be written: pieces of stored tensors, end to end."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, on the CPU."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        flat, at = tensor.view(-1), 0
        for piece in self.pieces:
            read_into(piece.stored, flat[at : at + piece.count], first=piece.first)
            at += piece.count
        return tensor


def outputs(weights: Sequence[Weight], shapes: Mapping[str, tuple[int, ...]], shards: Shards, wanted: Layout, dtype: torch.dtype | None = None) -> list[Output]:
    """What a checkpoint becomes in another layout (or the same), nothing read yet.

    Args:
        weights: key map of the published layout. shapes: of our state dict. shards: the checkpoint, whose keys fit.
        wanted: layout. dtype: of floating-point tensors, None as stored.

    Raises:
        CheckpointError: parts of one parameter are stored in different types, and none was asked for.
    """

    def out(key: str, kind: torch.dtype, shape: tuple[int, ...], *pieces: Piece) -> Output:
        return Output(key, dtype if dtype is not None and kind.is_floating_point else kind, shape, pieces)

    def whole(stored: Stored) -> Piece:
        return Piece(stored, 0, torch.Size(stored.shape).numel())

    here, found, used = shards.tensors, [], set()
    source = layout_of(shards)
    for w in weights:
        keys = [w.name] if source == "native" else [part.key for part in w.parts]
        if any(key not in here for key in keys):
            continue  # optional: `compare` has seen to the others
        used.update(keys)
        stored = [here[key] for key in keys]
        if source == wanted:
            found += [out(s.key, s.dtype, s.shape, whole(s)) for s in stored]
        elif wanted == "native":
            kinds = {s.dtype for s in stored}
            if len(kinds) > 1 and dtype is None:
                named = ", ".join(f"{s.key} in {str(s.dtype).removeprefix('torch.')}" for s in stored)
                raise CheckpointError(f"one parameter of ours is stored in several types ({named})", source=str(stored[0].file), remedy="name a dtype")
            shape = stored[0].shape if w.elastic else shapes[w.name]
            found.append(out(w.name, stored[0].dtype, shape, *(whole(s) for s in stored)))
        else:
            first = 0
            for part in w.parts:
                shape = stored[0].shape if w.elastic else part.shape
                count = torch.Size(shape).numel()
                found.append(out(part.key, stored[0].dtype, shape, Piece(stored[0], first, count)))
                first += count
    for key, stored_one in here.items():
        if key not in used:
            name = key if source == wanted else KEPT + key if wanted == "native" else key.removeprefix(KEPT)
            found.append(out(name, stored_one.dtype, stored_one.shape, whole(stored_one)))
    return found


def ignored_in(layout: Layout, published: Sequence[str]) -> tuple[str, ...]:
    """Regular expressions of keys that are not needed, in a layout."""
    return tuple(published) if layout == "published" else (re.escape(KEPT) + ".*",)
