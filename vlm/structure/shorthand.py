"""Shorter ways to write a schema: templates such as `{"total": "number"}`, dataclasses and TypedDicts.

A template is an object whose values are the names of types (`string`, `integer`, `number`, `boolean`, `date`, `time`,
`date-time`, ...), choices (`"cash|card"` or `["cash", "card"]`), nested templates, or a list of one template for
repeated things. Every field is required and may be null when the page does not show it; a trailing `!` on a name
forbids null.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Union

from vlm.errors import SchemaError

KINDS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"}, "str": {"type": "string"}, "text": {"type": "string"},
    "number": {"type": "number"}, "float": {"type": "number"}, "amount": {"type": "number"},
    "integer": {"type": "integer"}, "int": {"type": "integer"},
    "boolean": {"type": "boolean"}, "bool": {"type": "boolean"},
    "date": {"type": "string", "format": "date"}, "time": {"type": "string", "format": "time-local"},
    "date-time": {"type": "string", "format": "date-time-local"}, "datetime": {"type": "string", "format": "date-time-local"},
    "email": {"type": "string", "format": "email"}, "uuid": {"type": "string", "format": "uuid"},
}  # fmt: skip
KEYWORDS = frozenset(
    "$schema $id $ref $defs $comment definitions title description default examples type properties required "
    "additionalProperties items prefixItems minItems maxItems uniqueItems enum const minLength maxLength pattern format "
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf anyOf oneOf allOf not if then else patternProperties "
    "minProperties maxProperties propertyNames dependentRequired dependentSchemas dependencies nullable contains "
    "unevaluatedProperties unevaluatedItems".split()
)
JSON_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
PLAIN: dict[Any, dict[str, Any]] = {
    str: KINDS["string"], int: KINDS["integer"], float: KINDS["number"], bool: KINDS["boolean"],
    Decimal: KINDS["number"], datetime.date: KINDS["date"], datetime.time: KINDS["time"],
    datetime.datetime: KINDS["date-time"], type(None): {"type": "null"},
}  # fmt: skip


def is_template(source: Mapping[str, Any]) -> bool:
    """Whether an object is a short template rather than a JSON Schema.

    A schema says so by `type` (a JSON type, beside nothing but keywords), `properties` as an object, `$ref` or a list
    of alternatives.
    """
    if not source or not all(isinstance(key, str) for key in source):
        return False
    if isinstance(source.get("properties"), Mapping) or set("#/.:") & set(str(source.get("$ref", ""))):
        return False
    if any(isinstance(source.get(key), list) and _schemas(source[key]) for key in ("anyOf", "oneOf", "allOf")):
        return False
    only_keywords = all(key in KEYWORDS or key.startswith("x-") for key in source)
    declared = source.get("type")
    if only_keywords and (declared in JSON_TYPES if isinstance(declared, str) else isinstance(declared, list)):
        return False
    if only_keywords and ("enum" in source or "const" in source or "$schema" in source):
        return False
    return not (only_keywords and isinstance(source.get("items"), Mapping) and "type" in source["items"])


def on_paper(schema: Any) -> Any:
    """The schema of a Pydantic model with times as they stand on paper: Pydantic reads them without seconds or zone, too."""
    if isinstance(schema, list):
        return [on_paper(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: part if key in ("const", "enum", "default", "examples") else on_paper(part) for key, part in schema.items()}
    if found.get("type") == "string" and found.get("format") in ("time", "date-time"):
        found["format"] += "-local"
    return found


def _schemas(options: list[Any]) -> bool:
    return bool(options) and all(isinstance(option, Mapping) for option in options)


def from_template(template: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a short template; SchemaError, with the pointer, for a value that names no type."""
    return _object(template, "", 0)


def _object(template: Mapping[str, Any], pointer: str, depth: int) -> dict[str, Any]:
    if depth > 24:
        raise SchemaError("the template nests too deeply", pointer=pointer)
    properties = {}
    for name, value in template.items():
        where = f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}"
        if not isinstance(name, str):
            raise SchemaError(f"field name {name!r} is no string", pointer=where)
        properties[name] = _value(value, where, depth)
    return {"type": "object", "properties": properties, "required": list(properties)}


def _value(value: Any, pointer: str, depth: int) -> dict[str, Any]:
    if isinstance(value, str):
        return _kind(value, pointer)
    if isinstance(value, Mapping) and value:
        return _object(value, pointer, depth + 1)
    if isinstance(value, list) and len(value) == 1:
        item = _value(value[0], f"{pointer}/0", depth + 1)
        return {"type": "array", "items": item}
    if isinstance(value, list) and len(value) > 1 and all(isinstance(option, str) for option in value):
        return {"enum": [*value, None]}
    raise SchemaError(
        f"{value!r} names no type",
        pointer=pointer,
        remedy="Give a type name, a nested template, or a list of one template",
    )


def _kind(name: str, pointer: str) -> dict[str, Any]:
    strict = name.endswith("!")
    word = name.rstrip("!?").strip()
    if "|" in word:
        options = [option.strip() for option in word.split("|")]
        return {"enum": options if strict else [*options, None]}
    schema = KINDS.get(word.lower())
    if schema is None:
        raise SchemaError(f"unknown type {name!r}", pointer=pointer, remedy=f"Known types: {', '.join(KINDS)}")
    return dict(schema) if strict else {**schema, "type": [schema["type"], "null"]}


def from_class(cls: type) -> dict[str, Any]:
    """The JSON Schema of a dataclass or TypedDict; SchemaError for an annotation without a JSON counterpart."""
    if not (dataclasses.is_dataclass(cls) or typing.is_typeddict(cls)):
        raise SchemaError(f"{cls.__name__} is a class without fields", remedy="Use a dataclass, TypedDict or Pydantic model")
    builder = _Classes(cls)
    schema = builder.record(cls, "")
    return {**schema, "$defs": builder.definitions} if builder.definitions else schema


class _Classes:
    """Schemas of annotated classes; those that contain themselves are referred to by name."""

    def __init__(self, root: type) -> None:
        self.root = root
        self.definitions: dict[str, Any] = {}
        self.under_way: list[type] = []

    def record(self, cls: type, pointer: str) -> dict[str, Any]:
        """The object schema of a class."""
        if cls in self.under_way:
            return self._refer(cls, pointer)
        self.under_way.append(cls)
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except (NameError, TypeError) as error:
            raise SchemaError(f"annotations of {cls.__name__} cannot be resolved ({error})", pointer=pointer) from error
        words, optional = {}, frozenset(getattr(cls, "__optional_keys__", ()))
        if dataclasses.is_dataclass(cls):
            words = {f.name: str(f.metadata["description"]) for f in dataclasses.fields(cls) if "description" in f.metadata}
            hints = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
        properties = {}
        for name, hint in hints.items():
            schema = self.annotation(hint, f"{pointer}/{name}")
            properties[name] = {**schema, "description": words[name]} if name in words else schema
        self.under_way.pop()
        required = [name for name in properties if name not in optional]
        return {"type": "object", "title": cls.__name__, "properties": properties, "required": required}

    def _refer(self, cls: type, pointer: str) -> dict[str, Any]:
        if cls is self.root:
            return {"$ref": "#"}
        if cls.__name__ not in self.definitions:
            self.definitions[cls.__name__] = {}  # under way
            before, self.under_way = self.under_way, [c for c in self.under_way if c is not cls]
            self.definitions[cls.__name__] = self.record(cls, pointer)
            self.under_way = before
        return {"$ref": f"#/$defs/{cls.__name__}"}

    def annotation(self, hint: Any, pointer: str) -> dict[str, Any]:
        """The schema of a type annotation."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Annotated, typing.Required, typing.NotRequired):
            return self.annotation(args[0], pointer)
        if hint in PLAIN:
            return dict(PLAIN[hint])
        if hint is Any:
            return {}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.annotation(arg, pointer) for arg in args]}
        if origin is Literal:
            return {"enum": list(args)}
        if origin is dict and len(args) == 2 and args[0] is str:
            return {"type": "object", "additionalProperties": self.annotation(args[1], f"{pointer}/*")}
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            return self._tuple(args, pointer)
        if origin in (list, tuple, set, frozenset) or (isinstance(origin, type) and issubclass(origin, Sequence)):
            unique = {"uniqueItems": True} if origin in (set, frozenset) else {}
            return {"type": "array", "items": self.annotation(args[0], f"{pointer}/items"), **unique}
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return {"enum": [member.value for member in hint]}
        if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or typing.is_typeddict(hint)):
            return self.record(hint, pointer)
        raise SchemaError(f"{hint!r} has no JSON counterpart", pointer=pointer, remedy="Use str, int, float, bool, date, list, dict[str, ...] or a dataclass")

    def _tuple(self, args: tuple[Any, ...], pointer: str) -> dict[str, Any]:
        size = {"minItems": len(args), "maxItems": len(args)}
        if len(set(args)) == 1:
            return {"type": "array", "items": self.annotation(args[0], f"{pointer}/items"), **size}
        return {"type": "array", "prefixItems": [self.annotation(arg, f"{pointer}/{i}") for i, arg in enumerate(args)], **size}
