"""Finite automata over bytes: built from nondeterministic fragments, combined, minimised.

A `Dfa` reads the UTF-8 bytes of a text. It is trimmed: every state lies on some path from the start (state 0) to an
accepting state, so a live state is a completable one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from vlm.errors import SchemaError

BEGIN, END = 256, 257  # symbols of the two ends of a text, for the anchors of patterns
SYMBOLS = 258
MAX_NFA = 40_000
MAX_DFA = 6_000

Ranges = Sequence[tuple[int, int]]  # inclusive


@dataclass
class Nfa:
    """A growing nondeterministic automaton; fragments are pairs (entry, exit) of its states."""

    steps: list[list[tuple[int, int, int]]] = field(default_factory=list)  # per state: (low, high, target)
    jumps: list[list[int]] = field(default_factory=list)

    def state(self) -> int:
        """A new state. SchemaError when there are too many."""
        if len(self.steps) >= MAX_NFA:
            raise SchemaError(f"the pattern needs more than {MAX_NFA} states", remedy="Lower its repeat counts")
        self.steps.append([])
        self.jumps.append([])
        return len(self.steps) - 1

    def symbols(self, low: int, high: int) -> tuple[int, int]:
        """One symbol from low to high."""
        a, b = self.state(), self.state()
        self.steps[a].append((low, high, b))
        return a, b

    def chars(self, ranges: Ranges) -> tuple[int, int]:
        """One character from the code point ranges, as UTF-8."""
        a, b = self.state(), self.state()
        for low, high in ranges:
            for sequence in utf8_sequences(low, high):
                here = a
                for index, (first, last) in enumerate(sequence):
                    there = b if index == len(sequence) - 1 else self.state()
                    self.steps[here].append((first, last, there))
                    here = there
        return a, b

    def empty(self) -> tuple[int, int]:
        """Nothing."""
        a = self.state()
        return a, a

    def chain(self, parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """One after the other."""
        if not parts:
            return self.empty()
        for (_, left), (right, _) in pairwise(parts):
            self.jumps[left].append(right)
        return parts[0][0], parts[-1][1]

    def either(self, parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """One of them."""
        a, b = self.state(), self.state()
        for entry, end in parts:
            self.jumps[a].append(entry)
            self.jumps[end].append(b)
        return a, b

    def star(self, part: tuple[int, int]) -> tuple[int, int]:
        """Any number of times."""
        a, b = self.state(), self.state()
        self.jumps[a] += [part[0], b]
        self.jumps[part[1]] += [part[0], b]
        return a, b

    def determinise(self, entry: int, end: int) -> Dfa:
        """The minimal automaton of a fragment, between the BEGIN and END symbols if it uses them."""
        edges = sorted({0, SYMBOLS} | {e for step in self.steps for low, high, _ in step for e in (low, high + 1)})
        closures: dict[int, frozenset[int]] = {}

        def closure(states: Iterable[int]) -> frozenset[int]:
            found: set[int] = set()
            for state in states:
                if state not in closures:
                    seen, todo = {state}, [state]
                    while todo:
                        for target in self.jumps[todo.pop()]:
                            if target not in seen:
                                seen.add(target)
                                todo.append(target)
                    closures[state] = frozenset(seen)
                found |= closures[state]
            return frozenset(found)

        start = closure([entry])
        numbers = {start: 0}
        order = [start]
        rows: list[dict[int, int]] = []
        for current in order:  # grows while it is read
            targets: dict[int, set[int]] = {}
            for state in current:
                for low, high, target in self.steps[state]:
                    for cut in edges[np.searchsorted(edges, low) : np.searchsorted(edges, high + 1)]:
                        targets.setdefault(cut, set()).add(target)
            row = {}
            for cut, states in targets.items():
                closed = closure(states)
                if closed not in numbers:
                    if len(numbers) >= MAX_DFA:
                        raise SchemaError(f"the pattern needs more than {MAX_DFA} states", remedy="Simplify it")
                    numbers[closed] = len(order)
                    order.append(closed)
                row[cut] = numbers[closed]
            rows.append(row)
        table = np.full((len(order), SYMBOLS), -1, np.int32)
        spans = dict(pairwise(edges))
        for index, row in enumerate(rows):
            for cut, target in row.items():
                table[index, cut : spans[cut]] = target
        accept = np.array([end in states for states in order])
        return Dfa.build(table, accept)


@dataclass(frozen=True)
class Dfa:
    """`table [Q, 256]`: next state, -1 dead; `accept [Q]`. State 0 is the start. The empty language has Q = 0."""

    table: NDArray[np.int32]
    accept: NDArray[np.bool_]

    @classmethod
    def build(cls, table: NDArray[np.int32], accept: NDArray[np.bool_]) -> Dfa:
        """Trim, minimise and renumber. A table of 258 columns has its end symbols resolved first."""
        start = 0
        if table.shape[1] == SYMBOLS:
            begin, end = table[:, BEGIN], table[:, END]
            if (begin >= 0).any():  # a text stands between one BEGIN and one END: the bytes between are our language
                if begin[0] < 0:
                    return cls.nothing()
                start = int(begin[0])
                accept = np.where(end >= 0, accept[end], False)
            table = table[:, :256]
        table, accept = _trim(table, accept, start)
        return cls(*_minimise(table, accept))

    @property
    def is_empty(self) -> bool:
        """Whether no text is accepted."""
        return len(self.accept) == 0

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self.accept)

    def accepts(self, text: str | bytes) -> bool:
        """Whether a text belongs to the language."""
        if self.is_empty:
            return False
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        state = 0
        for byte in data:
            state = int(self.table[state, byte])
            if state < 0:
                return False
        return bool(self.accept[state])

    def combine(self, other: Dfa, *, both: bool) -> Dfa:
        """Intersection (`both`) or union of two languages."""
        if self.is_empty or other.is_empty:
            return (other if self.is_empty else self) if not both else Dfa.nothing()
        return self._product(other, np.logical_and if both else np.logical_or)

    def minus(self, other: Dfa) -> Dfa:
        """The texts of this language that are not in the other."""
        if self.is_empty or other.is_empty:
            return self
        return self._product(other, lambda mine, theirs: mine & ~theirs)

    def _product(self, other: Dfa, rule: Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.bool_]]) -> Dfa:
        """Both automata side by side; `rule` says from the acceptance of each which pairs accept."""
        a, b = self._complete(), other._complete()
        width = b.shape[0]
        numbers = {0: 0}
        order = [0]
        rows = []
        for pair in order:
            targets = a[pair // width].astype(np.int64) * width + b[pair % width]
            unique, inverse = np.unique(targets, return_inverse=True)
            found = np.empty(len(unique), np.int32)
            for index, target in enumerate(unique.tolist()):
                if target not in numbers:
                    if len(numbers) >= 4 * MAX_DFA:
                        raise SchemaError("the constraints together need too many states", remedy="Simplify them")
                    numbers[target] = len(order)
                    order.append(target)
                found[index] = numbers[target]
            rows.append(found[inverse])
        first = np.append(self.accept, False)[np.array(order) // width]
        second = np.append(other.accept, False)[np.array(order) % width]
        return Dfa.build(np.stack(rows), rule(first, second))

    def _complete(self) -> NDArray[np.int32]:
        """The table with a dead state as last row instead of -1."""
        dead = np.full((1, 256), self.size, np.int32)
        return np.concatenate([np.where(self.table < 0, self.size, self.table), dead])

    @cached_property
    def shortest(self) -> bytes:
        """The first of the shortest accepted texts; a SchemaError if there is none."""
        if self.is_empty:
            raise SchemaError("no text is accepted")
        paths = {0: b""}
        todo = deque([0])
        while todo:
            state = todo.popleft()
            if self.accept[state]:
                return paths[state]
            for byte in np.flatnonzero(self.table[state] >= 0).tolist():
                target = int(self.table[state, byte])
                if target not in paths:
                    paths[target] = paths[state] + bytes([byte])
                    todo.append(target)
        raise SchemaError("no text is accepted")

    def words(self, count: int) -> list[bytes]:
        """The first `count` accepted texts, shorter ones first; fewer if there are no more."""
        out: list[bytes] = []
        front: list[tuple[int, bytes]] = [] if self.is_empty else [(0, b"")]
        while front and len(out) < count:
            out += [path for state, path in front if self.accept[state]]
            steps = ((state, path, byte) for state, path in front for byte in np.flatnonzero(self.table[state] >= 0).tolist())
            front = [(int(self.table[state, byte]), path + bytes([byte])) for state, path, byte in islice(steps, 64 * count)]
        return out[:count]

    @classmethod
    def nothing(cls) -> Dfa:
        """The empty language."""
        return cls(np.zeros((0, 256), np.int32), np.zeros(0, bool))

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> Dfa:
        """Just these texts."""
        rows: list[dict[int, int]] = [{}]
        ends: set[int] = set()
        for text in texts:
            state = 0
            for byte in text.encode():
                if byte not in rows[state]:
                    rows[state][byte] = len(rows)
                    rows.append({})
                state = rows[state][byte]
            ends.add(state)
        table = np.full((len(rows), 256), -1, np.int32)
        for index, row in enumerate(rows):
            for byte, target in row.items():
                table[index, byte] = target
        return cls.build(table, np.isin(np.arange(len(rows)), sorted(ends)))


def _trim(
    table: NDArray[np.int32], accept: NDArray[np.bool_], start: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Only states between start and acceptance, the start first."""
    size = len(accept)
    reached = np.zeros(size, bool)
    reached[start] = True
    todo = [start]
    while todo:
        targets = np.unique(table[todo])
        todo = [t for t in targets.tolist() if t >= 0 and not reached[t]]
        reached[todo] = True
    useful = accept & reached
    while True:
        step = reached & ~useful & (np.append(useful, False)[table]).any(axis=1)
        if not step.any():
            break
        useful |= step
    if not useful[start]:
        return np.zeros((0, 256), np.int32), np.zeros(0, bool)
    order = np.concatenate([[start], [q for q in np.flatnonzero(useful) if q != start]]).astype(np.int64)
    number = np.full(size + 1, -1, np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return number[table[order]], accept[order]


def _minimise(
    table: NDArray[np.int32], accept: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Moore's partition refinement on the distinct columns; the start stays state 0."""
    if len(accept) == 0:
        return table, accept
    columns = np.unique(table, axis=1)
    block = accept.astype(np.int64)
    count = len(np.unique(block))
    while True:
        signature = np.concatenate([block[:, None], np.append(block, -1)[columns]], axis=1)
        _, refined = np.unique(signature, axis=0, return_inverse=True)
        refined = refined.reshape(-1)
        fresh = int(refined.max()) + 1
        block = refined
        if fresh == count:
            break
        count = fresh
    first = np.array([np.flatnonzero(block == b)[0] for b in range(count)])
    order = [int(block[0]), *(b for b in range(count) if b != block[0])]
    number = np.full(count + 1, -1, np.int32)
    number[order] = np.arange(count, dtype=np.int32)
    kept = first[order]
    merged = number[np.append(block, count)[table[kept]]]
    return np.where(table[kept] < 0, -1, merged).astype(np.int32), accept[kept]


def utf8_sequences(low: int, high: int) -> list[list[tuple[int, int]]]:
    """Byte-range sequences that spell exactly the code points low to high (surrogates left out)."""
    if low > high:
        return []
    if low <= 0xDFFF and high >= 0xD800:
        return utf8_sequences(low, 0xD7FF) + utf8_sequences(0xE000, high)
    for limit in (0x7F, 0x7FF, 0xFFFF):  # one length at a time
        if low <= limit < high:
            return utf8_sequences(low, limit) + utf8_sequences(limit + 1, high)
    if high < 0x80:
        return [[(low, high)]]
    for bits in (6, 12, 18):  # then split so that the trailing bytes are full ranges or equal
        mask = (1 << bits) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                return utf8_sequences(low, low | mask) + utf8_sequences((low | mask) + 1, high)
            if high & mask != mask:
                return utf8_sequences(low, (high & ~mask) - 1) + utf8_sequences(high & ~mask, high)
    return [list(zip(chr(low).encode(), chr(high).encode(), strict=True))]
