"""How a selector tells branches apart: by the beginnings of the JSON texts they lead to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.structure.automaton import json_dfa
from vlm.structure.fields import ArrayField, ConstField, Field, ObjectField, Schema, UnionField, is_leaf

_WORDS = {"t": "true", "f": "false", "n": "null"}


@dataclass(frozen=True)
class Branch:
    """One way to write a value; `enters` counts the recursive definitions it goes into."""

    field: Field
    enters: int = 0


def selector_texts(branches: Sequence[Branch], schema: Schema, *, factored: bool) -> tuple[str, list[tuple[str, ...]]]:
    """(text that all branches begin with, the texts that stand for each branch behind it).

    Texts are cut where they differ, at the end of a word. `factored` takes the common beginning out; else it is "".
    """
    openings = [tuple(dict.fromkeys(_openings(branch.field))) for branch in branches]
    every = [text for part in openings for text in part]
    if len(set(every)) < len(every):  # told apart by their properties, else by number
        openings = [(text,) for text in _outlines(branches)]
        every = [text for (text,) in openings]
    cut = {text: _cut(text, [other for other in every if other != text]) for text in every}
    openings = [tuple(dict.fromkeys(cut[text] for text in part)) for part in openings]
    if not factored:
        return "", openings
    every = [text for part in openings for text in part]
    common = every[0]
    for text in every[1:]:
        common = common[: _shared(common, text)]
    if any(text == common for text in every):
        return "", openings
    return common, [tuple(text[len(common) :] for text in part) for part in openings]


def _openings(field: Field) -> list[str]:
    """The beginnings of the JSON texts of a field, up to where something is to be filled in."""
    if isinstance(field, ConstField):
        return [field.json]
    if is_leaf(field):
        dfa = json_dfa(field)
        firsts = [chr(byte) for byte in np.flatnonzero(dfa.table[0] >= 0).tolist() if byte < 0x80]
        return [_WORDS.get(first, first) for first in firsts]
    if isinstance(field, UnionField):
        return [text for option in field.options for text in _openings(option)]
    return [_literal(field)[0]]


def _literal(field: Field) -> tuple[str, bool]:
    """(literal text from the start of a field to its first slot, whether the field is nothing but literal)."""
    if isinstance(field, ConstField):
        return field.json, True
    if isinstance(field, ObjectField):
        text = "{"
        for index, member in enumerate(field.members):
            text += (", " if index else "") + json.dumps(member.name, ensure_ascii=False) + ": "
            more, whole = _literal(member.field)
            text += more
            if not whole or member.field.nullable:
                return text, False
        return (text + '"', False) if field.entries else (text + "}", True)
    if isinstance(field, ArrayField):
        return "[", False
    return "", False


def _shared(a: str, b: str) -> int:
    """Characters that two texts begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cut(text: str, others: Sequence[str]) -> str:
    """The beginning of a text that no other shares, to the end of the word there; all of it where another goes on from it."""
    shared = max((_shared(text, other) for other in others), default=0)
    if shared >= len(text):
        return text
    end = shared + 1
    while end < len(text) and (text[end - 1].isalnum() or text[end - 1] in "_-") and (text[end].isalnum() or text[end] in "_-"):
        end += 1
    return text[:end]


def _outlines(branches: Sequence[Branch]) -> list[str]:
    """One text a branch: the names of its properties, its title, its number, as far as they are needed."""
    texts = []
    for branch in branches:
        field = branch.field
        if isinstance(field, ObjectField):
            texts.append("{" + ", ".join(json.dumps(m.name, ensure_ascii=False) for m in field.members))
        else:
            texts.append(_openings(field)[0])
    if len(set(texts)) < len(texts):
        texts = [f"{text} {branch.field.title}" if branch.field.title else text for text, branch in zip(texts, branches, strict=True)]
    if len(set(texts)) < len(texts):
        texts = [f"{index + 1} {text}" for index, text in enumerate(texts)]
    return texts
