"""Automata over a vocabulary: their tables, and the control tokens of slots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm.errors import ConfigError
from vlm.processor.tokenizer import Tokenizer

PAD_NAMES = ("<|pad|>", "<|endoftext|>", "<|eot_id|>", "</s>", "<eos>")
NULL_NAMES = ("<|null|>",)
MASK_NAMES = ("<|mask|>", "<|mdm_mask|>", "<mask>", "[MASK]")


@dataclass(frozen=True)
class Symbols:
    """The control tokens a scaffold needs. Without `null`, a slot of nothing but pads means null."""

    pad: int
    mask: int
    null: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Symbols:
        """By the usual spellings; ConfigError when the vocabulary has none of them."""

        def find(names: tuple[str, ...]) -> int | None:
            return next((tokenizer.special[name] for name in names if name in tokenizer.special), None)

        pad, mask = find(PAD_NAMES), find(MASK_NAMES)
        if pad is None or mask is None:
            missing = "padding" if pad is None else "mask"
            raise ConfigError(f"no {missing} token is known", source=tokenizer.source, remedy="Give Symbols explicitly")
        return cls(pad, mask, find(NULL_NAMES))


@dataclass(frozen=True)
class Graph:
    """The edges of an automaton, E of them, sorted by the state they leave.

    Attributes:
        source: [E] state; label, target: [E + 1] class and next state, with one edge more that stands for none (class 0 to 0).
        origin: states that edges leave; first, degree: where the edges of each begin, and how many there are.
        leaving: [Q, D] edges that leave each state, E where there are fewer.
        by_target, first_by_target, targets: edges sorted by next state, where each state's begin, and the states.
        by_label, first_by_label, labels: the same by class.
    """

    source: NDArray[np.int64]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    origin: NDArray[np.int64]
    first: NDArray[np.int64]
    degree: NDArray[np.int64]
    leaving: NDArray[np.int64]
    by_target: NDArray[np.int64]
    first_by_target: NDArray[np.int64]
    targets: NDArray[np.int64]
    by_label: NDArray[np.int64]
    first_by_label: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, moves: NDArray[np.int32]) -> Graph:
        """The edges of a table [Q, C]; a state without any gets none, a table without any gets one from class 0."""
        source, label = np.nonzero(moves >= 0)
        target = moves[source, label].astype(np.int64)
        if not len(source):
            source, label, target = (np.zeros(1, np.int64) for _ in range(3))
        origin, first, degree = np.unique(source, return_index=True, return_counts=True)
        leaving = np.full((len(moves), int(degree.max())), len(source), np.int64)
        for state, begin, count in zip(origin.tolist(), first.tolist(), degree.tolist(), strict=True):
            leaving[state, :count] = np.arange(begin, begin + count)
        by_target, by_label = np.argsort(target, kind="stable"), np.argsort(label, kind="stable")
        targets, first_by_target = np.unique(target[by_target], return_index=True)
        labels, first_by_label = np.unique(label[by_label], return_index=True)
        label, target = np.append(label, 0), np.append(target, 0)
        return cls(source, label, target, origin, first, degree, leaving, by_target, first_by_target, targets, by_label, first_by_label, labels)


@dataclass(frozen=True)
class TokenTable:
    """A leaf's automaton over a vocabulary.

    States 0..Q-1, of which 0 is the start; class 0 holds every token that is never allowed.

    Attributes:
        class_of: [V] class of each token.
        moves: [Q, C] next state by class, -1 dead.
        accept: [Q] states a slot may end in.
        pad, null: ids of the control tokens; null is None where a value must be there, or pads alone say that it is not.
    """

    class_of: NDArray[np.int32]
    moves: NDArray[np.int32]
    accept: NDArray[np.bool_]
    pad: int
    null: int | None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.moves.shape[1]

    @property
    def states(self) -> int:
        """Number of states."""
        return self.moves.shape[0]

    @cached_property
    def reducers(self) -> dict[str, Any]:
        """Index tensors by device, see :mod:`vlm.structure.reduction`."""
        return {}

    @cached_property
    def reachable(self) -> dict[int, NDArray[np.bool_]]:
        """[T, C] classes a blank slot may take at each cell, by its number T of cells, see :mod:`vlm.structure.trellis`."""
        return {}

    @cached_property
    def graph(self) -> Graph:
        """The edges."""
        return Graph.of(self.moves)

    @cached_property
    def min_tokens(self) -> int:
        """Cells that the shortest value needs, at least 1."""
        skip = {int(self.class_of[self.pad]), int(self.class_of[self.null]) if self.null is not None else -1, 0}
        values = [c for c in range(self.classes) if c not in skip]
        front, seen, length = {0}, {0}, 0
        while front:
            length += 1
            front = {int(t) for s in front for t in self.moves[s, values] if t >= 0} - seen
            if any(self.accept[state] for state in front):
                return length
            seen |= front
        return 1  # nothing but the empty text

    @cached_property
    def free_classes(self) -> tuple[int, int, int | None, int] | None:
        """(text class, pad class, null class, least length) when the language is text* pad*, else None.

        Least length is 0 or 1. Such slots are decoded in closed form.
        """
        pad, null = int(self.class_of[self.pad]), int(self.class_of[self.null]) if self.null is not None else None
        start = [c for c in range(1, self.classes) if self.moves[0, c] >= 0 and c not in (pad, null)]
        if len(start) != 1 or self.states != 3:
            return None
        text = start[0]
        inside = int(self.moves[0, text])
        end = int(self.moves[inside, pad])
        expected = np.full_like(self.moves, -1)
        expected[inside, text], expected[inside, pad] = inside, end
        expected[0, text] = inside
        if end < 0 or inside == 0 or not self.accept[inside] or not self.accept[end]:
            return None
        expected[end, pad] = end
        if null is not None:
            expected[0, null] = end
        if self.moves[0, pad] >= 0:
            expected[0, pad] = end
        return (text, pad, null, 0 if self.moves[0, pad] >= 0 else 1) if np.array_equal(expected, self.moves) else None
