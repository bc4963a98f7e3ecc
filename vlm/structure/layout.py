"""Writes literals and slots of a scaffold from left to right."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal, InvalidOperation

from vlm.errors import SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.automaton import leaf_dfa
from vlm.structure.branches import Branch, selector_texts
from vlm.structure.conjunction import escape
from vlm.structure.fields import (
    ArrayField,
    BooleanField,
    ChoiceField,
    ConstField,
    Field,
    NumberField,
    ObjectField,
    RefField,
    Schema,
    StringField,
    UnionField,
    height,
    heights,
    is_leaf,
)
from vlm.structure.leaves import MAX_BUDGET
from vlm.structure.lift import Symbols, token_table
from vlm.structure.scaffold import MAX_CELLS, TEXT_BUDGET, Layout, LayoutTooLongError, Node, Slot, leaf_kind, value_ids

TEXT_LIMIT = 96  # cells of a free string, whatever its maxLength says; x-budget goes beyond
FORMAT_BUDGETS = {
    "date": 10, "time": 14, "date-time": 25, "time-local": 8, "date-time-local": 19, "email": 40, "uuid": 36, "ipv4": 15, "ipv6": 39, "hostname": 40,
    "duration": 12, "json-pointer": 24,
}  # fmt: skip
LONG_FORMAT = 64  # cells of formats without a measure of their own: addresses
INTEGER_BUDGET, NUMBER_BUDGET = 10, 12
ENTRIES = 4  # places laid out for properties with free names


class Builder:
    """Lays out one schema; `ids`, `slot_of` and `slots` grow with every call of :meth:`lay`."""

    def __init__(self, schema: Schema, tokenizer: Tokenizer, symbols: Symbols, layout: Layout) -> None:
        self.schema, self.tokenizer, self.symbols, self.layout = schema, tokenizer, symbols, layout
        self.heights = heights(schema.definitions)
        self.ids: list[int] = []
        self.slot_of: list[int] = []
        self.slots: list[Slot] = []
        self.text = ""
        self.depth = 0  # definitions entered so far

    def flush(self) -> None:
        """Encode the literal text collected so far."""
        if self.text:
            ids = self.tokenizer.encode(self.text)
            self.ids += ids
            self.slot_of += [-1] * len(ids)
            self.text = ""
        if len(self.ids) > MAX_CELLS:
            raise LayoutTooLongError(f"the layout needs more than {MAX_CELLS} cells", remedy="Lower maxItems, maxLength or x-budget")

    def lay(self, field: Field, pointer: str, *, optional: bool) -> Node:
        """Lay out one field at a place of the result; `optional`: the place may stay empty whatever the field says."""
        if is_leaf(field):
            return self._leaf(field, pointer)
        may_lack = optional or field.nullable
        ends = may_lack and self.depth >= self.layout.max_recursion and height(field, self.heights) > 0
        branches = [] if ends else self._branches(field, may_lack)
        if not branches:
            self.text += "null"
            return Node(field, "gone")
        if len(branches) > 1 or (may_lack and (self.layout.gated or isinstance(field, RefField))):
            return self._selected(field, branches, pointer, may_lack)
        return self._branch(branches[0], pointer, optional)

    def _branches(self, field: Field, may_lack: bool) -> list[Branch]:
        """The ways to write a field; none when it has to stay absent because the recursion ends here."""
        if isinstance(field, RefField):
            if self.depth >= self.layout.max_recursion and may_lack:
                return []
            inner = replace(self.schema.definitions[field.target], nullable=False)
            return [replace(branch, enters=branch.enters + 1) for branch in self._branches(inner, False)]
        if not isinstance(field, UnionField) or field.is_leaf:
            return [Branch(field)]
        leaves = [option for option in field.options if is_leaf(option)]
        whole = leaves[0] if len(leaves) == 1 else UnionField(options=tuple(leaves), pointer=field.pointer)
        branches = [Branch(whole)] if leaves else []
        for option in field.options:
            if not is_leaf(option):
                branches += self._branches(option, False)
        if self.depth >= self.layout.max_recursion:
            least = min(b.enters + height(b.field, self.heights) for b in branches)
            if may_lack and least > 0:
                return []
            branches = [b for b in branches if b.enters + height(b.field, self.heights) == least]
        return branches

    def _branch(self, branch: Branch, pointer: str, optional: bool) -> Node:
        self.depth += branch.enters
        try:
            field = branch.field
            if isinstance(field, ObjectField):
                return self._object(field, pointer)
            if isinstance(field, ArrayField):
                return self._array(field, pointer)
            return self.lay(field, pointer, optional=optional)
        finally:
            self.depth -= branch.enters

    def _selected(self, field: Field, branches: list[Branch], pointer: str, may_lack: bool) -> Node:
        choice = self.layout.choices.get(pointer)
        if choice is not None:
            if choice.branch is None and may_lack:
                self.text += "null"
                return Node(field, "gone", confidence=choice.confidence)
            index = min(choice.branch or 0, len(branches) - 1)
            child = self._branch(replace(branches[index], field=replace(branches[index].field, nullable=False)), pointer, False)
            return Node(field, "chosen", children=(child,), confidence=choice.confidence)
        common, texts = selector_texts(branches, self.schema, factored=not may_lack)
        self.text += common
        values = tuple(index for index, labels in enumerate(texts) for _ in labels)
        labels = tuple(label for part in texts for label in part)
        cells = max(len(value_ids(label, self.tokenizer)) for label in labels)
        slot = self._slot(ChoiceField(values=values, texts=labels, pointer=field.pointer), "selector", pointer, cells, absent=may_lack)
        return Node(field, "open", slot=slot)

    def _leaf(self, field: Field, pointer: str) -> Node:
        if isinstance(field, ConstField):
            self.text += field.json
            return Node(field, "const")
        quoted = isinstance(field, StringField) or (isinstance(field, ChoiceField | UnionField) and field.quoted)
        self.text += '"' if quoted else ""
        kind = "union" if isinstance(field, UnionField) else leaf_kind(field)
        after = ""
        cells = self.layout.budgets.get(pointer) or leaf_budget(field, self.tokenizer, self.symbols, self.layout.budget)
        if isinstance(field, NumberField) and field.at_least is not None:
            field, after = self._bounded(field, pointer)
        slot = self._slot(field, kind, pointer, cells, after=after)
        self.text += '"' if quoted else ""
        return Node(field, "leaf", slot=slot)

    def _slot(self, field: Field, kind: str, pointer: str, cells: int, *, absent: bool = True, after: str = "") -> int:
        self.flush()
        self.slots.append(Slot(pointer, kind, len(self.ids), cells, field.nullable, field, self.tokenizer, self.symbols, absent, after))
        self.ids += [self.symbols.mask] * cells
        self.slot_of += [len(self.slots) - 1] * cells
        return len(self.slots) - 1

    def _bounded(self, field: NumberField, pointer: str) -> tuple[NumberField, str]:
        """A number with the bound that an earlier sibling sets; and that sibling's pointer while it is not known."""
        assert field.at_least is not None
        other = f"{pointer.rpartition('/')[0]}/{escape(field.at_least)}"
        if other not in self.layout.known:
            if not any(slot.pointer == other for slot in self.slots):
                raise SchemaError(
                    f"x-at-least names {field.at_least!r}, which is no number before it", pointer=field.pointer, remedy="Name an earlier sibling"
                )
            return field, other
        text = self.layout.known[other]
        try:
            low = Decimal(text) if text is not None else None
        except InvalidOperation:
            low = None
        if low is None or (field.low is not None and low <= field.low):
            return field, ""
        raised = replace(field, low=low, low_open=False)
        possible = (field.high is None or low <= field.high) and not leaf_dfa(raised).is_empty
        return (raised if possible else field), ""

    def _object(self, field: ObjectField, pointer: str) -> Node:
        children = []
        self.text += "{"
        for index, member in enumerate(field.members):
            self.text += (", " if index else "") + json.dumps(member.name, ensure_ascii=False) + ": "
            children.append(self.lay(member.field, f"{pointer}/{escape(member.name)}", optional=not member.required))
        entries = self._entries(field, pointer)
        self.text += "}"
        names = tuple(member.name for member in field.members)
        return Node(field, "object", -1, names, tuple(member.required for member in field.members), tuple(children), entries)

    def _entries(self, field: ObjectField, pointer: str) -> tuple[tuple[Node, Node], ...]:
        """Places for properties with free names. Their pointers have the place where the name will stand, behind a '*'."""
        needed = max(field.min_members - len(field.members), 0)
        room = ENTRIES if field.max_members is None else max(field.max_members - sum(m.required for m in field.members), 0)
        out = []
        for group, entry in enumerate(field.entries):
            recursive = not is_leaf(entry.field) and self.depth >= self.layout.max_recursion
            places = 0 if recursive else max(min(ENTRIES, room), needed)
            for place in range(places):
                where = f"{pointer}/*{group}.{place}"
                self.text += ", " if self.text[-1:] != "{" else ""
                self.text += '"'
                cells = self.layout.budgets.get(f"{where}/key") or leaf_budget(entry.key, self.tokenizer, self.symbols, self.layout.budget)
                key = self._slot(entry.key, "key", f"{where}/key", cells)
                self.text += '": '
                out.append((Node(entry.key, "leaf", slot=key), self.lay(entry.field, f"{where}/value", optional=True)))
        return tuple(out)

    def _array(self, field: ArrayField, pointer: str) -> Node:
        places = field.max_items if field.max_items is not None else max(self.layout.max_items, field.min_items, len(field.prefix))
        if field.items is None:
            places = min(places, len(field.prefix))
        if places > MAX_CELLS:
            raise SchemaError(f"maxItems {places} is too long to lay out", pointer=field.pointer)
        children = []
        self.text += "["
        for index in range(places):
            optional = index >= field.min_items
            item = field.item(index)
            if optional and self.depth >= self.layout.max_recursion and height(item, self.heights) > 0:
                break  # the recursion ends here
            self.text += ", " if index else ""
            before = len(self.slots)
            children.append(self.lay(item, f"{pointer}/{index}", optional=optional))
            if len(self.slots) == before and index >= len(field.prefix) and index + 1 >= field.min_items:
                break  # nothing to fill in: no way to say how many there are
        self.text += "]"
        return Node(field, "array", children=tuple(children))


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
    if isinstance(field, ConstField):
        return max(1, len(value_ids(field.json, tokenizer))), True
    if isinstance(field, UnionField):
        return max(_measure(option, tokenizer, default)[0] for option in field.options) + (0 if field.quoted else 2), False
    if isinstance(field, NumberField):
        bounds = [bound for bound in (field.low, field.high) if bound is not None]
        if field.integer and len(bounds) == 2:
            return max(len(f"{int(bound)}") for bound in bounds), False
        return (INTEGER_BUDGET if field.integer else NUMBER_BUDGET), not bounds and not field.multiples
    if isinstance(field, StringField):
        if field.format is not None:
            return FORMAT_BUDGETS.get(field.format, LONG_FORMAT), False
        cells = default if field.max_length is None else max(1, min(field.max_length, TEXT_LIMIT))
        return max(cells, field.min_length), not field.shaped
    raise SchemaError(f"a {type(field).__name__} is no leaf", pointer=field.pointer)
