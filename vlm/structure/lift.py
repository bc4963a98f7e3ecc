"""From automata over bytes to automata over tokens.

The lifted automaton of a leaf reads the cells of a slot: tokens of the value, then `pad` to the end; or `null` in the
first cell, then `pad`. Tokens that lead everywhere to the same place form one class, so that decoding works on a
handful of classes instead of the vocabulary.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vlm.errors import ConfigError, SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.automaton import leaf_dfa
from vlm.structure.dfa import Dfa
from vlm.structure.fields import Field, StringField

PAD_NAMES = ("<|pad|>", "<|endoftext|>", "<|eot_id|>", "</s>", "<eos>")
NULL_NAMES = ("<|null|>",)
COUNT_CHARS, COUNT_TOKENS = 64, 16  # longest maxLength counted by automata, by kind of vocabulary
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
class TokenTable:
    """A leaf's automaton over a vocabulary.

    States 0..Q-1, of which 0 is the start; class 0 holds every token that is never allowed.

    Attributes:
        class_of: [V] class of each token.
        classes: number of classes C.
        moves: [Q, C] next state by class, -1 dead.
        accept: [Q] states a slot may end in.
        free: whether this is free text (one state of text characters); `char`, `pad`, `null` are its classes.
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
    def edges(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """`([Q, D] class, [Q, D] next state)`, filled up with class 0 leading to state 0."""
        degree = max(int((self.moves >= 0).sum(axis=1).max()), 1)
        classes = np.zeros((self.states, degree), np.int32)
        targets = np.zeros((self.states, degree), np.int32)
        for state in range(self.states):
            found = np.flatnonzero(self.moves[state] >= 0)
            classes[state, : len(found)] = found
            targets[state, : len(found)] = self.moves[state, found]
        return classes, targets

    @cached_property
    def order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens sorted by class, and where each class begins among them."""
        order = np.argsort(self.class_of, kind="stable")
        return order, np.searchsorted(self.class_of[order], np.arange(self.classes))

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
        if len(start) != 1:
            return None
        text = start[0]
        inside = int(self.moves[0, text])
        end = int(self.moves[inside, pad])
        expected = np.full_like(self.moves, -1)
        expected[inside, text], expected[inside, pad] = inside, end
        expected[0, text] = inside
        if end < 0 or not self.accept[inside] or not self.accept[end]:
            return None
        expected[end, pad] = end
        if inside == 0:
            return None
        if null is not None:
            expected[0, null] = end
        if self.moves[0, pad] >= 0:
            expected[0, pad] = end
        same = np.array_equal(expected, self.moves)
        if not same or self.states != 3:
            return None
        return text, pad, null, 0 if self.moves[0, pad] >= 0 else 1


_TABLES: weakref.WeakKeyDictionary[Tokenizer, dict[tuple[object, ...], TokenTable]] = weakref.WeakKeyDictionary()


def token_table(field: Field, tokenizer: Tokenizer, symbols: Symbols, budget: int | None = None, *, absent: bool = True) -> TokenTable:
    """The token automaton of a leaf, from memory when it was made before. `absent`: the cells may say that there is no value.

    A maxLength is counted by the automaton where that is cheap; cells of one character each need no counting when
    their number is within it; what remains is cut by the reader.

    SchemaError when the vocabulary cannot spell any value.
    """
    dfa = _slot_dfa(field, tokenizer, budget)
    free = isinstance(field, StringField) and not field.shaped
    key = (dfa.table.tobytes(), dfa.accept.tobytes(), free, symbols, absent)
    tables = _TABLES.setdefault(tokenizer, {})
    if key not in tables:
        tables[key] = lift(dfa, tokenizer, symbols, free=free, absent=absent)
    return tables[key]


def _slot_dfa(field: Field, tokenizer: Tokenizer, budget: int | None) -> Dfa:
    """The automaton of a slot over bytes, counting a maxLength where that is needed and cheap."""
    if not isinstance(field, StringField) or field.max_length is None:
        return leaf_dfa(field)
    if tokenizer.char_level:
        counted = budget is not None and budget > field.max_length and (field.shaped or field.max_length <= COUNT_CHARS)
    else:
        counted = field.shaped or field.max_length <= COUNT_TOKENS
    try:
        return leaf_dfa(field, counted=counted)
    except SchemaError:
        return leaf_dfa(field, counted=False)


def slot_tokens(tokenizer: Tokenizer, *, free: bool) -> list[int]:
    """Tokens that may stand in a slot.

    A character-level vocabulary writes one character per token: its longer pieces never occur in slots, a character
    with a token of its own is never spelled in bytes, and free text has only characters with tokens of their own.
    """
    usable = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.control_ids and tokenizer.token_bytes(i)]
    if not tokenizer.char_level:
        return usable
    out = []
    for index in usable:
        spelled = tokenizer.token_bytes(index)
        char = spelled.decode("utf-8", "replace")
        whole = len(char) == 1 and char != "\ufffd" and tokenizer.has_char(char) and tokenizer.char_id(char) == index
        if whole or (not free and len(spelled) == 1 and spelled[0] >= 0x80):
            out.append(index)
    return out


def lift(dfa: Dfa, tokenizer: Tokenizer, symbols: Symbols, *, free: bool = False, absent: bool = True) -> TokenTable:
    """The token automaton of a byte automaton, trimmed, with the pad rule and, if it may be `absent`, the null rule added."""
    tokens = np.array(slot_tokens(tokenizer, free=free), np.int64)
    moves = _token_moves(dfa, [tokenizer.token_bytes(int(index)) for index in tokens])
    size = dfa.size
    end, start = size, size + 1  # the state of pads; a start of its own, since null may only come first
    full = np.full((size + 2, len(tokens) + 2), -1, np.int32)  # the last two columns: pad, null
    full[:size, :-2] = moves
    full[:size, -2] = np.where(dfa.accept, end, -1)
    full[end, -2] = end
    full[start] = full[0]
    if absent and symbols.null is not None:
        full[start, -1] = end
    elif absent:
        full[start, -2] = end  # nothing but pads: null
    accept = np.concatenate([dfa.accept, [True, (absent and symbols.null is None) or dfa.accept[0]]])
    full, accept = _trim(full, accept, start)
    return _classes(full, accept, tokens, tokenizer.vocab_size, symbols)


def _token_moves(dfa: Dfa, spelled: list[bytes]) -> NDArray[np.int32]:
    """[Q, n] the state after reading each token from each state, -1 dead."""
    if dfa.is_empty:
        raise SchemaError("no value meets the constraints")
    width = max((len(item) for item in spelled), default=0)
    data = np.full((len(spelled), width), 256, np.int64)
    for index, item in enumerate(spelled):
        data[index, : len(item)] = np.frombuffer(item, np.uint8)
    dead = dfa.size
    table = np.full((dfa.size + 1, 257), dead, np.int32)
    table[:-1, :256] = np.where(dfa.table < 0, dead, dfa.table)
    table[:, 256] = np.arange(dfa.size + 1)  # past the end of a token: stay
    states = np.broadcast_to(np.arange(dfa.size, dtype=np.int32)[:, None], (dfa.size, len(spelled)))
    for place in range(width):
        states = table[states, data[:, place]]
    return np.where(states == dead, -1, states).astype(np.int32)


def _trim(
    moves: NDArray[np.int32], accept: NDArray[np.bool_], start: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """States between start and acceptance, the start first. Byte automata may have states no token reaches."""
    size = len(accept)
    reached = np.zeros(size, bool)
    reached[start] = True
    todo = [start]
    while todo:
        todo = [t for t in np.unique(moves[todo]).tolist() if t >= 0 and not reached[t]]
        reached[todo] = True
    useful = accept & reached
    while True:
        step = reached & ~useful & np.append(useful, False)[moves].any(axis=1)
        if not step.any():
            break
        useful |= step
    if not useful[start]:
        raise SchemaError("the vocabulary cannot spell any value that meets the constraints")
    order = np.concatenate([[start], [q for q in np.flatnonzero(useful) if q != start]]).astype(np.int64)
    number = np.full(size + 1, -1, np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return number[moves[order]], accept[order]


def _classes(
    moves: NDArray[np.int32], accept: NDArray[np.bool_], tokens: NDArray[np.int64], vocab: int, symbols: Symbols
) -> TokenTable:
    """Merge tokens with equal columns; pad and null keep classes of their own, class 0 is for the rest."""
    value_columns = moves[:, :-2]
    # Columns are compared by two random 64-bit fingerprints: exact comparison of long columns is slow at 100k tokens.
    weights = np.random.default_rng(0).integers(1, 2**62, (2, len(accept)), dtype=np.int64)
    prints = (weights @ (value_columns.astype(np.int64) + 1)).T
    _, first, inverse = np.unique(prints, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    alive = (value_columns[:, first] >= 0).any(axis=0)
    number = np.where(alive, np.cumsum(alive), 0)
    count = int(alive.sum())
    class_of = np.zeros(vocab, np.int32)
    class_of[tokens] = number[inverse]
    columns = [np.full(len(accept), -1, np.int32), *(value_columns[:, f] for f in first[alive]), moves[:, -2]]
    class_of[symbols.pad] = count + 1
    if symbols.null is not None:
        columns.append(moves[:, -1])
        class_of[symbols.null] = count + 2
    return TokenTable(class_of, np.stack(columns, axis=1), accept, symbols.pad, symbols.null)
