"""The languages of typed leaves: which texts a slot may hold.

A slot holds the raw text of a value, without JSON quotes or escapes; serialising is the reader's work. Every language
here lies inside the values its schema allows.
"""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache, reduce

import numpy as np

from vlm.errors import SchemaError
from vlm.structure.dfa import Dfa, Nfa, Ranges
from vlm.structure.dfa_cache import stored
from vlm.structure.fields import BooleanField, ChoiceField, ConstField, Field, NumberField, StringField, UnionField
from vlm.structure.jsontext import json_texts
from vlm.structure.regex import full_dfa, pattern_dfa

#: What free text is made of: everything but control characters, line separators and non-characters.
PRINTABLE: Ranges = (
    (0x20, 0x7E), (0xA0, 0x2027), (0x202A, 0xD7FF), (0xE000, 0xFDCF), (0xFDF0, 0xFFFD), (0x10000, 0x10FFFD),
)  # fmt: skip
MAX_COUNTED = 256  # up to this length an automaton counts characters; beyond it the reader checks

_LEAP = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[13579][26]|[2468][048])00)"
_DATE = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_SECONDS = ":[0-5][0-9](?:\\.[0-9]{1,6})?"
_TIME = f"{_CLOCK}{_SECONDS}(?:Z|[+-]{_CLOCK})"
_LOCAL_TIME = f"{_CLOCK}(?:{_SECONDS})?"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
_HOST = f"{_LABEL}(?:\\.{_LABEL})*"
_PCHAR = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
_URI = f"(?:https?|ftp)://{_HOST}(?::[1-9][0-9]{{0,3}})?(?:/{_PCHAR}*)*(?:\\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"


def _ipv6() -> str:
    """Eight groups, or two runs of together at most six around a double colon."""
    group = "[0-9a-f]{1,4}"
    forms = [f"(?:{group}:){{7}}{group}"]
    for before in range(7):
        head = f"(?:{group}:){{{before - 1}}}{group}" if before else ""
        tail = f"(?:{group}(?::{group}){{0,{5 - before}}})?" if before < 6 else ""
        forms.append(f"{head}::{tail}")
    return "|".join(forms)


#: Formats of strings. `time` and `date-time` are those of RFC 3339, with seconds and a zone; `time-local` and `date-time-local` (names
#: of OpenAPI's registry, which validators pass over) are what stands on paper: no zone, and seconds only where they are written.
FORMATS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "time-local": _LOCAL_TIME,
    "date-time-local": f"{_DATE}T{_LOCAL_TIME}",
    "email": "[A-Za-z0-9_%+-]+(?:\\.[A-Za-z0-9_%+-]+)*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?\\.)+[A-Za-z]{2,12}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    "ipv6": _ipv6(),
    "hostname": _HOST,
    "uri": _URI,
    "uri-reference": _URI,
    "iri": _URI,
    "url": _URI,
    "duration": "P(?:[0-9]{1,4}W|(?:[0-9]{1,4}Y)?[0-9]{1,4}M(?:[0-9]{1,4}D)?|[0-9]{1,4}Y|(?:[0-9]{1,4}D)?T[0-9]{1,4}[HMS]|[0-9]{1,4}D)",
    "json-pointer": "(?:/(?:[A-Za-z0-9_.-]|~[01])*)*",
}
#: Formats of numbers: bounds, or nothing at all.
NUMBER_FORMATS: dict[str, tuple[int, int] | None] = {
    "int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint32": (0, 2**32 - 1), "uint64": (0, 2**64 - 1), "float": None, "double": None,
}  # fmt: skip
_FRACTION = "(?:\\.[0-9]+)?"


def leaf_dfa(field: Field, *, counted: bool = True) -> Dfa:
    """The automaton of a leaf. Without `counted` an upper length is left to the budget and the reader.

    A slot holds raw text, but that of a union whose options are not all strings: it holds JSON text.
    """
    plain = unnamed(field)
    if isinstance(plain, StringField) and not counted:
        plain = replace(plain, max_length=None)
    return _leaf_dfa(plain)


def unnamed(field: Field) -> Field:
    """A leaf without what makes no difference to its language."""
    plain = replace(field, pointer="", title="", description="", budget=None, nullable=False)
    if isinstance(plain, NumberField):
        return replace(plain, at_least=None)
    if isinstance(plain, UnionField):
        return replace(plain, options=tuple(map(unnamed, plain.options)))
    return plain


@lru_cache(maxsize=1024)
def _leaf_dfa(field: Field) -> Dfa:
    return stored(f"leaf {field!r}", lambda: _build(field))


def _build(field: Field) -> Dfa:
    if isinstance(field, StringField):
        return _string_dfa(field)
    if isinstance(field, NumberField):
        return _number_dfa(field)
    if isinstance(field, BooleanField):
        return Dfa.of_texts(["true", "false"])
    if isinstance(field, ChoiceField):
        return Dfa.of_texts(field.texts)
    if isinstance(field, UnionField) and field.is_leaf:
        parts = [raw_dfa(option) if field.quoted else json_dfa(option) for option in field.options]
        return reduce(lambda a, b: a.combine(b, both=False), parts)
    if isinstance(field, ConstField):
        return Dfa.of_texts([str(field.value) if isinstance(field.value, str) else field.json])
    raise SchemaError(f"a {type(field).__name__} is no leaf", pointer=field.pointer)


def raw_dfa(field: Field) -> Dfa:
    """The raw texts of a leaf whose values are strings."""
    return leaf_dfa(field)


def json_dfa(field: Field) -> Dfa:
    """The JSON texts of a leaf."""
    if isinstance(field, StringField):
        return json_texts(leaf_dfa(field))
    if isinstance(field, ChoiceField):
        return Dfa.of_texts([json.dumps(value, ensure_ascii=False) for value in field.values])
    if isinstance(field, ConstField):
        return Dfa.of_texts([field.json])
    if isinstance(field, UnionField) and field.quoted:
        return json_texts(leaf_dfa(field))
    return leaf_dfa(field)


def _string_dfa(field: StringField) -> Dfa:
    if field.min_length > MAX_COUNTED:
        raise SchemaError(f"minLength above {MAX_COUNTED}", remedy="Lower it")
    high = field.max_length if field.max_length is not None and field.max_length <= MAX_COUNTED else None
    free = _text_dfa(field.min_length, high)
    if not field.shaped:
        return free
    found = full_dfa(FORMATS[field.format]) if field.format is not None else None
    if found is None or field.patterns or field.min_length or high is not None:
        found = free if found is None else found.combine(free, both=True)
    for pattern in field.patterns:
        found = pattern_dfa(pattern).combine(found, both=True)
    for pattern in field.unlike:
        found = found.minus(pattern_dfa(pattern))
    return found.minus(Dfa.of_texts(field.barred)) if field.barred else found


@lru_cache(maxsize=256)
def _text_dfa(low: int, high: int | None) -> Dfa:
    """Printable text of low to high characters."""
    nfa = Nfa()
    copies = [nfa.chars(PRINTABLE) for _ in range(high if high is not None else low + 1)]
    if high is None:
        return nfa.determinise(*nfa.chain([*copies[:low], nfa.star(copies[low])]))
    optional = [nfa.either([copy, nfa.empty()]) for copy in copies[low:]]
    return nfa.determinise(*nfa.chain([*copies[:low], *optional]))


def number_is_possible(field: NumberField) -> bool:
    """Whether any number meets the bounds."""
    if field.low is None and field.high is None:
        return True
    return not leaf_dfa(field).is_empty


def _number_dfa(field: NumberField) -> Dfa:
    """Canonical decimal notation within the bounds: no leading zeros, no exponent."""
    low, high, low_open, high_open = field.low, field.high, field.low_open, field.high_open
    if field.integer:
        if low is not None:
            low, low_open = _whole(low, ROUND_FLOOR) + 1 if low_open else _whole(low, ROUND_CEILING), False
        if high is not None:
            high, high_open = _whole(high, ROUND_CEILING) - 1 if high_open else _whole(high, ROUND_FLOOR), False
        if low is not None and high is not None and low > high:
            return Dfa.nothing()
    fraction = "" if field.integer else _FRACTION
    zero = Decimal(0)
    found = Dfa.nothing()
    if high is None or high > zero or (high == zero and not high_open):
        clipped = low is not None and low >= zero
        found = _magnitudes("", low if clipped and low is not None else zero, low_open and clipped, high, high_open, fraction)
    if low is None or low < zero:
        # below zero: the magnitudes between -high and -low
        clipped = high is not None and high <= zero
        smallest = -high if clipped and high is not None else zero
        negative = _magnitudes(
            "-", smallest, high_open and clipped, None if low is None else -low, low_open, fraction
        )
        found = found.combine(negative, both=False)
    for multiple in field.multiples:
        found = found.combine(_multiples(multiple), both=True)
    return found


def _whole(value: Decimal, rounding: str) -> Decimal:
    return value.to_integral_value(rounding=rounding)


def _magnitudes(sign: str, low: Decimal, low_open: bool, high: Decimal | None, high_open: bool, fraction: str) -> Dfa:
    """Signed notation of the magnitudes from low to high."""
    found = full_dfa(f"{sign}(?:0|[1-9][0-9]*){fraction}")
    if low > 0 or low_open:
        found = found.combine(full_dfa(f"{sign}(?:{_at_least(low, low_open)})"), both=True)
    if high is not None:
        found = found.combine(full_dfa(f"{sign}(?:{_at_most(high, high_open)})"), both=True)
    return found


def _digits(value: Decimal) -> tuple[str, str]:
    """Whole and fractional digits of a magnitude, without needless zeros."""
    whole, _, part = f"{value:f}".partition(".")
    return whole.lstrip("0") or "0", part.rstrip("0")


def _beyond(digits: str, *, above: bool, first: bool) -> list[str]:
    """Patterns of digit strings of the same length that are larger (or smaller), one per place of the difference."""
    out = []
    for index, char in enumerate(digits):
        digit = int(char)
        lowest = 1 if first and index == 0 and len(digits) > 1 else 0
        span = range(digit + 1, 10) if above else range(lowest, digit)
        if len(span):
            rest = len(digits) - index - 1
            out.append(f"{digits[:index]}[{span[0]}-{span[-1]}]" + (f"[0-9]{{{rest}}}" if first and rest else ""))
    return out


def _at_least(bound: Decimal, strict: bool) -> str:
    """Pattern of the decimal notations of magnitudes of at least (strictly: above) the bound."""
    whole, part = _digits(bound)
    larger = [f"[1-9][0-9]{{{len(whole)},}}", *_beyond(whole, above=True, first=True)]
    out = [f"(?:{'|'.join(larger)}){_FRACTION}"]
    if not part:
        out.append(f"{whole}\\.[0-9]*[1-9][0-9]*" if strict else f"{whole}{_FRACTION}")
    else:
        out += [f"{whole}\\.{place}[0-9]*" for place in _beyond(part, above=True, first=False)]
        out.append(f"{whole}\\.{part}[0-9]*" + ("[1-9][0-9]*" if strict else ""))
    return "|".join(out)


def _at_most(bound: Decimal, strict: bool) -> str:
    """Pattern of the decimal notations of magnitudes of at most (strictly: below) the bound."""
    whole, part = _digits(bound)
    smaller = _beyond(whole, above=False, first=True)
    if len(whole) > 1:
        smaller += ["0", f"[1-9][0-9]{{0,{len(whole) - 2}}}"]
    out = [f"(?:{'|'.join(smaller)}){_FRACTION}"] if smaller else []
    if part:
        out.append(whole)
        out += [f"{whole}\\.{place}[0-9]*" for place in _beyond(part, above=False, first=False)]
        out += [f"{whole}\\.{part[:count]}" for count in range(1, len(part))]
    if not strict:
        out.append(f"{whole}\\.{part}0*" if part else f"{whole}(?:\\.0+)?")
    return "|".join(out) or "--"  # nothing lies below zero: a text that is no magnitude


def split_decimal(value: Decimal) -> tuple[int, int]:
    """(p, k) with value = p / 10^k and k as small as can be."""
    _, digits, exponent = value.normalize().as_tuple()
    assert isinstance(exponent, int)
    whole = int("".join(map(str, digits)))
    return (whole * 10**exponent, 0) if exponent >= 0 else (whole, -exponent)


def _multiples(divisor: Decimal) -> Dfa:
    """Decimal notations of multiples: the states are remainders, once per number of digits behind the point."""
    size, places = split_decimal(divisor)
    whole, point = 3, 3 + size * (places + 1)  # first states of: remainders by place; a point that was just read
    table = np.full((3 + size * (places + 2), 256), -1, np.int32)  # start, sign, zero, remainders, points
    remainders = np.arange(size)
    for digit in range(10):
        char, after = ord("0") + digit, (remainders * 10 + digit) % size
        table[[0, 1], char] = 2 if digit == 0 else whole + digit % size
        table[whole : whole + size, char] = whole + after
        for place in range(1, places + 1):
            before = point if place == 1 else whole + size * (place - 1)
            table[before : before + size, char] = whole + size * place + after
    table[0, ord("-")] = 1
    if places:
        table[2, ord(".")] = point
        table[whole : whole + size, ord(".")] = point + remainders
    accept = np.zeros(len(table), bool)
    accept[2] = True
    for place in range(places + 1):
        accept[whole + size * place : whole + size * (place + 1)] = remainders * 10 ** (places - place) % size == 0
    return Dfa.build(table, accept)
