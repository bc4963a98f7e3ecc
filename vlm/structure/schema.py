"""JSON Schema to a typed tree of fields.

What is supported is what a scaffold can guarantee; every other keyword is a SchemaError that names the keyword, its
JSON pointer and a way out. A constraint is never dropped silently.

Keywords: `type` (one type, or one type and null), `properties`, `required`, `additionalProperties`, `items`,
`minItems`, `maxItems`, `enum`, `const`, `minLength`, `maxLength`, `pattern` (see `regex.py`), `format` (see
`automaton.FORMATS`), `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf` (of integers),
`anyOf`/`oneOf` with null, local `$ref`, and annotations. `x-budget` sets the token budget of a leaf.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from vlm.errors import SchemaError

ANNOTATIONS = frozenset(
    "title description default examples example $schema $id id $comment deprecated readOnly writeOnly $defs definitions "
    "$anchor contentMediaType contentEncoding $vocabulary".split()
)
COMMON = frozenset(("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "nullable", "x-budget"))
BY_TYPE = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems", "uniqueItems", "additionalItems")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format")),
    "boolean": frozenset(),
    "null": frozenset(),
}
REMEDIES = {
    "not": "State what is allowed instead",
    "if": "Make the dependent fields optional",
    "dependentRequired": "Make the dependent fields optional",
    "patternProperties": "Name the properties under 'properties'",
    "propertyNames": "Name the properties under 'properties'",
    "minProperties": "List the needed properties under 'required'",
    "maxProperties": "Declare fewer properties",
    "prefixItems": "Use an object with one property per place",
    "contains": "Use 'items'",
    "unevaluatedProperties": "Use 'additionalProperties'",
    "uniqueItems": "Remove repeated items afterwards",
    "allOf": "Merge the parts into one schema",
    "anyOf": "Only a choice between one schema and null is supported: use one type, or 'enum' for a list of values",
    "oneOf": "Only a choice between one schema and null is supported: use one type, or 'enum' for a list of values",
}
_JSON_NAMES = {"list": "an array", "int": "a number", "float": "a number", "str": "a string", "bool": "a boolean", "NoneType": "null"}
MAX_DEPTH = 24
MAX_BUDGET = 512


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
    """Text. Lengths in code points, as JSON Schema counts them."""

    min_length: int = 0
    max_length: int | None = None
    pattern: str | None = None
    format: str | None = None


@dataclass(frozen=True, kw_only=True)
class NumberField(Field):
    """An integer or a decimal number; bounds as written, `open` when the bound itself is excluded."""

    integer: bool = False
    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    high_open: bool = False
    multiple_of: int = 1


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
class ArrayField(Field):
    """A list of up to `max_items` items (None: the scaffold's own cap)."""

    items: Field
    min_items: int = 0
    max_items: int | None = None


@dataclass(frozen=True)
class Member:
    """A property of an object."""

    name: str
    field: Field
    required: bool


@dataclass(frozen=True, kw_only=True)
class ObjectField(Field):
    """An object with its properties in the order of declaration."""

    members: tuple[Member, ...] = ()


def parse_schema(source: Any) -> ObjectField:
    """The field tree of a schema.

    `source`: a JSON Schema as a mapping, as JSON text or as the path of a JSON file; a short template such as
    `{"total": "number"}` (see `shorthand.py`); a dataclass; or a Pydantic model class.

    Raises:
        SchemaError: not JSON, not an object, no properties, or a keyword outside the supported set.
    """
    from vlm.structure.shorthand import from_dataclass, from_template, is_template

    name = str(source) if isinstance(source, Path) else "schema"
    if isinstance(source, Path):
        try:
            source = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SchemaError(f"cannot be read ({error})", source=name, remedy="Name a JSON file in UTF-8") from error
    if isinstance(source, str | bytes):
        try:
            source = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise SchemaError(
                f"is not JSON ({error})", source=name, remedy="Give a JSON object, e.g. {'total': 'number'}"
            ) from error
    if isinstance(source, ObjectField):
        return source
    if hasattr(source, "model_json_schema"):
        source = source.model_json_schema()
    elif isinstance(source, type) and hasattr(source, "__dataclass_fields__"):
        source = from_dataclass(source)
    if not isinstance(source, Mapping):
        raise SchemaError(
            f"is {_JSON_NAMES.get(type(source).__name__, type(source).__name__)}, not an object",
            source=name,
            remedy="Describe an object with properties",
        )
    if is_template(source):
        source = from_template(source)
    tree = _Parser(source).parse(source, "", ())
    if not isinstance(tree, ObjectField):
        raise SchemaError(
            "does not describe an object", pointer="", remedy="Put the value under a property of an object"
        )
    return replace(tree, nullable=False)


def escape(token: str) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return str(token).replace("~", "~0").replace("/", "~1")


class _Parser:
    """Walks one schema document; holds the document for local references."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def parse(self, node: Any, pointer: str, seen: tuple[str, ...]) -> Field:
        """The field of one subschema; `seen` are the references being followed."""
        if not isinstance(node, Mapping):
            raise SchemaError(f"is {json.dumps(node, default=str)}, not a schema object", pointer=pointer)
        if pointer.count("/") > 2 * MAX_DEPTH:
            raise SchemaError(f"nests deeper than {MAX_DEPTH} levels", pointer=pointer)
        node, seen, ref_pointer = self._resolve(node, pointer, seen)
        pointer = ref_pointer
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in node:
                return self._choice(node, keyword, pointer, seen)
        kind, nullable = self._type(node, pointer)
        self._refuse_unknown(node, kind, pointer)
        builders: dict[str, Callable[..., Field]] = {
            "object": self._object, "array": self._array, "string": self._string, "integer": self._number,
            "number": self._number, "boolean": self._boolean, "enum": self._enum, "const": self._const,
        }  # fmt: skip
        build = builders[kind]
        common = {
            "pointer": pointer,
            "title": self._text(node, "title", pointer),
            "description": self._text(node, "description", pointer),
            "nullable": nullable,
            "budget": self._count(node, "x-budget", pointer, 1, MAX_BUDGET),
        }
        if kind in ("object", "array"):
            return build(node, pointer, common, seen)
        return build(node, pointer, common)

    def _resolve(
        self, node: Mapping[str, Any], pointer: str, seen: tuple[str, ...]
    ) -> tuple[Mapping[str, Any], tuple[str, ...], str]:
        while "$ref" in node:
            ref = node["$ref"]
            if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
                raise SchemaError(
                    f"$ref {ref!r} is not local", pointer=f"{pointer}/$ref", remedy="Copy the definition under $defs"
                )
            if ref in seen or ref == "#":
                raise SchemaError(
                    f"$ref {ref!r} refers to itself", pointer=f"{pointer}/$ref", remedy="Write out the levels you need"
                )
            target: Any = self.document
            for step in ref[2:].split("/"):
                step = step.replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and step.isdigit() and int(step) < len(target):
                    target = target[int(step)]
                elif isinstance(target, Mapping) and step in target:
                    target = target[step]
                else:
                    raise SchemaError(f"$ref {ref!r} leads nowhere", pointer=f"{pointer}/$ref")
            if not isinstance(target, Mapping):
                raise SchemaError(f"$ref {ref!r} leads to no schema object", pointer=f"{pointer}/$ref")
            siblings = {key: value for key, value in node.items() if key != "$ref"}
            clash = [k for k in siblings if k not in ANNOTATIONS and k in target and target[k] != siblings[k]]
            if clash:
                raise SchemaError(f"{clash[0]!r} beside $ref contradicts it", pointer=f"{pointer}/{escape(clash[0])}")
            node, seen = {**target, **siblings}, (*seen, ref)
        return node, seen, pointer

    def _choice(self, node: Mapping[str, Any], keyword: str, pointer: str, seen: tuple[str, ...]) -> Field:
        """anyOf/oneOf between one schema and null, or a list of one schema."""
        options = node[keyword]
        here = f"{pointer}/{keyword}"
        if not isinstance(options, list) or not options:
            raise SchemaError(f"{keyword} is no list of schemas", pointer=here)
        siblings = {k: v for k, v in node.items() if k in ANNOTATIONS or k == "x-budget"}
        others = [k for k in node if k not in siblings and k != keyword]
        if others and not (others == ["type"] and len(options) == 1):
            raise SchemaError(f"{others[0]!r} beside {keyword}", pointer=here, remedy="Merge them into one schema")
        real = [(i, option) for i, option in enumerate(options) if option != {"type": "null"}]
        if len(real) != 1 or (keyword == "allOf" and len(options) != 1):
            raise SchemaError(f"unsupported keyword {keyword!r}", pointer=here, remedy=REMEDIES[keyword])
        index, option = real[0]
        if isinstance(option, Mapping):
            option = {**option, **{k: v for k, v in siblings.items() if k not in ("$defs", "definitions", "default")}}
        found = self.parse(option, f"{here}/{index}", seen)
        if keyword == "oneOf" and found.nullable and len(options) > 1:
            raise SchemaError("null matches two branches of oneOf", pointer=here, remedy="Use anyOf")
        return replace(found, nullable=found.nullable or len(options) > 1)

    def _type(self, node: Mapping[str, Any], pointer: str) -> tuple[str, bool]:
        """Kind of a schema, and whether null is allowed beside it."""
        given = node.get("type")
        names = given if isinstance(given, list) else [given] if given is not None else []
        for name in names:
            if not isinstance(name, str) or name not in BY_TYPE:
                known = ", ".join(BY_TYPE)
                raise SchemaError(f"unknown type {name!r}", pointer=f"{pointer}/type", remedy=f"Known types: {known}")
        nullable = "null" in names or node.get("nullable") is True
        names = [name for name in dict.fromkeys(names) if name != "null"]
        if "integer" in names and "number" in names:
            names.remove("integer")
        if "const" in node:
            return "const", False
        if "enum" in node:
            return "enum", not names or nullable
        if given is not None and not names:
            return "const", False  # type null alone
        if not names:
            names = [kind for kind in ("object", "array") if BY_TYPE[kind] & set(node)][:1]
            if not names:
                raise SchemaError("has no type", pointer=pointer, remedy="Add 'type'")
        if len(names) > 1:
            raise SchemaError(
                f"a union of types {names}", pointer=f"{pointer}/type", remedy="Use one type, with or without null"
            )
        return names[0], nullable

    def _refuse_unknown(self, node: Mapping[str, Any], kind: str, pointer: str) -> None:
        elsewhere = frozenset().union(*BY_TYPE.values())
        listed = kind in ("enum", "const")
        for keyword in node:
            if keyword in ANNOTATIONS or keyword in COMMON or str(keyword).startswith("x-"):
                continue
            if not listed and keyword in elsewhere:
                continue  # handled, or about another type and so about nothing here
            raise SchemaError(
                f"unsupported keyword {keyword!r}" + (f" beside {kind}" if listed and keyword in elsewhere else ""),
                pointer=f"{pointer}/{escape(keyword)}",
                remedy=REMEDIES.get(str(keyword), "Remove it"),
            )

    @staticmethod
    def _text(node: Mapping[str, Any], key: str, pointer: str) -> str:
        value = node.get(key, "")
        if not isinstance(value, str):
            raise SchemaError(f"{key} is no string", pointer=f"{pointer}/{key}")
        return value

    @staticmethod
    def _count(node: Mapping[str, Any], key: str, pointer: str, low: int = 0, high: int | None = None) -> int | None:
        value = node.get(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            span = f"from {low} to {high}" if high is not None else f"of at least {low}"
            raise SchemaError(f"{key} is {value!r}, not an integer {span}", pointer=f"{pointer}/{key}")
        return value

    def _object(
        self, node: Mapping[str, Any], pointer: str, common: dict[str, Any], seen: tuple[str, ...]
    ) -> ObjectField:
        properties = node.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            raise SchemaError(
                "an object without properties", pointer=f"{pointer}/properties", remedy="Name at least one property"
            )
        extra = node.get("additionalProperties", True)
        if not isinstance(extra, bool | Mapping):
            raise SchemaError("is no schema", pointer=f"{pointer}/additionalProperties")
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaError("required is no list of names", pointer=f"{pointer}/required")
        unknown = [name for name in required if name not in properties]
        if unknown:
            raise SchemaError(
                f"required names {unknown[0]!r}, which is no property",
                pointer=f"{pointer}/required",
                remedy="Declare it under 'properties'",
            )
        members = []
        for name, child in properties.items():
            if not isinstance(name, str):
                raise SchemaError(f"property name {name!r} is no string", pointer=f"{pointer}/properties")
            where = f"{pointer}/properties/{escape(name)}"
            _unicode(name, where)
            members.append(Member(name, self.parse(child, where, seen), name in required))
        return ObjectField(members=tuple(members), **common)

    def _array(
        self, node: Mapping[str, Any], pointer: str, common: dict[str, Any], seen: tuple[str, ...]
    ) -> ArrayField:
        if node.get("uniqueItems"):
            raise SchemaError(
                "unsupported keyword 'uniqueItems'", pointer=f"{pointer}/uniqueItems", remedy=REMEDIES["uniqueItems"]
            )
        items = node.get("items")
        if not isinstance(items, Mapping) or not items:
            raise SchemaError(
                "an array without a schema of its items", pointer=f"{pointer}/items", remedy="Describe one item"
            )
        low = self._count(node, "minItems", pointer) or 0
        high = self._count(node, "maxItems", pointer)
        if high is not None and high < low:
            raise SchemaError(f"maxItems {high} is below minItems {low}", pointer=f"{pointer}/maxItems")
        return ArrayField(items=self.parse(items, f"{pointer}/items", seen), min_items=low, max_items=high, **common)

    def _string(self, node: Mapping[str, Any], pointer: str, common: dict[str, Any]) -> StringField:
        from vlm.structure.automaton import FORMATS
        from vlm.structure.regex import check_pattern

        low = self._count(node, "minLength", pointer) or 0
        high = self._count(node, "maxLength", pointer)
        if high is not None and high < low:
            raise SchemaError(f"maxLength {high} is below minLength {low}", pointer=f"{pointer}/maxLength")
        pattern, form = node.get("pattern"), node.get("format")
        if pattern is not None:
            check_pattern(pattern, f"{pointer}/pattern")
        if form is not None and form not in FORMATS:
            raise SchemaError(
                f"unsupported format {form!r}",
                pointer=f"{pointer}/format",
                remedy=f"Known formats: {', '.join(FORMATS)}; or use 'pattern'",
            )
        if pattern is not None and form is not None:
            raise SchemaError("pattern beside format", pointer=f"{pointer}/pattern", remedy="Keep one of them")
        field = StringField(min_length=low, max_length=high, pattern=pattern, format=form, **common)
        if low or high is not None:
            self._check_length(field)
        return field

    @staticmethod
    def _check_length(field: StringField) -> None:
        """SchemaError unless some text meets both shape and length."""
        from vlm.structure.automaton import MAX_COUNTED, leaf_dfa

        if field.min_length > MAX_COUNTED:
            raise SchemaError(
                f"minLength {field.min_length}", pointer=f"{field.pointer}/minLength", remedy=f"At most {MAX_COUNTED}"
            )
        if field.pattern is None and field.format is None:
            return
        found = leaf_dfa(field)
        longest = field.max_length
        if found.is_empty or (longest is not None and len(found.shortest.decode()) > longest):
            raise SchemaError("no text has both this shape and this length", pointer=field.pointer)

    def _number(self, node: Mapping[str, Any], pointer: str, common: dict[str, Any]) -> NumberField:
        integer = node.get("type") == "integer" or (
            isinstance(node.get("type"), list) and "number" not in node["type"]
        )

        def bound(key: str) -> Decimal | None:
            value = node.get(key)
            if value is None:
                return None
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise SchemaError(f"{key} is {value!r}, not a number", pointer=f"{pointer}/{key}")
            return Decimal(repr(value))

        low, open_low = bound("minimum"), bound("exclusiveMinimum")
        high, open_high = bound("maximum"), bound("exclusiveMaximum")
        low_open = open_low is not None and (low is None or open_low >= low)
        high_open = open_high is not None and (high is None or open_high <= high)
        low, high = open_low if low_open else low, open_high if high_open else high
        if low is not None and high is not None and (low > high or (low == high and (low_open or high_open))):
            raise SchemaError(f"no number lies between {low} and {high}", pointer=pointer)
        multiple = node.get("multipleOf", 1)
        if isinstance(multiple, float) and multiple.is_integer():
            multiple = int(multiple)
        if isinstance(multiple, bool) or not isinstance(multiple, int) or not 1 <= multiple <= 1000:
            raise SchemaError(
                f"multipleOf {multiple!r}", pointer=f"{pointer}/multipleOf", remedy="An integer from 1 to 1000 works"
            )
        if multiple > 1:
            integer = True  # a multiple of a whole number is whole
        field = NumberField(
            integer=integer, low=low, high=high, low_open=low_open, high_open=high_open, multiple_of=multiple, **common
        )
        from vlm.structure.automaton import number_is_possible

        if not number_is_possible(field):
            raise SchemaError("no number fits the bounds", pointer=pointer)
        return field

    def _boolean(self, node: Mapping[str, Any], pointer: str, common: dict[str, Any]) -> BooleanField:
        return BooleanField(**common)

    def _enum(self, node: Mapping[str, Any], pointer: str, common: dict[str, Any]) -> Field:
        values = node["enum"]
        here = f"{pointer}/enum"
        if not isinstance(values, list) or not values:
            raise SchemaError("enum is no list of values", pointer=here)
        types = node.get("type")
        names = types if isinstance(types, list) else [types] if types else list(BY_TYPE)
        for value in values:
            if isinstance(value, list | Mapping) or (isinstance(value, float) and not math.isfinite(value)):
                raise SchemaError(
                    f"enum value {json.dumps(value, default=str)} is no scalar", pointer=here, remedy="Use scalars"
                )
        fitting = [value for value in values if _type_names(value) & set(names)]
        nullable = any(value is None for value in fitting)
        real = [value for value in fitting if value is not None]
        if not fitting:
            raise SchemaError("no enum value is of the type given", pointer=here)
        if not real or (len(real) == 1 and not nullable):
            return ConstField(json=json.dumps(fitting[0], ensure_ascii=False), **{**common, "nullable": False})
        texts = [value if isinstance(value, str) else json.dumps(value) for value in real]
        seen: dict[str, Any] = {}
        for value, text in zip(real, texts, strict=True):
            _unicode(text, here)
            if text in seen and not _same(seen[text], value):
                raise SchemaError(f"two enum values are both written {text!r}", pointer=here)
            seen[text] = value
        kept = tuple(seen)
        common["nullable"] = nullable
        return ChoiceField(values=tuple(seen[text] for text in kept), texts=kept, **common)

    def _const(self, node: Mapping[str, Any], pointer: str, common: dict[str, Any]) -> ConstField:
        try:
            text = json.dumps(node.get("const"), ensure_ascii=False, allow_nan=False)
            text.encode()
        except (TypeError, ValueError) as error:
            raise SchemaError(f"const is not JSON ({error})", pointer=f"{pointer}/const") from error
        value = node.get("const")
        types = node.get("type")
        names = types if isinstance(types, list) else [types] if types else list(BY_TYPE)
        if not _type_names(value) & set(names):
            raise SchemaError("const is not of the type given", pointer=f"{pointer}/const")
        if "enum" in node and not any(_same(value, option) for option in node["enum"]):
            raise SchemaError("const is not one of enum", pointer=f"{pointer}/const")
        return ConstField(json=text, **{**common, "nullable": False})


def _type_names(value: Any) -> set[str]:
    """JSON Schema types a value belongs to."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"integer", "number"} if float(value).is_integer() else {"number"}
    return {"string"} if isinstance(value, str) else {"object"} if isinstance(value, Mapping) else {"array"}


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _unicode(text: str, pointer: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SchemaError(f"{text!r} has a lone surrogate", pointer=pointer) from error
