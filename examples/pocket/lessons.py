"""Lessons for the backbone: a page as visual tokens, canvases with their answers, and where each answer is copied from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.pocket.page import Glyph, Page
from examples.pocket.reader_data import CHAR_CLASS
from examples.pocket.sample import Query, Sample, Value
from vision.lines import Detections
from vision.reader import COLORS, THINGS
from vision.tokens import BLANK, CHAR, GAP, ROW_END, SPELLED, THING, Things, VisualTokens, assemble, name_of
from vlm.backbone.slots import NUMBERS, SlotTable
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.scaffold import Scaffold, compile_scaffold
from vlm.structure.schema import parse_schema
from vlm.training.losses import NOWHERE, UNKNOWN

COLON = CHAR_CLASS[":"]
_ALIKE = ["O0QDo", "I1l|i!", "S5s$", "B8", "Z2z", "G6C", "gq9", "uvU", "VvYy", "ce", "rn", "mn", "hb", ".,:;", "'`\"", "-_~", "tf", "Kk", "Xx", "Pp", "Ww", "({[", ")}]", "/\\|", "a@o"]
_TWINS: dict[int, list[int]] = {}
for _group in _ALIKE:
    for _char in _group:
        _TWINS.setdefault(CHAR_CLASS[_char], []).extend(CHAR_CLASS[c] for c in _group if c != _char)


@dataclass
class Lesson:
    """One canvas: what to fill in, and where it stands on the page.

    Attributes:
        instruction: token ids of the user's text.
        ids: [L] the finished canvas; answer: [L] True on slot cells (the rest is scaffold).
        slot_index: [L] 1 + place in the slot, 0 on literals. slots: what the slots' cells know.
        pointer: [L] index of the visual token each cell is copied from, NOWHERE or UNKNOWN; the first cell of filler behind
            a copied value points at what stands behind it on the page: values end where something else comes.
        task: for statistics.
    """

    instruction: list[int]
    ids: NDArray[np.int64]
    answer: NDArray[np.bool_]
    slot_index: NDArray[np.int64]
    pointer: NDArray[np.int64]
    task: str
    slots: SlotTable


def simulate(page: Page, rng: np.random.Generator, error: float) -> Detections:
    """What the reader might report of a page, without drawing it: boxes that tremble, confused characters, losses.

    Args:
        page: its glyphs are the truth.
        error: share of characters that come out wrong.
    """
    boxes, classes, probs, blank = [], [], [], []
    for run in page.runs:
        for i, g in enumerate(run.glyphs):
            if g is None or g.char not in CHAR_CLASS or rng.random() < error * 0.15:
                continue
            true = CHAR_CLASS[g.char]
            other = int(rng.choice(_TWINS[true])) if true in _TWINS and rng.random() < 0.8 else int(rng.integers(1, 97))
            sure = 1 - float(rng.beta(0.3, 6)) if rng.random() > error else float(rng.uniform(0, 0.5))
            third = int(rng.integers(1, 97))
            first = (true, other) if sure >= 0.5 else (other, true)
            top = max(sure, 1 - sure)
            classes.append((*first, third, third))
            probs.append((top * 0.98, (1 - top) * 0.98, 0.02, 0.0))
            h = g.y1 - g.y0
            dx, dy = rng.normal(0, 0.03, 2) * h
            boxes.append((g.x0 + dx, g.y0 + dy, g.x1 + dx, g.y1 + dy))
            follows = i + 1 < len(run.glyphs) and run.glyphs[i + 1] is None
            blank.append(float(follows) if rng.random() > error * 0.3 else 1 - float(follows))
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(n, 4), np.array(classes, np.int64).reshape(n, 4), np.array(probs, np.float32).reshape(n, 4),
        np.ones(n, np.float32), np.array(blank, np.float32), np.full(n, -1, np.int64),
    )  # fmt: skip


def true_things(sample: Sample) -> Things:
    """The sample's things as the reader would report them, without error."""
    names = {name: i + 1 for i, name in enumerate(THINGS)}
    colors = {name: i + 1 for i, name in enumerate(COLORS)}
    known = [t for t in sample.things if t.kind in names or t.kind.startswith("icon:")]
    if not known:
        return Things.none()
    n = len(known)
    return Things(
        np.array([t.box for t in known], np.float32), np.array([names.get(t.kind, names["icon:other"]) for t in known], np.int64),
        np.array([colors.get(t.color or "", 0) for t in known], np.int64), np.ones(n, np.float32), np.full(n, -1, np.int64),
    )  # fmt: skip


def locate(tokens: VisualTokens, glyphs: list[Glyph]) -> dict[int, int]:
    """Which entry shows each glyph: ``id(glyph)`` -> entry; glyphs the reader missed are left out."""
    chars = np.flatnonzero((tokens.kind == CHAR) & (tokens.cells != SPELLED))
    if not len(chars) or not glyphs:
        return {}
    boxes = tokens.boxes[chars]
    cx, cy = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    out: dict[int, int] = {}
    for g in glyphs:
        w, h = g.x1 - g.x0, g.y1 - g.y0
        dx, dy = np.abs(cx - (g.x0 + g.x1) / 2), np.abs(cy - (g.y0 + g.y1) / 2)
        near = int(np.argmin(dx + dy))
        if dx[near] < max(0.5 * w, 2.5) and dy[near] < 0.6 * h:
            out[id(g)] = int(chars[near])
    return out


def value_pointers(value: Value, where: dict[int, int], tokens: VisualTokens) -> list[int]:
    """Entry of each character of the value; a blank points at the entry right after the character before it."""
    out: list[int] = []
    copied = any(g is not None for g in value.glyphs)
    for i, char in enumerate(value.text):
        glyph = value.glyphs[i] if i < len(value.glyphs) else None
        if glyph is not None:
            out.append(where.get(id(glyph), UNKNOWN))
        elif char == " " and copied and out and out[-1] >= 0 and out[-1] + 1 < len(tokens) and tokens.kind[out[-1] + 1] in (BLANK, GAP, ROW_END):
            out.append(out[-1] + 1)
        else:
            out.append(UNKNOWN if copied and char == " " else NOWHERE)
    return out


def tightened(query: Query, rng: np.random.Generator) -> dict[str, Any]:
    """The schema with most string budgets shortened towards their values: padding teaches little and costs as much."""

    def visit(node: Any, pointer: str) -> Any:
        if not isinstance(node, dict):
            return node
        out = dict(node)
        if "properties" in node:
            out["properties"] = {
                k: visit(v, f"{pointer}/{k.replace('~', '~0').replace('/', '~1')}") for k, v in node["properties"].items()
            }
        elif "maxLength" in node and rng.random() < 0.8:
            value = query.values.get(pointer)
            need = len(value.text) if value else int(rng.integers(4, 14))
            out["maxLength"] = min(node["maxLength"], max(6, need + int(rng.integers(0, 7))))
        return out

    result: dict[str, Any] = visit(query.schema, "")
    return result


class LessonMaker:
    """Turns queries into lessons with the product's own tokenizer and scaffolds."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def scaffold(self, schema: dict[str, Any]) -> Scaffold:
        """The scaffold that ``extract`` would use."""
        return compile_scaffold(parse_schema(schema), self.tokenizer)

    def make(self, query: Query, tokens: VisualTokens, page: Page | None, rng: np.random.Generator | None = None) -> Lesson:
        """The finished canvas of a query and its pointers; with `rng`, slots are cut to about the size of their values."""
        glyphs = [g for v in query.values.values() if v for g in v.glyphs if g is not None]
        where = locate(tokens, glyphs)
        instruction = self.tokenizer.encode(query.instruction)
        if query.schema is None:
            spare = 16 * int(rng.choice([0, 0, 1, 2, 3])) if rng is not None else 0
            return self._free(query, instruction, where, tokens, spare)
        scaffold = self.scaffold(query.schema if rng is None else tightened(query, rng))
        special = self.tokenizer.special
        ids = np.array(scaffold.ids, np.int64)
        slot_of = np.array(scaffold.slot_of, np.int64)
        pointer = np.full(len(ids), NOWHERE, np.int64)
        slot_index = np.zeros(len(ids), np.int64)
        thing = self._thing_pointer(query, tokens)
        for slot in scaffold.slots:
            cells = slice(slot.start, slot.start + slot.budget)
            slot_index[cells] = np.arange(1, slot.budget + 1)
            value = query.values.get(slot.pointer)
            if value is None:
                text_ids, marks = [special["<|null|>"]], [NOWHERE]
            else:
                text_ids = self.tokenizer.encode_chars(value.text)[: slot.budget]
                marks = (reasons(value, tokens) if value.boxes else value_pointers(value, where, tokens))[: slot.budget]
                if thing is not None:
                    marks = [thing] + [NOWHERE] * (len(text_ids) - 1)  # one cell says where
                if len(marks) != len(text_ids):  # a character that takes several tokens
                    marks = [UNKNOWN] * len(text_ids)
            ids[cells], pointer[cells] = special["<|pad|>"], UNKNOWN
            ids[slot.start : slot.start + len(text_ids)] = text_ids
            pointer[slot.start : slot.start + len(marks)] = marks
            if len(marks) < slot.budget and slot.kind not in NUMBERS:
                pointer[slot.start + len(marks)] = behind(marks, tokens)
        return Lesson(instruction, ids, slot_of >= 0, slot_index, pointer, query.task, SlotTable.of(scaffold))

    def _free(self, query: Query, instruction: list[int], where: dict[int, int], tokens: VisualTokens, spare: int) -> Lesson:
        text_ids = self.tokenizer.encode_chars(str(query.answer))
        value = query.values.get("")
        marks = value_pointers(value, where, tokens) if value else [NOWHERE] * len(text_ids)
        if value and value.boxes:
            marks = reasons(value, tokens)
        if len(marks) != len(text_ids):
            marks = [UNKNOWN] * len(text_ids)
        budget = -(-(len(text_ids) + 1) // 16) * 16 + spare
        ids = np.full(budget, self.tokenizer.special["<|pad|>"], np.int64)
        pointer = np.full(budget, UNKNOWN, np.int64)
        ids[: len(text_ids)], pointer[: len(marks)] = text_ids, marks
        ids[len(text_ids)] = self.tokenizer.special["<|eos|>"]
        end = behind(marks, tokens)
        pointer[len(text_ids)] = NOWHERE if end == UNKNOWN else end
        return Lesson(instruction, ids, np.ones(budget, bool), np.arange(1, budget + 1), pointer, query.task, SlotTable.none(budget))

    @staticmethod
    def _thing_pointer(query: Query, tokens: VisualTokens) -> int | None:
        """Grounding points at the thing whose box is the target, or at the text inside it."""
        if query.task != "ground" or query.box is None:
            return None
        return entry_in(query.box, tokens)


def behind(marks: list[int], tokens: VisualTokens) -> int:
    """What an end points at: the entry after the last copied one, UNKNOWN behind the page and behind what was not copied."""
    copied = len(marks) > 1 and marks[-1] >= 0 and marks[-2] >= 0
    return marks[-1] + 1 if copied and marks[-1] + 1 < len(tokens) else UNKNOWN


def reasons(value: Value, tokens: VisualTokens) -> list[int]:
    """Pointers of an answer about things: into the letters of their names where those are said, else the first character of
    what is said about a thing points at the thing, and the rest is not supervised."""
    out: list[int] = []
    i = 0
    while i < len(value.text):
        box = value.boxes[i]
        j = i + 1
        while j < len(value.text) and value.boxes[j] is box:
            j += 1
        said = value.text[i:j]
        if box is None:
            marks = [NOWHERE] * len(said)
        elif box == [] or (entry := entry_in(box, tokens)) == UNKNOWN or tokens.kind[entry] != THING:
            marks = [UNKNOWN] * len(said)
        else:
            name = name_of(int(tokens.classes[entry, 0]), int(tokens.color[entry]))
            marks = [UNKNOWN] * len(said)
            found = [(w, name.find(w), said.find(w)) for w in (name, *name.split(" ")) if w and w in said]
            if found:
                word, there, here = found[0]
                marks = [NOWHERE] * len(said)
                marks[here : here + len(word)] = range(entry + 1 + there, entry + 1 + there + len(word))
            else:
                marks[0] = entry
        out += marks
        i = j
    return out


def entry_in(box: list[float], tokens: VisualTokens) -> int:
    """The thing (or else the character) inside the box that lies nearest to its middle; UNKNOWN if there is none."""
    x0, y0, x1, y1 = box
    cx, cy = (tokens.boxes[:, 0] + tokens.boxes[:, 2]) / 2, (tokens.boxes[:, 1] + tokens.boxes[:, 3]) / 2
    inside = (cx >= x0) & (cx <= x1) & (cy >= y0) & (cy <= y1) & (np.isin(tokens.kind, (THING, CHAR)))
    if not inside.any():
        return UNKNOWN
    picked = np.flatnonzero(inside)
    things = picked[tokens.kind[picked] == THING]
    pool = things if len(things) else picked
    middle = np.abs(cx[pool] - (x0 + x1) / 2) + np.abs(cy[pool] - (y0 + y1) / 2)
    return int(pool[np.argmin(middle)])


def see(sample: Sample, rng: np.random.Generator, error: float) -> VisualTokens:
    """Visual tokens of a sample as an imperfect reader would give them, without drawing it."""
    assert sample.page is not None
    page = sample.page
    return assemble(simulate(page, rng, error), true_things(sample), (page.width, page.height), COLON)
