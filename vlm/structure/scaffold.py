"""A schema laid out on the canvas: literal runs that are given, and slots to fill in.

For `{"name": string, "qty": integer}` the canvas reads `{"name": "` slot `", "qty": ` slot `}`. A slot holds the raw text
of its value and then pads; an absent value is the null token and then pads (where the vocabulary has no null token,
nothing but pads). Arrays are laid out with all their items; items that come out absent are dropped when reading.

Schema strings are encoded like any other text, so a schema that contains the spelling of a control token stays text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlm.errors import SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.lift import Symbols, TokenTable, token_table
from vlm.structure.schema import (
    MAX_BUDGET,
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

if TYPE_CHECKING:
    from vlm.results import FieldInfo

TEXT_BUDGET = 32  # cells of a free string without maxLength
TEXT_LIMIT = 96  # cells of a free string, whatever its maxLength says; x-budget goes beyond
FORMAT_BUDGETS = {"date": 10, "time": 8, "date-time": 25, "email": 40, "uuid": 36, "ipv4": 15}
INTEGER_BUDGET, NUMBER_BUDGET = 10, 12
MAX_ITEMS = 8  # items laid out of an array without maxItems
MAX_CELLS = 32_768


@dataclass(frozen=True)
class Slot:
    """A run of cells for one value.

    Attributes:
        pointer: JSON pointer of the value in the result, array places as laid out.
        kind: "string", "integer", "number", "boolean", "enum", or the format of a string.
        start: first cell; budget: number of cells.
        nullable: whether null is a valid value; an absent value is written with the null token either way.
        field: the leaf of the schema.
    """

    pointer: str
    kind: str
    start: int
    budget: int
    nullable: bool
    field: Field
    tokenizer: Tokenizer
    symbols: Symbols

    @property
    def cells(self) -> range:
        """The canvas cells of the slot."""
        return range(self.start, self.start + self.budget)

    @property
    def constraint(self) -> TokenTable:
        """The automaton over tokens that the slot's cells obey."""
        return token_table(self.field, self.tokenizer, self.symbols, self.budget)

    def encode(self, text: str | None) -> list[int]:
        """Finished cells [budget] for the text of a value, or None for an absent one.

        SchemaError when the text needs more cells than the slot has.
        """
        if text is None:
            ids = [] if self.symbols.null is None else [self.symbols.null]
        else:
            ids = value_ids(text, self.tokenizer)
        if len(ids) > self.budget:
            raise SchemaError(
                f"{text!r} needs {len(ids)} cells and the slot has {self.budget}",
                source=f"value at {self.pointer}",
                remedy="Raise x-budget",
            )
        return ids + [self.symbols.pad] * (self.budget - len(ids))


@dataclass(frozen=True)
class Node:
    """A place in the result: `slot` for leaves, `children` for objects (by name) and arrays (by place)."""

    field: Field
    slot: int = -1
    names: tuple[str, ...] = ()
    required: tuple[bool, ...] = ()
    children: tuple[Node, ...] = ()


@dataclass(frozen=True)
class CanvasRow:
    """What a canvas row starts from, four lists of length L.

    `ids` has the mask token in slots; `masked` is True there; `frozen` is True on literals; `slot_index` is 1 + the
    place inside the slot, 0 on literals.
    """

    ids: list[int]
    masked: list[bool]
    frozen: list[bool]
    slot_index: list[int]


@dataclass(frozen=True)
class Scaffold:
    """A laid-out schema.

    Attributes:
        ids: [L] literal tokens, the mask token in slots.
        slot_of: [L] number of the slot a cell belongs to, -1 on literals.
        slots: the slots in canvas order.
    """

    ids: list[int]
    slot_of: list[int]
    slots: list[Slot]
    root: Node
    tokenizer: Tokenizer
    symbols: Symbols
    max_items: int = MAX_ITEMS

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def by_pointer(self) -> dict[str, Slot]:
        """The slots by the pointer of their value."""
        return {slot.pointer: slot for slot in self.slots}

    def to_canvas_rows(self) -> CanvasRow:
        """The start of a canvas row."""
        index = [0] * len(self.ids)
        for slot in self.slots:
            index[slot.start : slot.start + slot.budget] = range(1, slot.budget + 1)
        return CanvasRow(
            ids=list(self.ids),
            masked=[number >= 0 for number in self.slot_of],
            frozen=[number < 0 for number in self.slot_of],
            slot_index=index,
        )

    def fill(self, values: Mapping[str, str | None]) -> list[int]:
        """A finished canvas [L]: the raw text of each value by pointer; what is not named is absent.

        SchemaError for a pointer without slot, or a text that does not fit its slot.
        """
        unknown = [pointer for pointer in values if pointer not in self.by_pointer]
        if unknown:
            raise SchemaError("no slot has this pointer", source=f"value at {unknown[0]}")
        ids = list(self.ids)
        for slot in self.slots:
            ids[slot.start : slot.start + slot.budget] = slot.encode(values.get(slot.pointer))
        return ids

    def read(
        self,
        ids: Sequence[int],
        confidence: Sequence[float] | None = None,
        *,
        locate: Callable[[list[int]], tuple[float, float, float, float] | None] | None = None,
    ) -> tuple[Any, dict[str, FieldInfo]]:
        """The data of a finished canvas row, and what is known of each leaf by its pointer in the data.

        Args:
            ids: [L] the row; cells that are still masked count as never decided.
            confidence: [L] probability of each cell when it was committed; 1 where not given.
            locate: box (x0, y0, x1, y1 px) of the page region that the given cells were copied from.

        The data always satisfies the schema. The confidence of a leaf is the product over the cells that decided it:
        those of its value and the pad that ends it, or the null token. That product is the probability the model gave
        to the value along the order of its commits. A leaf that is `forced` was repaired: its slot held no valid
        value, or was absent where the schema demands a value, and the shortest valid one stands in, at confidence 0; a
        text cut to its maxLength keeps its confidence.
        """
        from vlm.structure.reading import read_scaffold

        return read_scaffold(self, ids, confidence, locate)

    def warnings(self, data: Any) -> tuple[str, ...]:
        """What a reader of the data should know: arrays that filled every place they were given."""
        found: list[str] = []
        _full_arrays(self.root, data, "", found)
        return tuple(found)


def _full_arrays(node: Node, data: Any, pointer: str, found: list[str]) -> None:
    if data is None or not node.children:
        return
    if isinstance(node.field, ArrayField):
        if len(data) == len(node.children) and node.field.max_items != len(data):
            found.append(f"{pointer}: all {len(data)} places were used, there may be more on the page")
        for index, (child, item) in enumerate(zip(node.children, data, strict=False)):
            _full_arrays(child, item, f"{pointer}/{index}", found)
        return
    for name, child in zip(node.names, node.children, strict=True):
        if name in data:
            _full_arrays(child, data[name], f"{pointer}/{escape(name)}", found)


def value_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of a value in a slot: one per character in a character-level vocabulary."""
    return tokenizer.encode_chars(text) if tokenizer.char_level else tokenizer.encode(text)


def leaf_kind(field: Field) -> str:
    """Name of a leaf's kind, as in `Slot.kind`."""
    if isinstance(field, StringField):
        return field.format or "string"
    if isinstance(field, NumberField):
        return "integer" if field.integer else "number"
    return "boolean" if isinstance(field, BooleanField) else "enum"


def compile_scaffold(
    tree: ObjectField,
    tokenizer: Tokenizer,
    *,
    budget: int = TEXT_BUDGET,
    budgets: Mapping[str, int] | None = None,
    max_items: int = MAX_ITEMS,
    symbols: Symbols | None = None,
) -> Scaffold:
    """Lay out a schema for a vocabulary.

    Args:
        tree: from `parse_schema`.
        budget: cells of a free string without maxLength.
        budgets: cells of single slots, by pointer; else `x-budget` of the schema, else the kind's own measure.
        max_items: places laid out for an array without maxItems.
        symbols: control tokens; by default those with the usual spellings.

    SchemaError when the layout would be unreasonably long or the vocabulary cannot spell a value.
    """
    builder = _Builder(tokenizer, symbols or Symbols.of(tokenizer), budget, budgets or {}, max_items)
    root = builder.lay(tree, "")
    builder.flush()
    return Scaffold(
        builder.ids, builder.slot_of, builder.slots, root, tokenizer, builder.symbols, max_items
    )


@dataclass
class _Builder:
    """Writes literals and slots from left to right."""

    tokenizer: Tokenizer
    symbols: Symbols
    budget: int
    budgets: Mapping[str, int]
    max_items: int

    def __post_init__(self) -> None:
        self.ids: list[int] = []
        self.slot_of: list[int] = []
        self.slots: list[Slot] = []
        self.text = ""

    def flush(self) -> None:
        """Encode the literal text collected so far."""
        if self.text:
            ids = self.tokenizer.encode(self.text)
            self.ids += ids
            self.slot_of += [-1] * len(ids)
            self.text = ""
        if len(self.ids) > MAX_CELLS:
            raise SchemaError(
                f"the layout needs more than {MAX_CELLS} cells", remedy="Lower maxItems, maxLength or x-budget"
            )

    def lay(self, field: Field, pointer: str) -> Node:
        """Lay out one field at a place of the result."""
        if isinstance(field, ObjectField):
            return self._object(field, pointer)
        if isinstance(field, ArrayField):
            return self._array(field, pointer)
        if isinstance(field, ConstField):
            self.text += field.json
            return Node(field)
        quoted = isinstance(field, StringField) or (isinstance(field, ChoiceField) and field.quoted)
        self.text += '"' if quoted else ""
        self.flush()
        cells = self.budgets.get(pointer) or leaf_budget(field, self.tokenizer, self.symbols, self.budget)
        slot = Slot(
            pointer, leaf_kind(field), len(self.ids), cells, field.nullable, field, self.tokenizer, self.symbols
        )
        self.ids += [self.symbols.mask] * cells
        self.slot_of += [len(self.slots)] * cells
        self.slots.append(slot)
        self.text += '"' if quoted else ""
        return Node(field, slot=len(self.slots) - 1)

    def _object(self, field: ObjectField, pointer: str) -> Node:
        children = []
        self.text += "{"
        for index, member in enumerate(field.members):
            self.text += (", " if index else "") + json.dumps(member.name, ensure_ascii=False) + ": "
            children.append(self.lay(member.field, f"{pointer}/{escape(member.name)}"))
        self.text += "}"
        names = tuple(member.name for member in field.members)
        return Node(field, -1, names, tuple(member.required for member in field.members), tuple(children))

    def _array(self, field: ArrayField, pointer: str) -> Node:
        places = field.max_items if field.max_items is not None else max(self.max_items, field.min_items)
        if places > MAX_CELLS:
            raise SchemaError(f"maxItems {places} is too long to lay out", pointer=field.pointer)
        children = []
        self.text += "["
        for index in range(places):
            self.text += ", " if index else ""
            before = len(self.slots)
            children.append(self.lay(field.items, f"{pointer}/{index}"))
            if len(self.slots) == before and index + 1 >= field.min_items:
                break  # nothing to fill in: no way to say how many there are
        self.text += "]"
        return Node(field, children=tuple(children))


def leaf_budget(field: Field, tokenizer: Tokenizer, symbols: Symbols, default: int = TEXT_BUDGET) -> int:
    """Cells of a leaf: `x-budget`, else the measure of its kind, and never less than its shortest value needs."""
    if field.budget is not None:
        wanted, plain = field.budget, False
    else:
        wanted, plain = _measure(field, tokenizer, default)
    if plain:
        return wanted
    least = token_table(field, tokenizer, symbols).min_tokens
    if least > MAX_BUDGET:
        raise SchemaError(f"the shortest value needs {least} cells", pointer=field.pointer)
    return max(wanted, least)


def _measure(field: Field, tokenizer: Tokenizer, default: int) -> tuple[int, bool]:
    """(cells, whether that is surely enough for some value)."""
    if isinstance(field, ChoiceField):
        return max(1, *(len(value_ids(text, tokenizer)) for text in field.texts)), True
    if isinstance(field, BooleanField):
        return max(len(value_ids(text, tokenizer)) for text in ("true", "false")), True
    if isinstance(field, NumberField):
        bounds = [bound for bound in (field.low, field.high) if bound is not None]
        if field.integer and len(bounds) == 2:
            return max(len(f"{int(bound)}") for bound in bounds), False
        return (INTEGER_BUDGET if field.integer else NUMBER_BUDGET), not bounds and field.multiple_of == 1
    if isinstance(field, StringField):
        if field.format is not None:
            return FORMAT_BUDGETS[field.format], False
        cells = default if field.max_length is None else max(1, min(field.max_length, TEXT_LIMIT))
        return max(cells, field.min_length), field.pattern is None
    raise SchemaError(f"a {type(field).__name__} is no leaf", pointer=field.pointer)
