"""Which values a field admits, and how the branches of `oneOf` are kept apart.

`oneOf` demands that exactly one branch accepts a value. Branches are therefore cut down until every value that one of them
can write is refused by all others; where that cannot be shown, the schema is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from vlm.errors import SchemaError
from vlm.structure.automaton import json_dfa, leaf_dfa
from vlm.structure.conjunction import NeverError, same
from vlm.structure.fields import (
    ArrayField,
    BooleanField,
    ChoiceField,
    ConstField,
    Field,
    NumberField,
    ObjectField,
    RefField,
    StringField,
    UnionField,
    is_leaf,
    is_text,
)


def admits(field: Field, value: Any) -> bool | None:
    """Whether a value is valid under a field; None when that is not known (references, open names)."""
    if value is None:
        return field.nullable or (isinstance(field, ConstField) and field.json == "null")
    if isinstance(field, ConstField):
        return same(field.value, value)
    if isinstance(field, ChoiceField):
        return any(same(value, option) for option in field.values)
    if isinstance(field, UnionField):
        return _any([admits(option, value) for option in field.options])
    if isinstance(field, RefField):
        return None
    if isinstance(field, BooleanField):
        return isinstance(value, bool)
    if isinstance(field, StringField):
        return isinstance(value, str) and leaf_dfa(field).accepts(value)
    if isinstance(field, NumberField):
        return not isinstance(value, bool) and isinstance(value, int | float) and _number_fits(field, Decimal(repr(value)))
    if isinstance(field, ArrayField):
        return _array_fits(field, value)
    assert isinstance(field, ObjectField)
    return _object_fits(field, value)


def _number_fits(field: NumberField, value: Decimal) -> bool:
    low = field.low is None or value > field.low or (value == field.low and not field.low_open)
    high = field.high is None or value < field.high or (value == field.high and not field.high_open)
    whole = not field.integer or value == value.to_integral_value()
    return low and high and whole and all(value % multiple == 0 for multiple in field.multiples)


def _array_fits(field: ArrayField, value: Any) -> bool | None:
    if not isinstance(value, list) or len(value) < field.min_items or (field.max_items is not None and len(value) > field.max_items):
        return False
    if field.unique and any(same(a, b) for i, a in enumerate(value) for b in value[:i]):
        return False
    if field.items is None and len(value) > len(field.prefix):
        return None
    return _all([admits(field.item(i), item) for i, item in enumerate(value)])


def _object_fits(field: ObjectField, value: Any) -> bool | None:
    if not isinstance(value, Mapping) or len(value) < field.min_members or (field.max_members is not None and len(value) > field.max_members):
        return False
    members = {member.name: member for member in field.members}
    if any(member.required and name not in value for name, member in members.items()):
        return False
    if field.alternatives and not any(all(name in value for name in names) for names in field.alternatives):
        return False
    known = _all([admits(members[name].field, item) for name, item in value.items() if name in members])
    strange = any(name not in members for name in value)
    if known is False or (strange and field.closed and not field.entries):
        return False
    return None if strange and field.entries else known


def _all(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _any(answers: Sequence[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def kind_of(field: Field) -> frozenset[str]:
    """JSON types that the values of a field (null aside) have; integers are numbers."""
    if isinstance(field, UnionField):
        return frozenset().union(*map(kind_of, field.options))
    if isinstance(field, ChoiceField | ConstField):
        values = field.values if isinstance(field, ChoiceField) else (field.value,)
        return frozenset(_type(value) for value in values)
    kinds = {
        StringField: "string", NumberField: "number", BooleanField: "boolean", ArrayField: "array", ObjectField: "object", RefField: "any",
    }  # fmt: skip
    return frozenset((kinds[type(field)],))


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    return "null" if value is None else "number" if isinstance(value, int | float) else "object" if isinstance(value, Mapping) else "array"


def disjoint(a: Field, b: Field) -> bool:
    """Whether it is certain that no value (null aside) that `a` writes is valid under `b`."""
    kinds = kind_of(a), kind_of(b)
    if "any" in kinds[0] | kinds[1]:
        return False
    if not kinds[0] & kinds[1]:
        return True
    if isinstance(a, UnionField):
        return all(disjoint(option, b) for option in a.options)
    if isinstance(b, UnionField):
        return all(disjoint(a, option) for option in b.options)
    if isinstance(a, ChoiceField | ConstField):
        values = a.values if isinstance(a, ChoiceField) else (a.value,)
        return all(admits(b, value) is False for value in values)
    if isinstance(b, ChoiceField | ConstField):
        values = b.values if isinstance(b, ChoiceField) else (b.value,)
        return all(admits(a, value) is False for value in values)
    if is_leaf(a) and is_leaf(b):
        return json_dfa(a).combine(json_dfa(b), both=True).is_empty
    if isinstance(a, ArrayField) and isinstance(b, ArrayField):
        return _arrays_disjoint(a, b)
    assert isinstance(a, ObjectField) and isinstance(b, ObjectField)
    return _objects_disjoint(a, b)


def _arrays_disjoint(a: ArrayField, b: ArrayField) -> bool:
    if (a.max_items is not None and a.max_items < b.min_items) or (b.max_items is not None and b.max_items < a.min_items):
        return True
    places = min(a.min_items, max(len(a.prefix), len(b.prefix)) + 1)
    if (b.items is None or a.items is None) and places > min(len(a.prefix), len(b.prefix)):
        places = min(len(a.prefix), len(b.prefix))
    return any(_apart(a.item(i), b.item(i)) for i in range(places))


def _apart(a: Field, b: Field) -> bool:
    return disjoint(a, b) and not (a.nullable and b.nullable)


def _objects_disjoint(a: ObjectField, b: ObjectField) -> bool:
    mine, theirs = ({m.name: m for m in side.members} for side in (a, b))
    if a.max_members is not None and a.max_members < b.min_members:
        return True
    if any(m.required and name not in mine and not _may_name(a, name) for name, m in theirs.items()):
        return True
    for name, member in mine.items():
        if not member.required:
            continue
        if name not in theirs and b.closed and not _may_name(b, name):
            return True
        if name in theirs and _apart(member.field, theirs[name].field):
            return True
    return False


def _may_name(field: ObjectField, name: str) -> bool:
    return any(leaf_dfa(entry.key).accepts(name) for entry in field.entries)


def keep_apart(fields: Sequence[Field], pointer: str) -> list[Field]:
    """The options of a `oneOf`, cut down until no value of one is valid under another; SchemaError when that fails."""
    out: list[Field] = []
    for index, option in enumerate(fields):
        mine = option
        for other in (f for i, f in enumerate(fields) if i != index):
            try:
                mine = _without(mine, other)
            except NeverError:
                mine = None  # type: ignore[assignment]
                break
            except _TogetherError:
                raise SchemaError(
                    "a value may match two branches of oneOf", pointer=pointer, remedy="Use anyOf, or give the branches different constants"
                ) from None
        if mine is not None:
            out.append(mine)
    if not out:
        raise NeverError("the branches of oneOf exclude each other", pointer=pointer)
    return out


class _TogetherError(Exception):
    """Two branches cannot be told apart."""


def _without(a: Field, b: Field) -> Field:
    """`a` less what `b` accepts."""
    if disjoint(a, b):
        return a
    if isinstance(a, UnionField):
        parts = []
        for option in a.options:
            try:
                parts.append(_without(option, b))
            except NeverError:
                continue
        if not parts:
            raise NeverError("nothing is left")
        return replace(a, options=tuple(parts)) if len(parts) > 1 else parts[0]
    if isinstance(a, ChoiceField):
        kept = [i for i, value in enumerate(a.values) if admits(b, value) is False]
        if not kept:
            raise NeverError("nothing is left")
        return replace(a, values=tuple(a.values[i] for i in kept), texts=tuple(a.texts[i] for i in kept))
    if isinstance(a, ConstField):
        if admits(b, a.value) is None:
            raise _TogetherError
        raise NeverError("nothing is left")
    if isinstance(a, StringField):
        return _text_without(a, b)
    if isinstance(a, ObjectField) and isinstance(b, ObjectField):
        return _object_without(a, b)
    raise _TogetherError


def _text_without(a: StringField, b: Field) -> StringField:
    parts = [p for p in (b.options if isinstance(b, UnionField) else (b,)) if "string" in kind_of(p)]
    for part in parts:
        if isinstance(part, ChoiceField) and is_text(part):
            a = replace(a, barred=(*a.barred, *part.texts))
        elif isinstance(part, ConstField):
            a = replace(a, barred=(*a.barred, part.value))
        elif isinstance(part, StringField) and part.patterns and not part.format and not part.unlike:
            a = replace(a, unlike=(*a.unlike, part.patterns[0]))
        else:
            raise _TogetherError
    if leaf_dfa(a).is_empty:
        raise NeverError("nothing is left")
    return a


def _object_without(a: ObjectField, b: ObjectField) -> ObjectField:
    """Leave out an optional member that `b` demands, or demand one that `b` refuses."""
    theirs = {m.name: m for m in b.members}
    for member in a.members:
        there = theirs.get(member.name)
        if not member.required and (there is None or _apart(member.field, there.field)):
            refused = b.closed and not _may_name(b, member.name) if there is None else True
            if refused:
                changed = replace(a, members=tuple(replace(m, required=True) if m is member else m for m in a.members))
                if disjoint(changed, b):
                    return changed
    for member in a.members:
        used = any(member.name in names for names in a.alternatives)
        if not used and not member.required and member.name in theirs and theirs[member.name].required and not _may_name(a, member.name):
            return replace(a, members=tuple(m for m in a.members if m is not member), closed=a.closed)
    raise _TogetherError
