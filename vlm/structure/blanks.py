"""Text with blanks: ``The total is [[total:8:number]].`` becomes a scaffold whose literals are the text itself.

A blank is ``[[cells]]``, ``[[name:cells]]`` or ``[[name:cells:kind]]``. `cells` is its length on the canvas; a shorter value
leaves the rest empty. `kind` is what a short template knows (``number``, ``date``, ``cash|card``, with ``!`` never left
empty) or a regular expression between slashes. A blank without a name is called by the words before it: pocket looks for
them on the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.errors import SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.conjunction import escape
from vlm.structure.fields import Field, Member, ObjectField, Schema
from vlm.structure.leaves import MAX_BUDGET
from vlm.structure.lift import Symbols, token_table
from vlm.structure.scaffold import MAX_CELLS, Layout, Node, Scaffold, Slot, leaf_kind
from vlm.structure.schema import parse_schema
from vlm.structure.shorthand import from_template

_BLANK = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_KEY_WORDS = 3  # words before a nameless blank that name it, these left out
_SMALL = frozenset("a an and are as at be by for from has have in is of on or that the this to was were with".split())


@dataclass(frozen=True)
class Blank:
    """A gap in a text: its name, its length in cells, and what may stand in it."""

    name: str
    cells: int
    field: Field


def parse_blanks(text: str) -> list[str | Blank]:
    """Literal runs and blanks in order.

    Raises:
        SchemaError: a blank that cannot be read, or a text without any.
    """
    parts: list[str | Blank] = []
    taken: set[str] = set()
    end = 0
    for match in _BLANK.finditer(text):
        if match.start() > end:
            parts.append(text[end : match.start()])
        end = match.end()
        parts.append(_blank(match[1], text[: match.start()], taken))
    if not taken:
        raise SchemaError("has no blank", source="text", remedy="Write one, e.g. The total is [[total:8:number]]")
    if end < len(text):
        parts.append(text[end:])
    return parts


def _blank(inside: str, before: str, taken: set[str]) -> Blank:
    source = f"blank [[{inside}]]"
    bare = inside.strip().isdigit()
    name, _, rest = ("", "", inside) if bare else inside.partition(":")
    cells, _, kind = rest.partition(":")
    if not cells.strip().isdigit():
        raise SchemaError("has no length", source=source, remedy="Write [[cells]], [[name:cells]] or [[name:cells:kind]]")
    length = int(cells)
    if not 1 <= length <= MAX_BUDGET:
        raise SchemaError(f"is {length} cells long", source=source, remedy=f"Use 1 to {MAX_BUDGET}")
    name = _unused(name.strip() or _words_before(before) or "blank", taken)
    taken.add(name)
    return Blank(name, length, _field(name, kind.strip() or "string", source))


def _words_before(text: str) -> str:
    """The last words before a blank, back to the last blank, line or sentence."""
    run = re.split(r"\]\]|\n|[.;]\s", text)[-1]
    return " ".join([word for word in re.findall(r"\w+", run) if word.lower() not in _SMALL][-_KEY_WORDS:])


def _unused(name: str, taken: set[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free


def _field(name: str, kind: str, source: str) -> Field:
    strict = kind.endswith("!")
    word = kind.rstrip("!?").strip()
    try:
        if len(word) > 2 and word.startswith("/") and word.endswith("/"):
            schema = {"type": "string" if strict else ["string", "null"], "pattern": f"^(?:{word[1:-1]})$"}
        else:
            schema = from_template({name: kind})["properties"][name]
        root = parse_schema({"type": "object", "properties": {name: schema}, "required": [name]}).root
        assert isinstance(root, ObjectField)
        return root.members[0].field
    except SchemaError as error:
        raise SchemaError(f"has a kind that cannot be used: {error}", source=source, remedy="Use string, number, date, a|b, or /pattern/") from error


def compile_blanks(text: str, tokenizer: Tokenizer, *, symbols: Symbols | None = None) -> Scaffold:
    """The scaffold of a text with blanks; it reads as an object with the blanks' names.

    Raises:
        SchemaError: see :func:`parse_blanks`; a blank too short for its kind; a text that is too long.
    """
    known = symbols or Symbols.of(tokenizer)
    ids: list[int] = []
    slot_of: list[int] = []
    slots: list[Slot] = []
    for part in parse_blanks(text):
        if isinstance(part, str):
            literal = tokenizer.encode(part)
            ids += literal
            slot_of += [-1] * len(literal)
            continue
        least = token_table(part.field, tokenizer, known).min_tokens
        if least > part.cells:
            raise SchemaError(f"needs at least {least} cells and has {part.cells}", source=f"blank {part.name!r}", remedy="Make it longer")
        slots.append(Slot(f"/{escape(part.name)}", leaf_kind(part.field), len(ids), part.cells, part.field.nullable, part.field, tokenizer, known))
        slot_of += [len(slots) - 1] * part.cells
        ids += [known.mask] * part.cells
    if len(ids) > MAX_CELLS:
        raise SchemaError(f"needs {len(ids)} cells, and {MAX_CELLS} is the most", source="text", remedy="Shorten it")
    root = _root(slots)
    return Scaffold(ids, slot_of, slots, root, tokenizer, known, Schema(root.field), Layout())


def _root(slots: Sequence[Slot]) -> Node:
    """An object with one required member for each slot."""
    names = tuple(slot.pointer[1:].replace("~1", "/").replace("~0", "~") for slot in slots)
    members = tuple(Member(name, slot.field, True) for name, slot in zip(names, slots, strict=True))
    leaves = tuple(Node(slot.field, "leaf", slot=i) for i, slot in enumerate(slots))
    return Node(ObjectField(pointer="", members=members), "object", names=names, required=(True,) * len(slots), children=leaves)
