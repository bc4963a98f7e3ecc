"""The typed tree that a schema compiles to.

Every node describes a set of values that lies inside what its schema allows: what a field can write is valid, though not
everything valid can be written (free text has no control characters, undeclared properties are not invented).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Field:
    """A node of the tree. `pointer` is its place in the schema, `budget` the caller's own number of tokens."""

    pointer: str = ""
    title: str = ""
    description: str = ""
    nullable: bool = False
    budget: int | None = None


@dataclass(frozen=True, kw_only=True)
class StringField(Field):
    """Text. Lengths in code points, as JSON Schema counts them.

    `patterns` must all be found in the text and none of `unlike`; `barred` texts are excluded.
    """

    min_length: int = 0
    max_length: int | None = None
    patterns: tuple[str, ...] = ()
    format: str | None = None
    unlike: tuple[str, ...] = ()
    barred: tuple[str, ...] = ()

    @property
    def shaped(self) -> bool:
        """Whether more than the length is constrained."""
        return bool(self.patterns or self.format or self.unlike or self.barred)


@dataclass(frozen=True, kw_only=True)
class NumberField(Field):
    """An integer or a decimal number; bounds as written, `open` when the bound itself is excluded.

    `multiples` must all divide the value. `at_least` names an earlier sibling (property or place) whose value is a lower
    bound too: JSON Schema has no word for that, ours is `x-at-least`.
    """

    integer: bool = False
    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    high_open: bool = False
    multiples: tuple[Decimal, ...] = ()
    at_least: str | None = None


@dataclass(frozen=True, kw_only=True)
class BooleanField(Field):
    """true or false."""


@dataclass(frozen=True, kw_only=True)
class ChoiceField(Field):
    """One of several scalars; `texts[i]` is how `values[i]` is written in a slot."""

    values: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def quoted(self) -> bool:
        """Whether the slot stands between quotes."""
        return any(isinstance(value, str) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class ConstField(Field):
    """A value the schema fixes, kept as JSON text so that the tree stays hashable."""

    json: str = "null"

    @property
    def value(self) -> Any:
        """The value itself."""
        return json.loads(self.json)


@dataclass(frozen=True, kw_only=True)
class UnionField(Field):
    """One of several fields, none of which is null by itself (that is what `nullable` says).

    A union of leaves is one slot. A union with an object or array in it is chosen by a selector before its value is laid out.
    """

    options: tuple[Field, ...] = ()

    @property
    def is_leaf(self) -> bool:
        """Whether one slot holds it."""
        return all(isinstance(option, LEAVES) for option in self.options)

    @property
    def quoted(self) -> bool:
        """Whether all options are strings: then the quotes are given, and the slot holds raw text. Else it holds JSON text."""
        return all(is_text(option) for option in self.options)


@dataclass(frozen=True, kw_only=True)
class ArrayField(Field):
    """A list of up to `max_items` items (None: the scaffold's own cap).

    The first places have fields of their own in `prefix`; `items` is for the others, None when there are none.
    """

    items: Field | None
    prefix: tuple[Field, ...] = ()
    min_items: int = 0
    max_items: int | None = None
    unique: bool = False

    def item(self, index: int) -> Field:
        """The field of a place."""
        if index < len(self.prefix):
            return self.prefix[index]
        assert self.items is not None
        return self.items


@dataclass(frozen=True)
class Member:
    """A property of an object."""

    name: str
    field: Field
    required: bool


@dataclass(frozen=True)
class Entry:
    """Properties whose names are found on the page: the language of the names, and their values."""

    key: StringField
    field: Field


@dataclass(frozen=True, kw_only=True)
class ObjectField(Field):
    """An object with its properties in the order of declaration, then those with free names.

    `closed`: whether the schema allows no other properties than members and entries. `alternatives`: sets of names of which at
    least one must be there as a whole, beside what is required anyway.
    """

    members: tuple[Member, ...] = ()
    entries: tuple[Entry, ...] = ()
    min_members: int = 0
    max_members: int | None = None
    closed: bool = False
    alternatives: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RefField(Field):
    """A definition that contains itself; `target` is its key in :attr:`Schema.definitions`."""

    target: str = ""


LEAVES = (StringField, NumberField, BooleanField, ChoiceField, ConstField)


@dataclass(frozen=True)
class Schema:
    """A compiled schema.

    Attributes:
        root: the tree. definitions: fields that refer to themselves, by the `$ref` that names them.
        unchecked: what a lenient reading left out, as 'pointer: keyword'; results need not satisfy it.
    """

    root: Field
    definitions: Mapping[str, Field] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()


def is_text(option: Field) -> bool:
    """Whether all values of a leaf are strings."""
    if isinstance(option, ChoiceField):
        return all(isinstance(value, str) for value in option.values)
    if isinstance(option, ConstField):
        return isinstance(option.value, str)
    return isinstance(option, StringField)


def is_leaf(option: Field) -> bool:
    """Whether one slot, or a literal, holds the field."""
    return isinstance(option, LEAVES) or (isinstance(option, UnionField) and option.is_leaf)


def heights(definitions: Mapping[str, Field]) -> dict[str, float]:
    """For each definition, how often definitions must be entered to write its shortest value; inf when none is finite."""
    found = dict.fromkeys(definitions, float("inf"))
    while True:
        new = {name: height(target, found) for name, target in definitions.items()}
        if new == found:
            return found
        found = new


def height(node: Field, known: Mapping[str, float]) -> float:
    """How often definitions must be entered to write the shortest value (not null) of a field."""
    if isinstance(node, RefField):
        return 1 + known[node.target]
    if isinstance(node, UnionField):
        return min(height(option, known) for option in node.options)
    if isinstance(node, ObjectField):
        needed = [m.field for m in node.members if m.required and not m.field.nullable]
        short = node.min_members - sum(m.required for m in node.members)
        spare = [m.field for m in node.members if not m.required] + [e.field for e in node.entries]
        if short > 0 and spare:
            needed += sorted(spare, key=lambda f: 0 if f.nullable else height(f, known))[:short]
        least = max((0 if f.nullable else height(f, known) for f in needed), default=0)
        by_name = {m.name: 0 if m.field.nullable else height(m.field, known) for m in node.members}
        sets = [max((by_name[name] for name in names), default=0) for names in node.alternatives]
        return max(least, min(sets, default=0))
    if isinstance(node, ArrayField):
        items = [node.item(i) for i in range(min(node.min_items, len(node.prefix) + 1))]
        return max((0 if f.nullable else height(f, known) for f in items), default=0)
    return 0
