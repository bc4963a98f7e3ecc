"""Scalars: strings, numbers, booleans, lists of values and constants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from vlm.errors import SchemaError
from vlm.structure.automaton import FORMATS, MAX_COUNTED, NUMBER_FORMATS, leaf_dfa, split_decimal
from vlm.structure.conjunction import NeverError, Several, check_unicode, same
from vlm.structure.exclusive import admits
from vlm.structure.fields import BooleanField, ChoiceField, ConstField, Field, NumberField, StringField, UnionField
from vlm.structure.regex import check_pattern

MAX_BUDGET = 512
MAX_DIVISOR = 1000
_JSON_NAMES = ("object", "array", "string", "integer", "number", "boolean", "null")

LeaveOut = Callable[[str, str], None]


def common(node: Mapping[str, Any], pointer: str, nullable: bool) -> dict[str, Any]:
    """What all fields have."""
    return {
        "pointer": pointer, "title": _text(node, "title", pointer), "description": _text(node, "description", pointer),
        "nullable": nullable, "budget": count(node, "x-budget", pointer, 1, MAX_BUDGET),
    }  # fmt: skip


def _text(node: Mapping[str, Any], key: str, pointer: str) -> str:
    value = node.get(key, "")
    if not isinstance(value, str):
        raise SchemaError(f"{key} is no string", pointer=f"{pointer}/{key}")
    return value


def count(node: Mapping[str, Any], key: str, pointer: str, low: int = 0, high: int | None = None) -> int | None:
    """A whole number of a keyword, None without it."""
    value = node.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise SchemaError(f"{key} is {value!r}, not an integer {span}", pointer=f"{pointer}/{key}")
    return value


def several(node: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """The values of a keyword that may have come from several schemas."""
    if key not in node:
        return ()
    return tuple(node[key]) if isinstance(node[key], Several) else (node[key],)


def build_leaf(node: Mapping[str, Any], kind: str, pointer: str, nullable: bool, leave_out: LeaveOut | None) -> Field:
    """A string, number, integer or boolean. `leave_out` notes what a lenient reading does not check; None refuses it."""
    shared = common(node, pointer, nullable)
    if kind == "boolean":
        return BooleanField(**shared)
    return _string(node, pointer, shared, leave_out) if kind == "string" else _number(node, kind, pointer, shared, leave_out)


def _string(node: Mapping[str, Any], pointer: str, shared: dict[str, Any], leave_out: LeaveOut | None) -> StringField:
    low = count(node, "minLength", pointer) or 0
    high = count(node, "maxLength", pointer)
    if high is not None and high < low:
        raise NeverError(f"maxLength {high} is below minLength {low}", pointer=f"{pointer}/maxLength")
    patterns: list[str] = []
    for pattern in several(node, "pattern"):
        try:
            check_pattern(pattern, f"{pointer}/pattern")
            patterns.append(pattern)
        except SchemaError:
            if leave_out is None:
                raise
            leave_out(pointer, "pattern")
    formats = []
    for form in several(node, "format"):
        if form in FORMATS:
            formats.append(form)
        elif leave_out is not None:
            leave_out(pointer, "format")
        elif form not in NUMBER_FORMATS:  # those say nothing about strings
            raise SchemaError(
                f"unsupported format {form!r}", pointer=f"{pointer}/format", remedy=f"Known formats: {', '.join(FORMATS)}; or use 'pattern'"
            )
    if len(formats) > 1:
        raise SchemaError(f"two formats {formats}", pointer=f"{pointer}/format", remedy="Keep one of them")
    if low > MAX_COUNTED:
        raise SchemaError(f"minLength {low}", pointer=f"{pointer}/minLength", remedy=f"At most {MAX_COUNTED}")
    field = StringField(min_length=low, max_length=high, patterns=tuple(patterns), format=formats[0] if formats else None, **shared)
    if field.shaped and (low or high is not None or len(patterns) + len(formats) > 1):
        found = leaf_dfa(field)
        if found.is_empty or (high is not None and len(found.shortest.decode()) > high):
            raise NeverError("no text has both this shape and this length", pointer=pointer)
    return field


def _bound(node: Mapping[str, Any], key: str, pointer: str) -> Decimal | None:
    value = node.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SchemaError(f"{key} is {value!r}, not a number", pointer=f"{pointer}/{key}")
    return Decimal(repr(value))


def _number(node: Mapping[str, Any], kind: str, pointer: str, shared: dict[str, Any], leave_out: LeaveOut | None) -> NumberField:
    low, open_low = _bound(node, "minimum", pointer), _bound(node, "exclusiveMinimum", pointer)
    high, open_high = _bound(node, "maximum", pointer), _bound(node, "exclusiveMaximum", pointer)
    for form in several(node, "format"):
        span = NUMBER_FORMATS.get(form)
        if span is not None:
            least, most = map(Decimal, span)
            low, high = least if low is None else max(low, least), most if high is None else min(high, most)
        elif form not in NUMBER_FORMATS and form not in FORMATS:
            if leave_out is None:
                raise SchemaError(f"unsupported format {form!r}", pointer=f"{pointer}/format", remedy=f"Known formats: {', '.join(NUMBER_FORMATS)}")
            leave_out(pointer, "format")
    low_open = open_low is not None and (low is None or open_low >= low)
    high_open = open_high is not None and (high is None or open_high <= high)
    low, high = open_low if low_open else low, open_high if high_open else high
    if low is not None and high is not None and (low > high or (low == high and (low_open or high_open))):
        raise NeverError(f"no number lies between {low} and {high}", pointer=pointer)
    multiples: list[Decimal] = []
    integer = kind == "integer"
    for value in several(node, "multipleOf"):
        divisor = Decimal(repr(value)) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else Decimal(0)
        if divisor <= 0 or split_decimal(divisor)[0] > MAX_DIVISOR or split_decimal(divisor)[1] > 9:
            if leave_out is None or divisor <= 0:
                remedy = f"Numbers of up to {MAX_DIVISOR} steps work, such as 5, 0.01 or 0.25"
                raise SchemaError(f"multipleOf {value!r}", pointer=f"{pointer}/multipleOf", remedy=remedy)
            leave_out(pointer, "multipleOf")
            continue
        integer = integer or split_decimal(divisor)[1] == 0  # a multiple of a whole number is whole
        if divisor != 1:
            multiples.append(divisor.normalize())
    at_least = node.get("x-at-least")
    if at_least is not None and not isinstance(at_least, str | int):
        raise SchemaError("x-at-least names no sibling", pointer=f"{pointer}/x-at-least", remedy="Give a property or a place before this one")
    field = NumberField(
        integer=integer, low=low, high=high, low_open=low_open, high_open=high_open, multiples=tuple(multiples),
        at_least=None if at_least is None else str(at_least), **shared,
    )  # fmt: skip
    if not (low is None and high is None and not multiples) and leaf_dfa(field).is_empty:
        raise NeverError("no number fits the bounds", pointer=pointer)
    return field


def listed(node: dict[str, Any], pointer: str, plain: Callable[[dict[str, Any]], Field]) -> Field:
    """`enum` and `const`; `plain` gives the field of the other keywords, which the values must meet too."""
    const = "const" in node
    here = f"{pointer}/{'const' if const else 'enum'}"
    values = [node["const"]] if const else node["enum"]
    if const and "enum" in node and not any(same(values[0], option) for option in node["enum"]):
        raise NeverError("const is not one of enum", pointer=here)
    names = node.get("type", list(_JSON_NAMES))
    nullable = node.get("nullable") is True
    fitting = [v for v in values if type_names(v, here) & set(names) or (v is None and nullable)]
    others = {k: v for k, v in node.items() if k not in ("enum", "const", "x-budget", "x-at-least")}
    if fitting and len(others.keys() - {"title", "description", "type", "nullable"}) and _constrains(others):
        field = plain(others)
        fitting = [v for v in fitting if (v is None and nullable) or admits(field, v)]
    if not fitting:
        raise NeverError(f"{'const' if const else 'no enum value'} is {'not ' if const else ''}of the type given", pointer=here)
    return _choices(fitting, common(node, pointer, any(v is None for v in fitting)), here)


def _constrains(node: Mapping[str, Any]) -> bool:
    from vlm.structure.compiler import BY_TYPE

    return any(key in keywords for keywords in BY_TYPE.values() for key in node)


def _choices(fitting: list[Any], shared: dict[str, Any], here: str) -> Field:
    real = [value for value in fitting if value is not None]
    if not real or (len(real) == 1 and not shared["nullable"]):
        return _const(fitting[0], {**shared, "nullable": False}, here)
    structured = [value for value in real if isinstance(value, list | Mapping)]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in real]
    seen: dict[str, Any] = {}
    clash = bool(structured)
    for value, text in zip(real, texts, strict=True):
        check_unicode(text, here)
        clash |= text in seen and not same(seen[text], value)
        seen.setdefault(text, value)
    if clash:
        return UnionField(options=tuple(_const(value, {"pointer": here}, here) for value in real), **shared)
    return ChoiceField(values=tuple(seen.values()), texts=tuple(seen), **shared)


def _const(value: Any, shared: dict[str, Any], here: str) -> ConstField:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise SchemaError(f"value is not JSON ({error})", pointer=here) from error
    return ConstField(json=text, **shared)


def type_names(value: Any, pointer: str) -> set[str]:
    """JSON Schema types a value belongs to; SchemaError for what is no JSON value."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise SchemaError(f"{value} is no JSON number", pointer=pointer)
        return {"integer", "number"} if float(value).is_integer() else {"number"}
    return {"string"} if isinstance(value, str) else {"object"} if isinstance(value, Mapping) else {"array"}
