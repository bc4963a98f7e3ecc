"""The languages of typed leaves: which texts a slot may hold.

A slot holds the raw text of a value, without JSON quotes or escapes; serialising is the reader's work. Every language
here lies inside the values its schema allows.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache

import numpy as np

from vlm.errors import SchemaError
from vlm.structure.dfa import Dfa, Nfa, Ranges
from vlm.structure.regex import full_dfa
from vlm.structure.schema import BooleanField, ChoiceField, Field, NumberField, StringField

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
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\\.[0-9]{1,6})?)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
#: Formats of strings. `time` and `date-time` also take the shorter forms found on paper: no seconds, no zone.
FORMATS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": "[A-Za-z0-9_%+-]+(?:\\.[A-Za-z0-9_%+-]+)*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?\\.)+[A-Za-z]{2,12}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
}
_FRACTION = "(?:\\.[0-9]+)?"


def leaf_dfa(field: Field, *, counted: bool = True) -> Dfa:
    """The automaton of a leaf. Without `counted` an upper length is left to the budget and the reader."""
    plain = replace(field, pointer="", title="", description="", budget=None, nullable=False)
    if isinstance(plain, StringField) and not counted:
        plain = replace(plain, max_length=None)
    return _leaf_dfa(plain)


@lru_cache(maxsize=1024)
def _leaf_dfa(field: Field) -> Dfa:
    if isinstance(field, StringField):
        return _string_dfa(field)
    if isinstance(field, NumberField):
        return _number_dfa(field)
    if isinstance(field, BooleanField):
        return Dfa.of_texts(["true", "false"])
    if isinstance(field, ChoiceField):
        return Dfa.of_texts(field.texts)
    raise SchemaError(f"a {type(field).__name__} is no leaf", pointer=field.pointer)


def _string_dfa(field: StringField) -> Dfa:
    if field.min_length > MAX_COUNTED:
        raise SchemaError(f"minLength above {MAX_COUNTED}", remedy="Lower it")
    high = field.max_length if field.max_length is not None and field.max_length <= MAX_COUNTED else None
    free = _text_dfa(field.min_length, high)
    if field.pattern is not None:
        from vlm.structure.regex import pattern_dfa

        return pattern_dfa(field.pattern).combine(free, both=True)
    if field.format is not None:
        found = full_dfa(FORMATS[field.format])
        return found if field.min_length == 0 and high is None else found.combine(free, both=True)
    return free


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
    if field.multiple_of > 1:
        found = found.combine(_multiples(field.multiple_of), both=True)
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


def _multiples(divisor: int) -> Dfa:
    """Integers that the divisor divides: the states are remainders."""
    table = np.full((3 + divisor, 256), -1, np.int32)  # start, sign, zero, remainders
    for digit in range(10):
        table[[0, 1], ord("0") + digit] = 2 if digit == 0 else 3 + digit % divisor
        table[3:, ord("0") + digit] = 3 + (np.arange(divisor) * 10 + digit) % divisor
    table[0, ord("-")] = 1
    accept = np.zeros(3 + divisor, bool)
    accept[[2, 3]] = True
    return Dfa.build(table, accept)
