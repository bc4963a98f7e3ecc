"""Objects and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlm.errors import SchemaError
from vlm.structure.automaton import leaf_dfa
from vlm.structure.conjunction import At, NeverError, both, escape, matching
from vlm.structure.exclusive import admits
from vlm.structure.fields import ArrayField, ChoiceField, ConstField, Entry, Field, Member, NumberField, ObjectField, StringField, is_leaf
from vlm.structure.leaves import common, count
from vlm.structure.regex import check_pattern

if TYPE_CHECKING:
    from vlm.structure.compiler import Compiler

KEY_BUDGET = 16  # cells of a property name that is read off the page


def build_object(compiler: Compiler, node: Mapping[str, Any], pointer: str, nullable: bool) -> Field:
    """An object. Properties the schema does not name are written only where it describes them, or names none at all."""
    low = count(node, "minProperties", pointer) or 0
    high = count(node, "maxProperties", pointer)
    if high is not None and high < low:
        raise NeverError(f"maxProperties {high} is below minProperties {low}", pointer=f"{pointer}/maxProperties")
    named: Mapping[str, At] = node.get("properties", {})
    shaped: Mapping[str, At] = node.get("patternProperties", {})
    for pattern in shaped:
        check_pattern(pattern, f"{pointer}/patternProperties/{escape(pattern)}")
    extra: At = node.get("additionalProperties", At(True, f"{pointer}/additionalProperties"))
    required = node.get("required", [])
    members = _members(compiler, named, shaped, extra, required, pointer)
    keys = _key_field(compiler, node)
    if keys is not None:
        members = _with_allowed_names(members, keys, pointer)
    entries: list[Entry] = []
    if high is None or high > sum(m.required for m in members):
        entries = _entries(compiler, named, shaped, extra, keys, bare=not members and not shaped, needed=low > len(members), pointer=pointer)
    if isinstance(keys, ChoiceField):
        members, entries = _names_listed(compiler, members, keys, shaped, extra, low > len(members) or not members), []
    if sum(m.required for m in members) > (high if high is not None else len(members)):
        raise NeverError("more properties are required than maxProperties allows", pointer=pointer)
    if low > len(members) + sum(len(leaf_dfa(entry.key).words(low)) for entry in entries):
        raise NeverError("fewer properties are possible than minProperties demands", pointer=pointer)
    if not members and not entries:
        return ConstField(json="{}", pointer=pointer) if not nullable else ObjectField(**common(node, pointer, nullable))
    return ObjectField(
        members=tuple(members), entries=tuple(entries), min_members=low, max_members=high, closed=extra.schema is False, **common(node, pointer, nullable)
    )


def _members(
    compiler: Compiler, named: Mapping[str, At], shaped: Mapping[str, At], extra: At, required: list[str], pointer: str
) -> list[Member]:
    out = []
    for name in dict.fromkeys((*named, *required)):
        found = named.get(name)
        fitting = [shaped[pattern] for pattern in matching(shaped, name)]
        if found is None and not fitting:
            found = extra
        for part in fitting:
            found = part if found is None else both(found, part)
        assert found is not None
        try:
            field = compiler.parse(found)
        except NeverError:
            if name in required or not _is_hopeless(found):
                raise
            continue
        out.append(Member(name, field, name in required))
    return out


def _is_hopeless(at: At) -> bool:
    """Whether a schema that allows nothing is so on purpose, or by joining others, and not by a slip in its own keywords."""
    return at.schema is False or (isinstance(at.schema, Mapping) and any(k in at.schema for k in ("allOf", "anyOf", "oneOf", "$ref", "not")))


def _key_field(compiler: Compiler, node: Mapping[str, Any]) -> Field | None:
    """The field of property names, None when they are free."""
    at = node.get("propertyNames")
    if at is None or at.anything:
        return None
    schema = at.schema
    if isinstance(schema, Mapping) and "type" not in schema:
        schema = {"type": "string", **schema}
    field = compiler.parse(At(schema, at.pointer))
    if isinstance(field, ConstField):
        field = ChoiceField(values=(field.value,), texts=(str(field.value),))
    if not isinstance(field, StringField | ChoiceField):
        raise SchemaError("propertyNames is more than one kind of string", pointer=at.pointer, remedy="Use one pattern, or an enum")
    return field


def _with_allowed_names(members: list[Member], keys: Field, pointer: str) -> list[Member]:
    out = []
    for member in members:
        if admits(keys, member.name):
            out.append(member)
        elif member.required:
            raise NeverError(f"{member.name!r} is required and not among propertyNames", pointer=f"{pointer}/propertyNames")
    return out


def _names_listed(
    compiler: Compiler, members: list[Member], keys: ChoiceField, shaped: Mapping[str, At], extra: At, wanted: bool
) -> list[Member]:
    """With an enum of names, those that a pattern describes are optional members, and if they are `wanted` all others too."""
    have = {m.name for m in members}
    out = list(members)
    for name in (str(value) for value in keys.values if value not in have):
        fitting = [shaped[pattern] for pattern in matching(shaped, name)]
        at = fitting[0] if fitting else extra
        for part in fitting[1:]:
            at = both(at, part)
        (field,) = compiler.possible([at]) if fitting or wanted else (None,)
        if field is not None:
            out.append(Member(name, field, False))
    return out


def _entries(
    compiler: Compiler, named: Mapping[str, At], shaped: Mapping[str, At], extra: At, keys: Field | None, *, bare: bool, needed: bool, pointer: str
) -> list[Entry]:
    """Groups of properties with free names, their languages apart from each other and from the declared names."""
    groups: list[tuple[tuple[str, ...], tuple[str, ...], At]] = [((pattern,), tuple(p for p in shaped if p != pattern), at) for pattern, at in shaped.items()]
    if extra.schema is not False and (bare or needed):
        groups.append(((), tuple(shaped), extra))
    out = []
    for patterns, unlike, at in groups:
        if unlike:  # dialects of patterns differ beyond ASCII, and these names must not match
            patterns = (*patterns, "^[ -~]*$")
        key = StringField(min_length=1, patterns=patterns, unlike=unlike, barred=tuple(named), budget=KEY_BUDGET, pointer=at.pointer)
        if isinstance(keys, StringField):
            key = replace(
                key, min_length=max(1, keys.min_length), max_length=keys.max_length, patterns=(*key.patterns, *keys.patterns), format=keys.format
            )
        if leaf_dfa(key).is_empty:
            continue
        try:
            out.append(Entry(key, compiler.parse(at)))
        except NeverError:
            continue
    return out


def build_array(compiler: Compiler, node: Mapping[str, Any], pointer: str, nullable: bool) -> ArrayField:
    """An array. Places behind `prefixItems` are written only where `items` describes them."""
    low = count(node, "minItems", pointer) or 0
    high = count(node, "maxItems", pointer)
    if high is not None and high < low:
        raise NeverError(f"maxItems {high} is below minItems {low}", pointer=f"{pointer}/maxItems")
    ats: list[At] = node.get("prefixItems", [])
    rest: At = node.get("items", At(True, f"{pointer}/items"))
    prefix: list[Field] = []
    for place in compiler.possible(ats):
        if place is None:
            high = len(prefix) if high is None else min(high, len(prefix))
            break
        prefix.append(place)
    items = None
    if rest.schema is not False and (not ats or low > len(ats) or not rest.anything):
        (items,) = compiler.possible([rest])
    if items is None:
        high = len(prefix) if high is None else min(high, len(prefix))
    if high is not None and high < low:
        raise NeverError("fewer items are possible than minItems demands", pointer=pointer)
    unique = node.get("uniqueItems") is True
    if unique and items is not None:
        values = _distinct(items)
        high = values if high is None and values is not None and not prefix and values < 8 else high
        if values is not None and values + len(prefix) < low:
            raise NeverError("fewer different items are possible than minItems demands", pointer=pointer)
    if unique and low > 1 and (prefix or items is None or not is_leaf(items)):
        raise SchemaError("uniqueItems of objects beside minItems", pointer=f"{pointer}/uniqueItems", remedy="Lower minItems to 1")
    if high is not None:
        prefix = prefix[:high]
    return ArrayField(items=items, prefix=tuple(prefix), min_items=low, max_items=high, unique=unique, **common(node, pointer, nullable))


def _distinct(field: Field) -> int | None:
    """How many values a field has, up to 64; None when that is not known (and probably many)."""
    if isinstance(field, ConstField):
        return 1
    if not is_leaf(field) or (isinstance(field, NumberField) and not field.integer):
        return None
    return len(leaf_dfa(field).words(64)) + field.nullable
