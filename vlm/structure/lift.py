"""From automata over bytes to automata over tokens.

The lifted automaton of a leaf reads the cells of a slot: tokens of the value, then `pad` to the end; or `null` in the
first cell, then `pad`. Tokens that lead everywhere to the same place form one class, so that decoding works on a
handful of classes instead of the vocabulary.
"""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlm.errors import SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.automaton import leaf_dfa, unnamed
from vlm.structure.dfa import Dfa
from vlm.structure.fields import Field, StringField
from vlm.structure.table import Symbols, TokenTable
from vlm.structure.table_cache import TableCache
from vlm.structure.trie import Trie

__all__ = ["Symbols", "TokenTable", "lift", "slot_tokens", "token_table"]

COUNT_CHARS, COUNT_TOKENS = 64, 16  # longest maxLength counted by automata, by kind of vocabulary

_TABLES: weakref.WeakKeyDictionary[Tokenizer, dict[tuple[object, ...], TokenTable]] = weakref.WeakKeyDictionary()
_TRIES: weakref.WeakKeyDictionary[Tokenizer, dict[bool, Trie]] = weakref.WeakKeyDictionary()


def token_table(field: Field, tokenizer: Tokenizer, symbols: Symbols, budget: int | None = None, *, absent: bool = True) -> TokenTable:
    """The token automaton of a leaf, from memory or disk when it was made before. `absent`: the cells may say that there is no value.

    A maxLength is counted by the automaton where that is cheap; cells of one character each need no counting when
    their number is within it; what remains is cut by the reader.

    SchemaError when the vocabulary cannot spell any value.
    """
    language, counted = _slot_language(field, tokenizer, budget)
    key = (repr(language), counted, symbols, absent)
    tables = _TABLES.setdefault(tokenizer, {})
    if key not in tables:
        cache = TableCache.of(tokenizer)
        found = cache.load(key, symbols)
        if found is None:
            free = isinstance(field, StringField) and not field.shaped
            found = lift(_slot_dfa(language, counted), tokenizer, symbols, free=free, absent=absent)
            cache.save(key, found)
        tables[key] = found
    return tables[key]


def _slot_language(field: Field, tokenizer: Tokenizer, budget: int | None) -> tuple[Field, bool]:
    """(what matters of a field to a slot, whether the automaton counts its maxLength)."""
    plain = unnamed(field)
    if not isinstance(plain, StringField) or plain.max_length is None:
        return plain, True
    if tokenizer.char_level:
        counted = budget is not None and budget > plain.max_length and (plain.shaped or plain.max_length <= COUNT_CHARS)
    else:
        counted = plain.shaped or plain.max_length <= COUNT_TOKENS
    return (plain if counted else replace(plain, max_length=None)), counted


def _slot_dfa(language: Field, counted: bool) -> Dfa:
    try:
        return leaf_dfa(language)
    except SchemaError:
        if not counted:
            raise
        return leaf_dfa(language, counted=False)


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


def _trie(tokenizer: Tokenizer, free: bool) -> Trie:
    tries = _TRIES.setdefault(tokenizer, {})
    free = free and tokenizer.char_level  # otherwise it makes no difference
    if free not in tries:
        tokens = slot_tokens(tokenizer, free=free)
        tries[free] = Trie.of(tokens, [tokenizer.token_bytes(index) for index in tokens])
    return tries[free]


def lift(dfa: Dfa, tokenizer: Tokenizer, symbols: Symbols, *, free: bool = False, absent: bool = True) -> TokenTable:
    """The token automaton of a byte automaton, trimmed, with the pad rule and, if it may be `absent`, the null rule added.

    States behind the byte automaton's: the one of pads, and a start of its own, since null may only come first.
    """
    if dfa.is_empty:
        raise SchemaError("no value meets the constraints")
    size = dfa.size
    end, start = size, size + 1
    tokens, group, columns = _trie(tokenizer, free).columns(dfa)
    value = np.full((size + 2, columns.shape[1]), -1, np.int32)
    value[:size] = columns
    value[start] = value[0]
    pad = np.full(size + 2, -1, np.int32)
    pad[:size] = np.where(dfa.accept, end, -1)
    pad[end], pad[start] = end, pad[0]
    moves = [np.full(size + 2, -1, np.int32), *value.T, pad]
    accept = np.concatenate([dfa.accept, [True, dfa.accept[0]]])
    if absent and symbols.null is not None:
        null = np.full(size + 2, -1, np.int32)
        null[start] = end
        moves.append(null)
    elif absent:  # nothing but pads: null
        pad[start], accept[start] = end, True
    table, accept = _trim(np.stack(moves, axis=1), accept, start)
    class_of = np.zeros(tokenizer.vocab_size, np.int32)
    class_of[tokens] = group + 1
    return _compact(class_of, table, accept, symbols, columns.shape[1], absent)


def _compact(
    class_of: NDArray[np.int32], moves: NDArray[np.int32], accept: NDArray[np.bool_], symbols: Symbols, values: int, absent: bool
) -> TokenTable:
    """Merge classes that became equal by trimming; those that lead nowhere go to class 0, pad and null keep their own."""
    columns, inverse = np.unique(moves[:, 1 : values + 1], axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    alive = (columns >= 0).any(axis=0)
    number = np.where(alive, np.cumsum(alive), 0).astype(np.int32)
    count = int(alive.sum())
    class_of = np.concatenate([np.zeros(1, np.int32), number[inverse]])[class_of]
    class_of[symbols.pad] = count + 1
    parts = [moves[:, :1], columns[:, alive], moves[:, values + 1 :]]
    if symbols.null is not None:
        class_of[symbols.null] = count + 2 if absent else 0
    return TokenTable(class_of, np.concatenate(parts, axis=1), accept, symbols.pad, symbols.null if absent else None)


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
