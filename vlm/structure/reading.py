"""From a finished canvas row back to data that satisfies the schema, with what is known of each value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vlm.results import FieldInfo
from vlm.structure.automaton import leaf_dfa
from vlm.structure.scaffold import Node, Scaffold, Slot
from vlm.structure.schema import (
    ArrayField,
    BooleanField,
    ChoiceField,
    ConstField,
    Field,
    NumberField,
    ObjectField,
    StringField,
    escape,
)

Box = tuple[float, float, float, float]
Locate = Callable[[list[int]], Box | None]

_OMIT = object()  # an optional value that is absent


@dataclass(frozen=True)
class SlotReading:
    """What a slot holds.

    `absent`: null or nothing decided; then `value` is None. `forced`: the value was repaired. `cells`: the cells of
    the value's characters.
    """

    value: Any
    absent: bool
    confidence: float
    forced: bool
    cells: list[int]


def read_scaffold(
    scaffold: Scaffold, ids: Sequence[int], confidence: Sequence[float] | None, locate: Locate | None
) -> tuple[Any, dict[str, FieldInfo]]:
    """See `Scaffold.read`."""
    sure = [1.0] * len(scaffold.ids) if confidence is None else [float(c) for c in confidence]
    reader = _Reader(scaffold, [read_slot(slot, ids, sure) for slot in scaffold.slots], locate)
    return reader.assemble(scaffold.root, "", True), reader.fields


def read_slot(slot: Slot, ids: Sequence[int], confidence: Sequence[float]) -> SlotReading:
    """What one slot of a row holds."""
    cells = list(slot.cells)
    tokens = [int(ids[cell]) for cell in cells]
    symbols, control = slot.symbols, slot.tokenizer.control_ids
    length = tokens.index(symbols.pad) if symbols.pad in tokens else len(tokens)
    broken = any(token != symbols.pad for token in tokens[length:])
    decided = cells[: length + 1]
    sure = math.prod(min(max(confidence[cell], 0.0), 1.0) for cell in decided)
    if symbols.null is not None and tokens[0] == symbols.null:
        return SlotReading(None, True, sure, broken or length > 1, [])
    if length == 0 and symbols.null is None:
        return SlotReading(None, True, sure, broken, [])
    value_tokens = tokens[:length]
    stray = [token for token in value_tokens if token in control]
    if length and len(stray) == length:  # nothing was decided here
        return SlotReading(None, True, 0.0, True, [])
    spelled = b"".join(slot.tokenizer.token_bytes(token) for token in value_tokens if token not in control)
    text = spelled.decode("utf-8", "ignore")
    forced = broken or bool(stray) or text.encode() != spelled
    text, cut = _cut(slot.field, text)
    if not leaf_dfa(slot.field, counted=False).accepts(text) or not _in_bounds(slot.field, text):
        return SlotReading(None, True, 0.0, True, [])
    return SlotReading(convert(slot.field, text), False, sure, forced or cut, cells[:length])


def _cut(field: Field, text: str) -> tuple[str, bool]:
    """Text within maxLength, and whether it had to be cut."""
    if isinstance(field, StringField) and field.max_length is not None and len(text) > field.max_length:
        return text[: field.max_length], True
    return text, False


def _in_bounds(field: Field, text: str) -> bool:
    """Whether a number survives rounding to a float: 0.99999999999999999999 is below 1 in decimal, not as a float."""
    if not isinstance(field, NumberField) or field.integer:
        return True
    value = float(text)
    if not math.isfinite(value):
        return False
    exact = Decimal(repr(value))
    low = field.low is None or exact > field.low or (exact == field.low and not field.low_open)
    high = field.high is None or exact < field.high or (exact == field.high and not field.high_open)
    return low and high


def convert(field: Field, text: str) -> Any:
    """The JSON value that an accepted text stands for."""
    if isinstance(field, NumberField):
        return int(text) if field.integer else float(text)
    if isinstance(field, BooleanField):
        return text == "true"
    if isinstance(field, ChoiceField):
        return field.values[field.texts.index(text)]
    return text


def minimal(field: Field) -> Any:
    """The shortest valid value of a leaf: what stands in where the schema demands a value and there is none."""
    if isinstance(field, ChoiceField):
        return field.values[0]
    shaped = isinstance(field, StringField) and (field.pattern is not None or field.format is not None)
    return convert(field, leaf_dfa(field, counted=shaped).shortest.decode())


class _Reader:
    """Puts slot readings together; collects `fields` by pointer on the way."""

    def __init__(self, scaffold: Scaffold, readings: list[SlotReading], locate: Locate | None) -> None:
        self.scaffold = scaffold
        self.readings = readings
        self.locate = locate
        self.fields: dict[str, FieldInfo] = {}

    def absent(self, node: Node) -> bool:
        """Whether nothing below a node was found. Constants alone say nothing."""
        if node.slot >= 0:
            return self.readings[node.slot].absent
        return all(self.absent(child) for child in node.children)

    def assemble(self, node: Node, pointer: str, required: bool) -> Any:
        """The value of a node, or _OMIT."""
        field = node.field
        if node.slot >= 0:
            return self._leaf(node, pointer, required)
        if isinstance(field, ConstField):
            self.fields[pointer] = FieldInfo(value=field.value, confidence=1.0, box=None, forced=False, pointer=pointer)
            return field.value
        if pointer and self._has_slots(node) and self.absent(node) and (field.nullable or not required):
            self._note_absent(node, pointer)
            return None if field.nullable else _OMIT
        if isinstance(field, ArrayField):
            return self._array(node, field, pointer)
        assert isinstance(field, ObjectField)
        out = {}
        for name, needed, child in zip(node.names, node.required, node.children, strict=True):
            value = self.assemble(child, f"{pointer}/{escape(name)}", needed)
            if value is not _OMIT:
                out[name] = value
        return out

    def _array(self, node: Node, field: ArrayField, pointer: str) -> list[Any]:
        out: list[Any] = []
        last = max((i for i, child in enumerate(node.children) if not self.absent(child)), default=-1)
        for index, child in enumerate(node.children):
            wanted = index < field.min_items
            empty = self.absent(child) and self._has_slots(child)
            hole = index < last and field.items.nullable  # null is an item like any other where items may be null
            if empty and not wanted and not hole:
                continue
            if not self._has_slots(child) and not wanted:
                continue  # an item that is constant throughout: as few as allowed
            out.append(self.assemble(child, f"{pointer}/{len(out)}", True))
        return out

    def _has_slots(self, node: Node) -> bool:
        return node.slot >= 0 or any(self._has_slots(child) for child in node.children)

    def _leaf(self, node: Node, pointer: str, required: bool) -> Any:
        reading = self.readings[node.slot]
        value, sure, forced = reading.value, reading.confidence, reading.forced
        result = value
        if reading.absent:
            if node.field.nullable:
                result = None
            elif not required:
                result = _OMIT
            else:
                value = result = minimal(node.field)
                sure, forced = 0.0, True
        box = self.locate(reading.cells) if self.locate is not None and reading.cells else None
        self.fields[pointer] = FieldInfo(value=value, confidence=sure, box=box, forced=forced, pointer=pointer)
        return result

    def _note_absent(self, node: Node, pointer: str) -> None:
        """Report the leaves of an absent object as None; the places of an absent array are not reported."""
        if node.slot >= 0:
            reading = self.readings[node.slot]
            self.fields[pointer] = FieldInfo(
                value=None, confidence=reading.confidence, box=None, forced=reading.forced, pointer=pointer
            )
        for name, child in zip(node.names, node.children, strict=False):
            self._note_absent(child, f"{pointer}/{escape(name)}")
