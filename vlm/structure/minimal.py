"""The shortest valid values: what stands in, marked as forced, where a schema demands a value and there is none."""

from __future__ import annotations

import json
import math
from typing import Any

from vlm.structure.automaton import MAX_COUNTED, leaf_dfa
from vlm.structure.conjunction import same
from vlm.structure.exclusive import admits
from vlm.structure.fields import (
    ArrayField,
    BooleanField,
    ChoiceField,
    ConstField,
    Field,
    NumberField,
    ObjectField,
    RefField,
    Schema,
    StringField,
    UnionField,
    height,
    heights,
    is_leaf,
)


def convert(field: Field, text: str) -> Any:
    """The JSON value that an accepted text of a slot stands for."""
    if isinstance(field, NumberField):
        return int(text) if field.integer else float(text)
    if isinstance(field, BooleanField):
        return text == "true"
    if isinstance(field, ChoiceField):
        return field.values[field.texts.index(text)]
    if isinstance(field, UnionField) and not field.quoted:
        return json.loads(text)
    return text


def in_bounds(field: Field, text: str) -> bool:
    """Whether a number survives rounding to a float: 0.99999999999999999999 is below 1 in decimal, not as a float."""
    if isinstance(field, UnionField):
        return field.quoted or text[:1] not in "-0123456789" or any(_exact(option, text) for option in field.options)
    return not isinstance(field, NumberField) or _exact(field, text)


def _exact(field: Field, text: str) -> bool:
    if not isinstance(field, NumberField):
        return not isinstance(field, StringField | BooleanField) and leaf_dfa(field).accepts(text)
    if not leaf_dfa(field).accepts(text):
        return False
    if field.integer:
        return True
    value = float(text)
    return math.isfinite(value) and bool(admits(field, value))


def minimal(field: Field) -> Any:
    """The shortest valid value of a leaf."""
    if isinstance(field, ChoiceField):
        return field.values[0]
    if isinstance(field, ConstField):
        return field.value
    shaped = isinstance(field, StringField) and field.shaped
    return convert(field, leaf_dfa(field, counted=shaped).shortest.decode())


def distinct(field: Field, count: int, used: list[Any]) -> list[Any]:
    """Up to `count` short values of a leaf that differ from each other and from those used."""
    if isinstance(field, ConstField):
        found = [field.value]
    elif isinstance(field, ChoiceField):
        found = list(field.values)
    else:
        long = isinstance(field, StringField) and (field.max_length or 0) > MAX_COUNTED
        found = [convert(field, word.decode()) for word in leaf_dfa(field, counted=not long).words(4 * (count + len(used)) + 8)]
    found += [None] * field.nullable
    out: list[Any] = []
    for value in found:
        if len(out) < count and not any(same(value, other) for other in (*used, *out)):
            out.append(value)
    return out


class Minimal:
    """Shortest values of whole trees."""

    def __init__(self, schema: Schema) -> None:
        self.definitions = schema.definitions
        self.heights = heights(schema.definitions)

    def __call__(self, field: Field) -> Any:
        """A value of a field, null only where nothing else is allowed."""
        if isinstance(field, RefField):
            return self(self.definitions[field.target])
        if isinstance(field, ObjectField):
            return self._object(field)
        if isinstance(field, ArrayField):
            return self._array(field)
        if isinstance(field, UnionField) and not field.is_leaf:
            return self(min(field.options, key=lambda option: height(option, self.heights)))
        return minimal(field)

    def or_null(self, field: Field) -> Any:
        """Null where that is allowed, else a value."""
        return None if field.nullable else self(field)

    def _object(self, field: ObjectField) -> dict[str, Any]:
        out = {m.name: self.or_null(m.field) for m in field.members if m.required}
        self.complete(field, out)
        return out

    def complete(self, field: ObjectField, out: dict[str, Any]) -> list[str]:
        """Add properties that one of the alternatives demands, and until there are enough; returns the names added."""
        added: list[str] = []
        if field.alternatives:
            fields = {m.name: m.field for m in field.members}
            for name in min(([name for name in names if name not in out] for names in field.alternatives), key=len):
                out[name] = self.or_null(fields[name])
                added.append(name)
        spare = sorted((m for m in field.members if m.name not in out), key=lambda m: 0 if m.field.nullable else height(m.field, self.heights))
        for member in spare[: max(field.min_members - len(out), 0)]:
            out[member.name] = self.or_null(member.field)
            added.append(member.name)
        for entry in field.entries:
            missing = field.min_members - len(out)
            if missing > 0:
                for name in distinct(entry.key, missing, list(out)):
                    out[name] = self.or_null(entry.field)
                    added.append(name)
        return added

    def _array(self, field: ArrayField) -> list[Any]:
        items = [field.item(i) for i in range(field.min_items)]
        if field.unique and field.min_items > 1 and is_leaf(items[-1]):
            return distinct(items[-1], field.min_items, [])
        return [self.or_null(item) for item in items]
