"""A vocabulary as a tree of bytes, so that an automaton is run over beginnings that tokens share only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm.structure.dfa import Dfa


@dataclass(frozen=True)
class Level:
    """The nodes of one depth.

    Attributes:
        parent: [N] node of the depth before; byte: [N] what leads here from it.
        tokens: [K] tokens that end on this depth; node: [K] where.
    """

    parent: NDArray[np.int64]
    byte: NDArray[np.int64]
    tokens: NDArray[np.int64]
    node: NDArray[np.int64]


@dataclass(frozen=True)
class Trie:
    """Levels of depth 1, 2, ..."""

    levels: tuple[Level, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], spelled: Sequence[bytes]) -> Trie:
        """The tree of the tokens with these spellings, none of them empty."""
        lengths = np.fromiter(map(len, spelled), np.int64, len(spelled))
        begins = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        data = np.frombuffer(b"".join(spelled), np.uint8).astype(np.int64)
        ids = np.asarray(tokens, np.int64)
        node = np.zeros(len(ids), np.int64)
        rest = np.arange(len(ids))
        levels = []
        for depth in range(int(lengths.max(initial=0))):
            rest = rest[lengths[rest] > depth]
            key = node[rest] * 256 + data[begins[rest] + depth]
            unique, inverse = np.unique(key, return_inverse=True)
            node[rest] = inverse.reshape(-1)
            ends = rest[lengths[rest] == depth + 1]
            levels.append(Level(unique // 256, unique % 256, ids[ends], node[ends]))
        return cls(tuple(levels))

    def columns(self, dfa: Dfa) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """(tokens [K] that some state can read, the group of each [K], columns [Q, G] of the groups).

        A column says where each state gets by reading a token of the group, -1 for nowhere. Columns are compared by two random
        64-bit fingerprints: exact comparison of long columns is slow at 100k tokens.
        """
        size = dfa.size
        weights = np.random.default_rng(0).integers(1, 2**62, (2, size), dtype=np.int64)
        states = np.arange(size, dtype=np.int32)[:, None]  # [Q, n] of the nodes that are alive
        place = np.zeros(1, np.int64)  # [N] column of each node, -1 once no state can get there
        tokens, prints, columns = [], [], []
        for level in self.levels:
            alive = np.flatnonzero(place[level.parent] >= 0)
            if not len(alive):
                break
            before = states[:, place[level.parent[alive]]]
            reached = np.where(before < 0, -1, dfa.table[before, level.byte[alive]])
            kept = (reached >= 0).any(axis=0)
            states = reached[:, kept]
            place = np.full(len(level.parent), -1, np.int64)
            place[alive[kept]] = np.arange(states.shape[1])
            column = place[level.node]
            ended = column >= 0
            if not ended.any():
                continue
            used, where = np.unique(column[ended], return_inverse=True)
            found = states[:, used]
            mark = (weights @ (found.astype(np.int64) + 1)).T  # [n, 2]
            unique, first, inverse = np.unique(mark, axis=0, return_index=True, return_inverse=True)
            tokens.append(level.tokens[ended])
            prints.append(unique[inverse.reshape(-1)[where.reshape(-1)]])
            columns.append((unique, found[:, first]))
        if not tokens:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((size, 0), np.int32)
        marks = np.concatenate([mark for mark, _ in columns])
        every = np.concatenate([column for _, column in columns], axis=1)
        unique, first = np.unique(marks, axis=0, return_index=True)
        _, group = np.unique(np.concatenate([unique, np.concatenate(prints)]), axis=0, return_inverse=True)
        return np.concatenate(tokens), group.reshape(-1)[len(unique) :], every[:, first].astype(np.int32)
