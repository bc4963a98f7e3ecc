"""Two schemas into one that demands both: what `allOf`, `$ref` with siblings and alternatives beside other keywords need.

A schema object is first brought into one form (:func:`normalise`): older drafts' spellings are rewritten, and subschemas
become :class:`At`, which remembers where they stood. Where two schemas meet, the result may be stricter than both
together (never laxer): what is written under it is valid under each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlm.errors import SchemaError
from vlm.structure.regex import pattern_dfa


class NeverError(SchemaError):
    """No value meets a schema. Where there are alternatives, this one is left out."""


@dataclass(frozen=True)
class At:
    """A subschema (mapping or bool) and its JSON pointer."""

    schema: Any
    pointer: str

    @property
    def anything(self) -> bool:
        """Whether it demands nothing."""
        return self.schema is True or self.schema == {}


class Several(tuple[Any, ...]):
    """Values of a keyword that came from several schemas, all of which hold."""


#: Keywords that say nothing about validity.
ANNOTATIONS = frozenset(
    "title description default examples example $schema $id id $comment deprecated readOnly writeOnly $defs definitions $anchor contentMediaType "
    "contentEncoding contentSchema $vocabulary markdownDescription enumDescriptions markdownEnumDescriptions enumNames defaultSnippets "
    "deprecationMessage errorMessage propertyOrder tsType javaType".split()
)
_SUBSCHEMA = ("items", "additionalProperties", "propertyNames")
_JSON_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def escape(token: str) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return str(token).replace("~", "~0").replace("/", "~1")


def both(a: At, b: At) -> At:
    """A subschema that demands two."""
    if a.anything or b.anything:
        return b if a.anything else a
    if a.schema is False or b.schema is False:
        return a if a.schema is False else b
    return a if a.schema == b.schema else At({"allOf": [a, b]}, a.pointer)


def normalise(node: Mapping[str, Any], pointer: str) -> dict[str, Any]:
    """A schema object without combinators and references in one form; SchemaError for keywords of the wrong shape."""
    out = {str(key): value for key, value in node.items()}
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(out.get(strict), bool) and out.pop(strict) and bound in out:  # draft 4
            out[strict] = out.pop(bound)
    if isinstance(out.get("items"), list):  # before 2020-12
        out["prefixItems"] = out.pop("items")
        out["items"] = out.pop("additionalItems", True)
        where = "items"
    else:
        out.pop("additionalItems", None)
        where = "prefixItems"
    if "prefixItems" in out:
        if not isinstance(out["prefixItems"], list):
            raise SchemaError("is no list of schemas", pointer=f"{pointer}/prefixItems")
        out["prefixItems"] = [_at(part, f"{pointer}/{where}/{i}") for i, part in enumerate(out["prefixItems"])]
    for key in _SUBSCHEMA:
        if key in out:
            out[key] = _at(out[key], f"{pointer}/{'additionalItems' if key == 'items' and where == 'items' else key}")
    for key in ("properties", "patternProperties"):
        if key in out:
            if not isinstance(out[key], Mapping):
                raise SchemaError("is no object of schemas", pointer=f"{pointer}/{key}")
            for name in out[key]:
                if not isinstance(name, str):
                    raise SchemaError(f"property name {name!r} is no string", pointer=f"{pointer}/{key}")
                check_unicode(name, f"{pointer}/{key}/{escape(name)}")
            out[key] = {name: _at(part, f"{pointer}/{key}/{escape(name)}") for name, part in out[key].items()}
    if "required" in out and (not isinstance(out["required"], list) or not all(isinstance(name, str) for name in out["required"])):
        raise SchemaError("required is no list of names", pointer=f"{pointer}/required")
    if "type" in out:
        out["type"] = _types(out["type"], pointer)
    if "enum" in out and (not isinstance(out["enum"], list) or not out["enum"]):
        raise SchemaError("enum is no list of values", pointer=f"{pointer}/enum")
    return out


def _at(part: Any, pointer: str) -> At:
    if isinstance(part, At):
        return part
    if not isinstance(part, bool | Mapping):
        raise SchemaError(f"is {json.dumps(part, default=str)}, not a schema object", pointer=pointer)
    return At(part, pointer)


def _types(given: Any, pointer: str) -> list[str]:
    names = given if isinstance(given, list) else [given]
    for name in names:
        if not isinstance(name, str) or name not in _JSON_TYPES:
            raise SchemaError(f"unknown type {name!r}", pointer=f"{pointer}/type", remedy=f"Known types: {', '.join(_JSON_TYPES)}")
    return list(dict.fromkeys(names))


def conjoin(a: dict[str, Any], b: dict[str, Any], pointer: str) -> dict[str, Any]:
    """Both of two normalised schema objects; NeverError where they contradict each other at once."""
    if not b or not a:
        return dict(a or b)
    out: dict[str, Any] = {}
    for key in {**a, **b}:
        if key not in a or key not in b:
            out[key] = a.get(key, b.get(key))
        elif key in ANNOTATIONS or key == "x-budget" or a[key] == b[key]:
            out[key] = a[key]
        elif key in _RULES:
            out[key] = _RULES[key](a[key], b[key])
        else:
            raise SchemaError(f"two schemas disagree about {key!r}", pointer=f"{pointer}/{escape(key)}", remedy="Merge them by hand")
    _conjoin_objects(a, b, out)
    _conjoin_arrays(a, b, out)
    if out.get("type") == [] or out.get("enum") == []:
        raise NeverError("its parts contradict each other", pointer=pointer)
    if "const" in a and "const" in b and not same(a["const"], b["const"]):
        raise NeverError("two constants", pointer=pointer)
    return out


def _common_types(a: list[str], b: list[str]) -> list[str]:
    out = [name for name in a if name in b or (name == "integer" and "number" in b)]
    return out + [name for name in b if name == "integer" and "number" in a and "integer" not in out]


def _all(a: Any, b: Any) -> Several:
    parts = (*(a if isinstance(a, Several) else (a,)), *(b if isinstance(b, Several) else (b,)))
    return Several(dict.fromkeys(parts))


_RULES: dict[str, Callable[[Any, Any], Any]] = {
    "type": _common_types,
    "enum": lambda a, b: [value for value in a if any(same(value, other) for other in b)],
    "const": lambda a, b: a,
    "nullable": lambda a, b: bool(a and b),
    "required": lambda a, b: list(dict.fromkeys((*a, *b))),
    "uniqueItems": lambda a, b: bool(a or b),
    "propertyNames": both,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    **dict.fromkeys(("pattern", "format", "multipleOf"), _all),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties", "items", "prefixItems"), lambda a, b: a),  # below
}


def _conjoin_objects(a: dict[str, Any], b: dict[str, Any], out: dict[str, Any]) -> None:
    """Properties that one side names fall under the other side's rule for further ones."""
    nothing = At(True, "")
    extra = a.get("additionalProperties", nothing), b.get("additionalProperties", nothing)
    named: list[dict[str, At]] = [side.get("properties", {}) for side in (a, b)]
    shaped: list[dict[str, At]] = [side.get("patternProperties", {}) for side in (a, b)]
    if any(named):
        merged = {}
        for name in {**named[0], **named[1]}:
            parts = [side[name] if name in side else nothing if matching(shape, name) else rest for side, shape, rest in zip(named, shaped, extra, strict=True)]
            merged[name] = both(*parts)
        out["properties"] = merged
    if any(shaped):
        out["patternProperties"] = {p: both(shaped[0].get(p, extra[0]), shaped[1].get(p, extra[1])) for p in {**shaped[0], **shaped[1]}}
    if "additionalProperties" in out:
        out["additionalProperties"] = both(*extra)


def matching(patterns: Mapping[str, At], name: str) -> list[str]:
    """Those patterns that are found in a property name."""
    return [pattern for pattern in patterns if pattern_dfa(pattern).accepts(name)]


def _conjoin_arrays(a: dict[str, Any], b: dict[str, Any], out: dict[str, Any]) -> None:
    nothing = At(True, "")
    rest = a.get("items", nothing), b.get("items", nothing)
    prefix: list[list[At]] = [side.get("prefixItems", []) for side in (a, b)]
    if any(prefix):
        length = max(map(len, prefix))
        out["prefixItems"] = [both(*(side[i] if i < len(side) else r for side, r in zip(prefix, rest, strict=True))) for i in range(length)]
    if "items" in out:
        out["items"] = both(*rest)


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and neither equals true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return bool(a == b)


def check_unicode(text: str, pointer: str) -> None:
    """SchemaError for lone surrogates, which no JSON text in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SchemaError(f"{text!r} has a lone surrogate", pointer=pointer) from error
