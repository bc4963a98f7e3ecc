"""From a finished canvas row back to data that satisfies the schema, with what is known of each value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm.results import FieldInfo
from vlm.structure.automaton import leaf_dfa
from vlm.structure.conjunction import escape, same
from vlm.structure.fields import ArrayField, ConstField, Field, NumberField, ObjectField, StringField, is_leaf
from vlm.structure.minimal import Minimal, convert, distinct, in_bounds, minimal
from vlm.structure.scaffold import Node, Scaffold, Slot

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
    scaffold: Scaffold, ids: Sequence[int], confidence: Sequence[float] | None, locate: Locate | None, valid: Mapping[str, float]
) -> tuple[Any, dict[str, FieldInfo]]:
    """See `Scaffold.read`."""
    sure = [1.0] * len(scaffold.ids) if confidence is None else [float(c) for c in confidence]
    reader = _Reader(scaffold, [read_slot(slot, ids, sure) for slot in scaffold.slots], locate, valid)
    return reader.assemble(scaffold.root, "", True, 1.0), reader.fields


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
    if not leaf_dfa(slot.field, counted=False).accepts(text) or not in_bounds(slot.field, text):
        return SlotReading(None, True, 0.0, True, [])
    return SlotReading(convert(slot.field, text), False, sure, forced or cut, cells[:length])


def _cut(field: Field, text: str) -> tuple[str, bool]:
    """Text within maxLength, and whether it had to be cut."""
    if isinstance(field, StringField) and field.max_length is not None and len(text) > field.max_length:
        return text[: field.max_length], True
    return text, False


class _Reader:
    """Puts slot readings together; collects `fields` by pointer on the way. `sure` is what the selectors above are worth."""

    def __init__(self, scaffold: Scaffold, readings: list[SlotReading], locate: Locate | None, valid: Mapping[str, float]) -> None:
        self.scaffold, self.readings, self.locate, self.valid = scaffold, readings, locate, valid
        self.fields: dict[str, FieldInfo] = {}
        self.minimal = Minimal(scaffold.schema)

    def absent(self, node: Node) -> bool:
        """Whether nothing below a node was found. Constants alone say nothing; a chosen branch is there."""
        if node.kind in ("leaf", "open"):
            return node.kind == "open" or self.readings[node.slot].absent
        if node.kind == "chosen":
            return False
        return all(self.absent(child) for child in node.children) and all(self.absent(key) for key, _ in node.entries)

    def decides(self, node: Node) -> bool:
        """Whether anything below a node was filled in or chosen."""
        if node.kind in ("leaf", "open", "chosen", "gone"):
            return True
        return bool(node.entries) or any(self.decides(child) for child in node.children)

    def assemble(self, node: Node, pointer: str, required: bool, sure: float) -> Any:
        """The value of a node, or _OMIT."""
        field = node.field
        if node.kind == "leaf":
            return self._leaf(node, pointer, required, sure)
        if isinstance(field, ConstField):
            self._note(pointer, field.value, 1.0)
            return field.value
        if node.kind == "chosen":
            return self.assemble(node.children[0], pointer, True, sure * node.confidence)
        if node.kind in ("gone", "open"):
            return self._missing(node, pointer, required, sure * node.confidence if node.kind == "gone" else 0.0)
        if pointer and self.decides(node) and self.absent(node) and (field.nullable or not required):
            self._note_absent(node, pointer, sure)
            return None if field.nullable else _OMIT
        if isinstance(field, ArrayField):
            return self._array(node, field, pointer, sure)
        assert isinstance(field, ObjectField)
        return self._object(node, field, pointer, sure)

    def _missing(self, node: Node, pointer: str, required: bool, sure: float) -> Any:
        """A place that was chosen to be empty, or never decided."""
        if node.field.nullable or not required:
            self._note(pointer, None, sure, forced=node.kind == "open")
            return None if node.field.nullable else _OMIT
        value = self.minimal(node.field)
        self._note(pointer, value, 0.0, forced=True)
        return value

    def _object(self, node: Node, field: ObjectField, pointer: str, sure: float) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, needed, child in zip(node.names, node.required, node.children, strict=True):
            value = self.assemble(child, f"{pointer}/{escape(name)}", needed, sure)
            if value is not _OMIT:
                out[name] = value
        for key, child in node.entries:
            reading = self.readings[key.slot]
            if reading.absent or reading.value in out:
                continue
            where = f"{pointer}/{escape(reading.value)}"
            value = self.assemble(child, where, False, sure * reading.confidence)
            if value is _OMIT:
                self._forget(where)
            else:
                out[reading.value] = value
        self._fit(field, out, pointer)
        return out

    def _fit(self, field: ObjectField, out: dict[str, Any], pointer: str) -> None:
        """As many properties as are allowed: the least sure go, the shortest values come."""
        if field.max_members is not None and len(out) > field.max_members:
            needed = {m.name for m in field.members if m.required}
            kept = [names for names in field.alternatives if all(name in out for name in names)]
            needed.update(min(kept, key=lambda names: len(names), default=()))
            free = sorted((name for name in out if name not in needed), key=lambda name: self._surety(f"{pointer}/{escape(name)}"))
            for name in free[: len(out) - field.max_members]:
                del out[name]
                self._forget(f"{pointer}/{escape(name)}")
        if field.alternatives or len(out) < field.min_members:
            for name in self.minimal.complete(field, out):
                self._note(f"{pointer}/{escape(name)}", out[name], 0.0, forced=True)

    def _array(self, node: Node, field: ArrayField, pointer: str, sure: float) -> list[Any]:
        out: list[Any] = []
        last = max((i for i, child in enumerate(node.children) if not self.absent(child)), default=-1)
        for index, child in enumerate(node.children):
            wanted = index < field.min_items or (index < len(field.prefix) and index <= last)
            empty = self.absent(child) and self.decides(child)
            hole = index < last and child.field.nullable  # null is an item like any other where items may be null
            if empty and not wanted and not hole:
                continue
            if not self.decides(child) and not wanted:
                continue  # an item that is constant throughout: as few as allowed
            where = f"{pointer}/{len(out)}"
            value = self.assemble(child, where, True, sure)
            if field.unique and any(same(value, other) for other in out):
                self._forget(where)
                if index < len(field.prefix):
                    break  # what follows would stand in the wrong place
                continue
            out.append(value)
        self._lengthen(field, out, pointer)
        return out

    def _lengthen(self, field: ArrayField, out: list[Any], pointer: str) -> None:
        """As many items as are demanded, where equal ones were left out or the recursion ended."""
        while len(out) < field.min_items:
            item = field.item(len(out))
            found = distinct(item, 1, out) if field.unique and is_leaf(item) else [self.minimal.or_null(item)]
            out.append(found[0] if found else self.minimal.or_null(item))
            self._note(f"{pointer}/{len(out) - 1}", out[-1], 0.0, forced=True)

    def _leaf(self, node: Node, pointer: str, required: bool, above: float) -> Any:
        reading = self._ordered(node)
        value, sure, forced = reading.value, reading.confidence * above, reading.forced
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
        likely = self.valid.get(self.scaffold.slots[node.slot].pointer)
        self.fields[pointer] = FieldInfo(value=value, confidence=sure, box=box, forced=forced, pointer=pointer, p_valid=likely)
        return result

    def _ordered(self, node: Node) -> SlotReading:
        """A reading, raised to its lower bound where it waited for another slot in vain."""
        reading, slot = self.readings[node.slot], self.scaffold.slots[node.slot]
        if not isinstance(node.field, NumberField) or node.field.at_least is None or reading.absent:
            return reading
        other = self.scaffold.by_pointer.get(f"{slot.pointer.rpartition('/')[0]}/{escape(node.field.at_least)}")
        bound = self.readings[self.scaffold.slots.index(other)] if other is not None else None
        if bound is None or bound.absent or bound.value <= reading.value:
            return reading
        fits = in_bounds(slot.field, str(bound.value)) and leaf_dfa(slot.field).accepts(str(bound.value))
        return replace(reading, value=bound.value if fits else reading.value, confidence=0.0, forced=True)

    def _note(self, pointer: str, value: Any, sure: float, *, forced: bool = False) -> None:
        self.fields[pointer] = FieldInfo(value=value, confidence=sure, box=None, forced=forced, pointer=pointer)

    def _forget(self, pointer: str) -> None:
        for name in [p for p in self.fields if p == pointer or p.startswith(f"{pointer}/")]:
            del self.fields[name]

    def _surety(self, pointer: str) -> float:
        return min((info.confidence for p, info in self.fields.items() if p == pointer or p.startswith(f"{pointer}/")), default=1.0)

    def _note_absent(self, node: Node, pointer: str, sure: float) -> None:
        """Report the leaves of an absent object as None; the places of an absent array are not reported."""
        if node.kind == "leaf":
            reading = self.readings[node.slot]
            self._note(pointer, None, reading.confidence * sure, forced=reading.forced)
        for name, child in zip(node.names, node.children, strict=False):
            self._note_absent(child, f"{pointer}/{escape(name)}", sure)
