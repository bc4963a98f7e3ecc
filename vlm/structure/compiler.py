"""Schema objects to fields: references, combinators, types.

Every field lies inside what its schema allows; a keyword that cannot be guaranteed is a SchemaError with its JSON
pointer, or in a lenient reading left out and noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm.errors import SchemaError
from vlm.structure.conjunction import ANNOTATIONS, At, NeverError, conjoin, normalise
from vlm.structure.exclusive import keep_apart
from vlm.structure.fields import ConstField, Field, ObjectField, RefField, Schema, UnionField, heights
from vlm.structure.leaves import build_leaf, listed
from vlm.structure.shapes import build_array, build_object

COMBINATORS = ("anyOf", "oneOf", "allOf")
BY_TYPE = {
    "object": frozenset("properties required additionalProperties patternProperties propertyNames minProperties maxProperties".split()),
    "array": frozenset("items prefixItems minItems maxItems uniqueItems".split()),
    "string": frozenset("minLength maxLength pattern format".split()),
    "integer": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf format".split()),
    "number": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf format".split()),
    "boolean": frozenset(),
    "null": frozenset(),
}
KNOWN = frozenset(("type", "enum", "const", "nullable", "x-budget", "x-at-least")).union(ANNOTATIONS, *BY_TYPE.values())
REMEDIES = {
    "not": "State what is allowed instead",
    "if": "Make the dependent fields optional",
    "dependentRequired": "Make the dependent fields optional",
    "dependencies": "Make the dependent fields optional",
    "contains": "Use 'items'",
    "unevaluatedProperties": "Use 'additionalProperties'",
    "unevaluatedItems": "Use 'items'",
    "$dynamicRef": "Use a local $ref",
    "$recursiveRef": "Use a local $ref",
}
MAX_DEPTH = 24
MAX_NODES = 50_000
MAX_BRANCHES = 256


@dataclass(frozen=True)
class _Group:
    """Alternatives that hold beside the rest of a schema object."""

    keyword: str
    options: tuple[At, ...]
    pointer: str


class Compiler:
    """Walks one schema document.

    Args:
        document: for local references. lenient: leave out what cannot be guaranteed instead of refusing it.
    """

    def __init__(self, document: Any, lenient: bool = False) -> None:
        self.document, self.lenient = document, lenient
        self.unchecked: dict[str, None] = {}
        self.under_way: list[str] = []
        self.parsed: dict[str, Field] = {}
        self.recursive: set[str] = set()
        self.nodes = 0

    def compile(self) -> Schema:
        """The whole document."""
        root = self._follow("#", At(self.document, ""), At(self.document, ""))
        while missing := sorted(self.recursive - self.parsed.keys()):
            for ref in missing:
                self._follow(ref, self._target(ref, ""), At({}, ""))
        definitions = {ref: self.parsed[ref] for ref in sorted(self.recursive)}
        for ref, height in heights(definitions).items():
            if height == float("inf"):
                raise SchemaError(f"$ref {ref!r} demands itself without end", pointer=ref[1:], remedy="Make a level optional")
        return Schema(root, definitions, tuple(self.unchecked))

    def parse(self, at: At, *, plain: bool = True) -> Field:
        """The field of a subschema. `plain`: not one that is parsed because a reference to it was followed."""
        node = at.schema
        if plain and isinstance(node, Mapping) and isinstance(node.get("$ref"), str) and all(k in ANNOTATIONS or k == "$ref" for k in node):
            return self._follow(node["$ref"], self._target(node["$ref"], at.pointer), at)
        if at.pointer.count("/") > 4 * MAX_DEPTH:
            raise SchemaError(f"nests deeper than {MAX_DEPTH} levels", pointer=at.pointer)
        depth = len(self.under_way)
        try:
            return self._build(*self._flatten(at), at.pointer)
        finally:
            del self.under_way[depth:]

    def _follow(self, ref: str, target: At, at: At) -> Field:
        """A definition, once; a reference to one that is under way becomes a RefField."""
        if ref in self.under_way:
            self.recursive.add(ref)
            found: Field = RefField(target=ref, pointer=at.pointer)
        else:
            if ref not in self.parsed:
                depth = len(self.under_way)
                self.under_way.append(ref)
                try:
                    self.parsed[ref] = self.parse(target, plain=not self._is_ref(target) or target.schema.get("$ref") != ref)
                finally:
                    del self.under_way[depth:]
            found = self.parsed[ref]
            if ref in self.recursive and not isinstance(found, RefField) and ref != "#":
                found = RefField(target=ref, pointer=found.pointer, nullable=found.nullable)
        node = at.schema if isinstance(at.schema, Mapping) else {}
        words = {key: node[key] for key in ("title", "description") if isinstance(node.get(key), str)}
        return replace(found, **words) if words else found

    @staticmethod
    def _is_ref(at: At) -> bool:
        return isinstance(at.schema, Mapping) and "$ref" in at.schema

    def _target(self, ref: Any, pointer: str) -> At:
        where = f"{pointer}/$ref"
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise SchemaError(f"$ref {ref!r} is not local", pointer=where, remedy="Copy the definition under $defs")
        target: Any = self.document
        for step in ref[2:].split("/") if len(ref) > 1 else ():
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, Mapping) and (step in target or _unquoted(step) in target):
                target = target[step] if step in target else target[_unquoted(step)]
            else:
                raise SchemaError(f"$ref {ref!r} leads nowhere", pointer=where)
        if not isinstance(target, Mapping | bool):
            raise SchemaError(f"$ref {ref!r} leads to no schema object", pointer=where)
        return At(target, ref[1:])

    def _flatten(self, at: At) -> tuple[dict[str, Any], list[_Group]]:
        """A subschema as one schema object without references and `allOf`, and its groups of alternatives.

        References that are followed on the way stay under way until the caller is done.
        """
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise SchemaError(f"has more than {MAX_NODES} subschemas, references followed", remedy="Leave out what you do not need")
        node, pointer = at.schema, at.pointer
        if node is True:
            return {}, []
        if node is False:
            raise NeverError("nothing is allowed here", pointer=pointer)
        if not isinstance(node, Mapping):
            raise SchemaError(f"is {node!r}, not a schema object", pointer=pointer)
        own = {key: value for key, value in node.items() if key not in COMBINATORS and key != "$ref"}
        base = normalise(self._known(own, pointer), pointer)
        groups = [_Group(k, self._parts(node[k], f"{pointer}/{k}"), f"{pointer}/{k}") for k in ("anyOf", "oneOf") if k in node]
        parts: list[At] = []
        if "$ref" in node:
            ref = node["$ref"]
            target = self._target(ref, pointer)
            if ref in self.under_way:
                raise SchemaError(f"$ref {ref!r} refers to itself beside other keywords", pointer=f"{pointer}/$ref", remedy="Write out the levels you need")
            self.under_way.append(ref)
            parts.append(target)
        if "allOf" in node:
            parts += self._parts(node["allOf"], f"{pointer}/allOf")
        for part in parts:
            more, further = self._flatten(part)
            base, groups = conjoin(base, more, pointer), [*groups, *further]
        return base, groups

    def _parts(self, options: Any, pointer: str) -> tuple[At, ...]:
        if not isinstance(options, list) or not options:
            raise SchemaError("is no list of schemas", pointer=pointer)
        return tuple(option if isinstance(option, At) else At(option, f"{pointer}/{i}") for i, option in enumerate(options))

    def _known(self, node: dict[str, Any], pointer: str) -> dict[str, Any]:
        """The keywords that count; others are refused, or left out and noted."""
        out = {}
        for key, value in node.items():
            name = str(key)
            if name in KNOWN or name == "additionalItems":
                out[key] = value
            elif name.startswith("x-"):
                continue
            elif self.lenient:
                self.unchecked[f"{pointer or '/'}: {name}"] = None
            else:
                raise SchemaError(f"unsupported keyword {name!r}", pointer=f"{pointer}/{_escaped(name)}", remedy=REMEDIES.get(name, "Remove it"))
        return out

    def _build(self, base: dict[str, Any], groups: Sequence[_Group], pointer: str) -> Field:
        """The field of a flattened subschema."""
        if not groups:
            return self._plain(base, pointer)
        group, rest = groups[0], groups[1:]
        alone = not rest and all(key in ANNOTATIONS or key == "x-budget" for key in base)
        found = []
        for option in group.options:
            self.nodes += 1
            depth = len(self.under_way)
            try:
                if alone:
                    field = self.parse(option)
                else:
                    more, further = self._flatten(option)
                    field = self._build(conjoin(base, more, option.pointer), [*rest, *further], option.pointer)
                found.append(field)
            except NeverError:
                continue
            finally:
                del self.under_way[depth:]
        return self._described(self._joined(found, group), base)

    def _joined(self, found: Sequence[Field], group: _Group) -> Field:
        """Fields of alternatives as one."""
        nulls = sum(f.nullable or _is_null(f) for f in found)
        nullable = nulls == 1 if group.keyword == "oneOf" else nulls > 0
        real: list[Field] = []
        for field in found:
            if _is_null(field):
                continue
            field = replace(field, nullable=False)
            if group.keyword == "anyOf" and isinstance(field, UnionField):
                real += field.options
            else:
                real.append(field)
        if group.keyword == "oneOf" and len(real) > 1:
            try:
                real = keep_apart(real, group.pointer)
            except SchemaError:
                if not self.lenient:
                    raise
                self.leave_out(group.pointer.rpartition("/")[0], "oneOf")
        elif len(real) > 1:
            real = _differing_in_required(real)
        unique: dict[Field, Field] = {}
        for field in real:
            unique.setdefault(replace(field, pointer="", title="", description=""), field)
        real = list(unique.values())
        if len(real) > MAX_BRANCHES:
            raise SchemaError(f"more than {MAX_BRANCHES} alternatives", pointer=group.pointer)
        if not real:
            if nullable:
                return ConstField(json="null", pointer=group.pointer)
            raise NeverError("no alternative is possible", pointer=group.pointer)
        if len(real) == 1:
            return replace(real[0], nullable=nullable)
        flat = [part for field in real for part in (field.options if isinstance(field, UnionField) else (field,))]
        return UnionField(options=tuple(flat), nullable=nullable, pointer=group.pointer)

    @staticmethod
    def _described(field: Field, base: Mapping[str, Any]) -> Field:
        """With the title, description and budget that stand beside alternatives."""
        words = {key: base[key] for key in ("title", "description") if isinstance(base.get(key), str)}
        if isinstance(base.get("x-budget"), int):
            words["budget"] = base["x-budget"]
        return replace(field, **words) if words else field

    def _plain(self, base: dict[str, Any], pointer: str) -> Field:
        """The field of a schema object without combinators."""
        if "enum" in base or "const" in base:
            return listed(base, pointer, lambda rest: self._plain(rest, pointer))
        kinds, nullable = self._kinds(base)
        if not kinds:
            return ConstField(json="null", pointer=pointer)
        found: list[Field] = []
        for kind in kinds:
            try:
                found.append(self._typed(base, kind, pointer, nullable))
            except NeverError:
                if len(kinds) == 1 and not nullable:
                    raise
        if not found:
            if nullable:
                return ConstField(json="null", pointer=pointer)
            raise NeverError("no value is possible", pointer=pointer)
        if len(found) == 1:
            return found[0]
        options = tuple(replace(f, nullable=False, budget=None) for f in found)
        return self._described(UnionField(options=options, nullable=nullable, pointer=pointer), base)

    @staticmethod
    def _kinds(base: Mapping[str, Any]) -> tuple[list[str], bool]:
        """Types other than null, and whether null is allowed."""
        names = list(base.get("type", []))
        nullable = "null" in names or base.get("nullable") is True
        if "type" not in base:
            names = [kind for kind in ("object", "array", "string", "number") if (BY_TYPE[kind] - {"format"}) & set(base)][:1]
            if not names and "format" in base:
                names = ["string"]
            if not names:
                return ["string", "number", "boolean"], True
        names = [name for name in names if name != "null"]
        if "integer" in names and "number" in names:
            names.remove("integer")
        return names, nullable

    def _typed(self, base: dict[str, Any], kind: str, pointer: str, nullable: bool) -> Field:
        if kind == "object":
            return build_object(self, base, pointer, nullable)
        if kind == "array":
            return build_array(self, base, pointer, nullable)
        return build_leaf(base, kind, pointer, nullable, self.leave_out if self.lenient else None)

    def leave_out(self, pointer: str, keyword: str) -> None:
        """Note a keyword that a lenient reading does not check."""
        self.unchecked[f"{pointer or '/'}: {keyword}"] = None

    def possible(self, parts: Iterable[At]) -> list[Field | None]:
        """Fields of subschemas, None for those that allow nothing."""
        out: list[Field | None] = []
        for part in parts:
            try:
                out.append(self.parse(part))
            except NeverError:
                out.append(None)
        return out


def _differing_in_required(options: list[Field]) -> list[Field]:
    """Objects that differ in nothing but what they require become one, with alternatives; where that is not so, the same options."""
    objects = [option for option in options if isinstance(option, ObjectField) and not option.alternatives]
    if len(objects) < len(options):
        return options
    loose = {
        replace(o, pointer="", title="", description="", members=tuple(replace(m, field=_bare(m.field), required=False) for m in o.members)) for o in objects
    }
    required = [{m.name for m in o.members if m.required} for o in objects]
    always = set.intersection(*required)
    limit = objects[0].max_members
    if len(loose) > 1 or (limit is not None and limit < max(map(len, required))):
        return options
    members = tuple(replace(m, required=m.name in always) for m in objects[0].members)
    sets = tuple(tuple(m.name for m in members if m.name in names - always) for names in required)
    return [replace(objects[0], members=members, alternatives=() if () in sets else sets)]


def _bare(field: Field) -> Field:
    return replace(field, pointer="")


def _is_null(field: Field) -> bool:
    return isinstance(field, ConstField) and field.json == "null"


def _escaped(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")


def _unquoted(step: str) -> str:
    from urllib.parse import unquote

    return unquote(step)
