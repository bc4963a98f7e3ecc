"""A schema laid out on the canvas: literal runs that are given, and slots to fill in.

For `{"name": string, "qty": integer}` the canvas reads `{"name": "` slot `", "qty": ` slot `}`. A slot holds the raw text
of its value and then pads; an absent value is the null token and then pads (where the vocabulary has no null token,
nothing but pads). Arrays are laid out with all their items; items that come out absent are dropped when reading.

Where the layout depends on an answer (an object or a string? another level of a tree?) there is a *selector*: a slot that
holds the beginning of the JSON text to come. :meth:`Scaffold.resolved` lays the schema out anew once selectors are known.

Schema strings are encoded like any other text, so a schema that contains the spelling of a control token stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vlm.errors import SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.fields import ArrayField, BooleanField, Field, NumberField, ObjectField, Schema, StringField
from vlm.structure.lift import Symbols, TokenTable, token_table

if TYPE_CHECKING:
    from vlm.results import FieldInfo

TEXT_BUDGET = 32  # cells of a free string without maxLength
MAX_ITEMS = 8  # items laid out of an array without maxItems
MAX_CELLS = 32_768
MAX_RECURSION = 4  # how often definitions that contain themselves are entered


@dataclass(frozen=True)
class Slot:
    """A run of cells for one value.

    Attributes:
        pointer: JSON pointer of the value in the result, array places as laid out.
        kind: "string", "integer", "number", "boolean", "enum", "union", "key", "selector", or the format of a string.
        start: first cell; budget: number of cells.
        nullable: whether null is a valid value; an absent value is written with the null token either way.
        field: the leaf of the schema; of a selector, the choice between the beginnings of its branches.
        absent: whether the cells may say that there is no value (not in selectors that must choose).
        after: pointer of the slot whose value this one waits for.
    """

    pointer: str
    kind: str
    start: int
    budget: int
    nullable: bool
    field: Field
    tokenizer: Tokenizer
    symbols: Symbols
    absent: bool = True
    after: str = ""

    @property
    def selector(self) -> bool:
        """Whether the layout depends on this slot."""
        return self.kind == "selector"

    @property
    def cells(self) -> range:
        """The canvas cells of the slot."""
        return range(self.start, self.start + self.budget)

    @property
    def constraint(self) -> TokenTable:
        """The automaton over tokens that the slot's cells obey."""
        return token_table(self.field, self.tokenizer, self.symbols, self.budget, absent=self.absent)

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
class Choice:
    """What a selector came out as: the number of the branch, None for absent; and how sure that is, 0..1."""

    branch: int | None
    confidence: float = 1.0


@dataclass(frozen=True)
class Node:
    """A place in the result.

    kind: 'leaf' (slot), 'const', 'object' (children by name, then entries of a key and a value node), 'array' (children by
    place), 'open' (slot is a selector), 'chosen' (one child, the branch that was chosen) or 'gone' (chosen to be absent).
    """

    field: Field
    kind: Literal["leaf", "const", "object", "array", "open", "chosen", "gone"]
    slot: int = -1
    names: tuple[str, ...] = ()
    required: tuple[bool, ...] = ()
    children: tuple[Node, ...] = ()
    entries: tuple[tuple[Node, Node], ...] = ()
    confidence: float = 1.0


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
class Layout:
    """How a schema is laid out.

    Attributes:
        budget: cells of a free string without maxLength. budgets: cells of single slots, by pointer.
        max_items: places of an array without maxItems. max_recursion: levels of definitions that contain themselves.
        gated: whether objects and arrays that may be absent stand behind selectors.
        choices: branches of selectors that are known, by pointer. known: texts of slots that others wait for.
    """

    budget: int = TEXT_BUDGET
    budgets: Mapping[str, int] = field(default_factory=dict)
    max_items: int = MAX_ITEMS
    max_recursion: int = MAX_RECURSION
    gated: bool = False
    choices: Mapping[str, Choice] = field(default_factory=dict)
    known: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Scaffold:
    """A laid-out schema.

    Attributes:
        ids: [L] literal tokens, the mask token in slots.
        slot_of: [L] number of the slot a cell belongs to, -1 on literals.
        slots: the slots in canvas order.
        root: what the slots make up. schema, layout: what was laid out, and how.
    """

    ids: list[int]
    slot_of: list[int]
    slots: list[Slot]
    root: Node
    tokenizer: Tokenizer
    symbols: Symbols
    schema: Schema
    layout: Layout

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def by_pointer(self) -> dict[str, Slot]:
        """The slots by the pointer of their value."""
        return {slot.pointer: slot for slot in self.slots}

    @property
    def open(self) -> list[Slot]:
        """The selectors that are to be filled before the layout is complete."""
        return [slot for slot in self.slots if slot.selector]

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

    def resolved(self, ids: Sequence[int], confidence: Sequence[float] | None = None, *, budgets: Mapping[str, int] | None = None) -> Scaffold:
        """The layout that a row [L] with filled selectors leads to; itself when nothing changes.

        Also takes in the values that other slots wait for, and new `budgets` of slots by pointer.
        """
        from vlm.structure.reading import read_slot

        sure = [1.0] * len(self.ids) if confidence is None else confidence
        choices, known = dict(self.layout.choices), dict(self.layout.known)
        waited = {slot.after for slot in self.slots if slot.after}
        for slot in self.slots:
            if slot.selector:
                reading = read_slot(slot, ids, sure)
                choices[slot.pointer] = Choice(None if reading.absent else int(reading.value), reading.confidence)
            elif slot.pointer in waited:
                reading = read_slot(slot, ids, sure)
                known[slot.pointer] = None if reading.absent else str(reading.value)
        if not self.open and not waited and not budgets:
            return self
        layout = replace(self.layout, choices=choices, known=known, budgets={**self.layout.budgets, **(budgets or {})})
        return lay_out(self.schema, self.tokenizer, self.symbols, layout)

    def read(
        self,
        ids: Sequence[int],
        confidence: Sequence[float] | None = None,
        *,
        locate: Callable[[list[int]], tuple[float, float, float, float] | None] | None = None,
        valid: Mapping[str, float] | None = None,
    ) -> tuple[Any, dict[str, FieldInfo]]:
        """The data of a finished canvas row, and what is known of each leaf by its pointer in the data.

        Args:
            ids: [L] the row; cells that are still masked count as never decided.
            confidence: [L] probability of each cell when it was committed; 1 where not given.
            locate: box (x0, y0, x1, y1 px) of the page region that the given cells were copied from.
            valid: `FieldInfo.p_valid` by slot pointer.

        The data always satisfies the schema. The confidence of a leaf is the product over the cells that decided it:
        those of its value and the pad that ends it, or the null token; and those of the selectors it lies behind. That
        product is the probability the model gave to the value along the order of its commits. A leaf that is `forced` was
        repaired: its slot held no valid value, or was absent where the schema demands a value, and the shortest valid one
        stands in, at confidence 0; a text cut to its maxLength keeps its confidence.
        """
        from vlm.structure.reading import read_scaffold

        return read_scaffold(self, ids, confidence, locate, valid or {})

    def warnings(self, data: Any) -> tuple[str, ...]:
        """What a reader of the data should know: arrays that filled every place they were given, keywords left out."""
        found = [f"not checked: {entry}" for entry in self.schema.unchecked]
        _full_arrays(self.root, data, "", found)
        return tuple(found)


def _full_arrays(node: Node, data: Any, pointer: str, found: list[str]) -> None:
    if data is None or not node.children:
        return
    if node.kind == "chosen":
        _full_arrays(node.children[0], data, pointer, found)
    elif isinstance(node.field, ArrayField) and isinstance(data, list):
        if len(data) == len(node.children) and node.field.max_items != len(data):
            found.append(f"{pointer}: all {len(data)} places were used, there may be more on the page")
        for index, (child, item) in enumerate(zip(node.children, data, strict=False)):
            _full_arrays(child, item, f"{pointer}/{index}", found)
    elif isinstance(node.field, ObjectField) and isinstance(data, dict):
        from vlm.structure.conjunction import escape

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
    schema: Schema,
    tokenizer: Tokenizer,
    *,
    budget: int = TEXT_BUDGET,
    budgets: Mapping[str, int] | None = None,
    max_items: int = MAX_ITEMS,
    max_recursion: int = MAX_RECURSION,
    gated: bool | None = None,
    symbols: Symbols | None = None,
) -> Scaffold:
    """Lay out a schema for a vocabulary.

    Args:
        schema: from `parse_schema`.
        budget: cells of a free string without maxLength.
        budgets: cells of single slots, by pointer; else `x-budget` of the schema, else the kind's own measure.
        max_items: places laid out for an array without maxItems.
        max_recursion: how many levels of a definition that contains itself may be written.
        gated: put objects and arrays that may be absent behind selectors; None does so only where the layout would be
            unreasonably long otherwise.
        symbols: control tokens; by default those with the usual spellings.

    SchemaError when the layout would be unreasonably long or the vocabulary cannot spell a value.
    """
    layout = Layout(budget, budgets or {}, max_items, max_recursion, bool(gated))
    symbols = symbols or Symbols.of(tokenizer)
    try:
        return lay_out(schema, tokenizer, symbols, layout)
    except LayoutTooLongError:
        if gated is not None:
            raise
        return lay_out(schema, tokenizer, symbols, replace(layout, gated=True))


class LayoutTooLongError(SchemaError):
    """A layout with more than MAX_CELLS cells."""


def lay_out(schema: Schema, tokenizer: Tokenizer, symbols: Symbols, layout: Layout) -> Scaffold:
    """A schema as a scaffold; see :func:`compile_scaffold`."""
    from vlm.structure.layout import Builder

    builder = Builder(schema, tokenizer, symbols, layout)
    root = builder.lay(schema.root, "", optional=False)
    builder.flush()
    return Scaffold(builder.ids, builder.slot_of, builder.slots, root, tokenizer, symbols, schema, layout)
