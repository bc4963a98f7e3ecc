"""Rendered sets for evaluation: documents, lines and screens that training never draws.

Held out are the fonts (``page.HELD_OUT_FAMILIES``), the made-up words (``words.syllable_word``: disjoint by a checksum),
some printed labels (``documents.HELD_OUT_LABELS``), the seeds (training uses small ones, these start at
``FIRST_SEED``), and whole layouts, which are drawn here and nowhere else: documents with labels aligned to a gutter,
bands of labels over their values, and dotted leaders; screens that are dialogs and cards. Concepts, their JSON keys and
the everyday words of screens are shared with training: a schema is answered by its words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.pocket import documents, screens
from examples.pocket import facts as say
from examples.pocket.documents import Pen, _concepts, _crop, _pen, _title
from examples.pocket.facts import CONCEPTS, Fact, Rng
from examples.pocket.page import Page, pick_font
from examples.pocket.reader_data import _inks
from examples.pocket.sample import Query, Sample, Value, render
from examples.pocket.words import anything

#: No training run uses seeds this large.
FIRST_SEED = 900_000_000
#: How hard pages are degraded: as in training.
HARDNESS = (0.0, 0.3, 0.6)
#: Screens are photographs of nothing: most are clean.
SCREEN_HARDNESS = (0.0, 0.0, 0.2)
#: Layouts of documents that only this module draws, and kinds in the order in which they are dealt.
LAYOUTS = ("gutter", "band", "leader")
DOCUMENT_KINDS = ("receipt", "form", "invoice", "receipt", "card", "gutter", "ticket", "form", "band", "receipt", "table", "leader")
SCREEN_KINDS = ("any", "dialog", "any", "cards")

Box = tuple[float, float, float, float]


@dataclass
class Case:
    """A picture, a request, and what is right.

    Attributes:
        image: [H, W, 3] uint8. schema: of an extraction; instruction: of a grounding.
        truth: value of each leaf that is there, by pointer; absent: pointers of leaves that are not.
        boxes: rendered box of each leaf that is there, in pixels; of a grounding under "".
        rows: number of rows of each array, by pointer.
    """

    kind: str
    image: NDArray[np.uint8]
    schema: dict[str, Any] | None = None
    instruction: str = ""
    truth: dict[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    boxes: dict[str, Box] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


def random(task: int, index: int, seed: int = 0) -> Rng:
    """The generator of case `index` of a task: cases do not depend on how many are drawn."""
    return np.random.default_rng((FIRST_SEED + seed, task, index))


def document_cases(index: int, seed: int = 0) -> list[Case]:
    """Document `index` asked for everything it says, and for some things it does not say; tables by their rows.

    Receipts and invoices whose items are asked give a second case.
    """
    rng = random(1, index, seed)
    kind = DOCUMENT_KINDS[index % len(DOCUMENT_KINDS)]
    sample = unseen(rng, kind) if kind in LAYOUTS else documents.make(rng, True, kind)
    queries = [ask_all(sample.facts, rng)] if sample.facts else []
    queries += [q for q in sample.queries if _is_array(q)][:1]
    image = render(sample, rng, float(rng.choice(HARDNESS)))
    return [case_of(f"{kind}_rows" if _is_array(q) else kind, image, q) for q in queries]


def _is_array(query: Query) -> bool:
    assert query.schema is not None
    return any("items" in p for p in query.schema["properties"].values())


def case_of(kind: str, image: NDArray[np.uint8], query: Query) -> Case:
    """Boxes are taken after rendering: the glyphs moved with the page."""
    truth: dict[str, Any] = {}
    boxes: dict[str, Box] = {}
    rows: dict[str, int] = {}
    for name, value in query.answer.items():
        if isinstance(value, list):
            rows[f"/{name}"] = len(value)
    for pointer, stated in query.values.items():
        if stated is None:
            continue
        truth[pointer] = _at(query.answer, pointer)
        box = box_of(stated)
        if box is not None:
            boxes[pointer] = box
    absent = tuple(p for p, v in query.values.items() if v is None and not rows)
    return Case(kind, image, query.schema, "", truth, absent, boxes, rows)


def _at(data: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        data = data[int(name)] if isinstance(data, list) else data[name]
    return data


def box_of(value: Value) -> Box | None:
    """Union box of the characters a value is printed with; None if it is printed nowhere."""
    seen = [g for g in value.glyphs if g is not None]
    if not seen:
        return None
    return (min(g.x0 for g in seen), min(g.y0 for g in seen), max(g.x1 for g in seen), max(g.y1 for g in seen))


def ask_all(facts: list[Fact], rng: Rng) -> Query:
    """A query for every fact in any order, and for one to three things the document does not say."""
    asked: list[tuple[str, Fact | None, str]] = []
    for i in rng.permutation(len(facts)):
        asked.append((str(rng.choice(facts[i].keys)), facts[i], facts[i].kind))
    taken, seen = {k for f in facts for k in f.keys}, {f.concept for f in facts}
    wanted = len(asked) + int(rng.integers(1, 4))
    while len(asked) < wanted:
        if rng.random() < 0.75:
            concept = str(rng.choice(list(CONCEPTS)))
            keys, _, kind = CONCEPTS[concept]
        else:
            concept, keys, _, kind = say.made_up(rng, True)
        key = str(rng.choice(keys))
        if concept not in seen and key not in taken:
            taken.add(key)
            asked.insert(int(rng.integers(len(asked) + 1)), (key, None, kind))
    properties: dict[str, Any] = {}
    values: dict[str, Value | None] = {}
    answer: dict[str, Any] = {}
    limit = int(rng.choice([24, 32, 32, 40, 48]))
    for key, fact, kind in asked:
        if key not in properties:
            properties[key], values[say.pointer_of(key)], answer[key] = say.leaf(fact, kind, rng, limit)
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return Query("extract", "", schema, answer, values)


def unseen(rng: Rng, layout: str) -> Sample:
    """A document in one of :data:`LAYOUTS`."""
    size = int(rng.integers(12, 20))
    pen = _pen(rng, True, int(size * rng.uniform(24, 34)) // 8 * 8, size, mono=0.2)
    if rng.random() < 0.7:
        _title(pen, ["Statement", "Summary", "Notice", "Record", "Delivery Note"])
    while True:
        entries = _concepts(rng, list(CONCEPTS), int(rng.integers(3, 9)), 0.25, True)
        facts = _DRAWN[layout](pen, entries)
        usable = documents._usable(facts)
        if usable:
            break
    _crop(pen)
    return Sample(pen.page, None, [], [], layout, usable)


Entry = tuple[str, list[str], list[str], str]


def _stated(pen: Pen, entry: Entry, room: float) -> tuple[str, str, Fact]:
    """(printed label, printed value cut to `room` pixels, the fact without its place)."""
    concept, keys, labels, kind = entry
    label = documents._label(concept, labels, pen.rng, True)
    text, canonical = say.text_for(kind, pen.rng, True)
    cut = pen.fits(text, room)
    return label, cut, Fact(concept, keys, kind, canonical=canonical if cut == text else None)


def _gutter(pen: Pen, entries: list[Entry]) -> list[Fact]:
    """Labels end, values begin at a line down the page."""
    facts, gutter = [], pen.left + (pen.right - pen.left) * float(pen.rng.uniform(0.4, 0.5))
    mark = str(pen.rng.choice(["", ":"]))
    for entry in entries:
        label, text, fact = _stated(pen, entry, pen.right - gutter - pen.size * 0.5)
        label = pen.fits(label, gutter - pen.left) + mark
        pen.put(max(pen.left - 3, gutter - pen.width(label)), label, color=(90, 90, 90))
        if text:
            fact.parts = [(pen.put(gutter + pen.size * 0.5, text), 0, text)]
        facts.append(fact)
        pen.feed(1.1)
    return facts


def _band(pen: Pen, entries: list[Entry]) -> list[Fact]:
    """Three columns of labels in a shaded band, the values under them."""
    facts: list[Fact] = []
    for start in range(0, len(entries), 3):
        row = entries[start : start + 3]
        span = (pen.right - pen.left) / len(row)
        pen.page.draw.rectangle((pen.left - 2, pen.y - pen.size, pen.right, pen.y + pen.size * 0.35), fill=(205, 210, 220))
        stated = [_stated(pen, entry, span - pen.size * 0.7) for entry in row]
        for c, (label, _, _) in enumerate(stated):
            pen.put(pen.left + c * span, pen.fits(label, span - pen.size * 0.7))
        pen.feed(1.2)
        for c, (_, text, fact) in enumerate(stated):
            if text:
                fact.parts = [(pen.put(pen.left + c * span, text), 0, text)]
            facts.append(fact)
        pen.feed(1.5)
    return facts


def _leader(pen: Pen, entries: list[Entry]) -> list[Fact]:
    """Dots lead from each label to its value at the right edge."""
    facts = []
    for entry in entries:
        label, text, fact = _stated(pen, entry, (pen.right - pen.left) * 0.5)
        label = pen.fits(label, (pen.right - pen.left) * 0.4)
        pen.put(pen.left, label)
        at = pen.right - pen.width(text)
        dots = int((at - pen.left - pen.width(label) - pen.size) / max(pen.width(" ."), 1))
        pen.put(pen.left + pen.width(label) + pen.size * 0.4, " ." * max(dots, 0))
        if text:
            fact.parts = [(pen.put(at, text), 0, text)]
        facts.append(fact)
        pen.feed(1.15)
    return facts


_DRAWN = {"gutter": _gutter, "band": _band, "leader": _leader}


def line_case(index: int, seed: int = 0) -> tuple[NDArray[np.uint8], str]:
    """A picture of one line of 3 to about 50 characters, and its text."""
    rng = random(2, index, seed)
    font, size = pick_font(rng, True), int(rng.integers(11, 31))
    text = ""
    while len(text) < 3:
        text = anything(rng, True).strip()
    margin = int(rng.integers(4, 16))
    width = -(-int(Page.text_width(text, font, size) + 2 * margin) // 8) * 8
    height = -(-int(size * rng.uniform(1.5, 2.2)) // 8) * 8
    background, ink = _inks(rng)
    page = Page(width, height, background)
    page.text(margin, height / 2 + size * 0.36, text, font, size, ink)
    return page.finish(rng, float(rng.choice(HARDNESS)), turn=1.0), text


def screen_cases(index: int, seed: int = 0) -> list[Case]:
    """Screen `index` with up to four instructions."""
    rng = random(3, index, seed)
    kind = SCREEN_KINDS[index % len(SCREEN_KINDS)]
    sample = screens.make(rng, True) if kind == "any" else _screen(rng, kind)
    image = render(sample, rng, float(rng.choice(SCREEN_HARDNESS)))
    out = []
    for q in sample.queries:
        assert q.box is not None
        x0, y0, x1, y1 = q.box
        out.append(Case(kind, image, None, q.instruction, {"/action": q.answer["action"]}, (), {"": (x0, y0, x1, y1)}))
    return out


def _screen(rng: Rng, kind: str) -> Sample:
    while True:
        s = screens.Screen(rng, True, int(rng.integers(40, 100)) * 8, int(rng.integers(36, 64)) * 8)
        (_dialog if kind == "dialog" else _cards)(s)
        if len(s.things) >= 2:
            return screens.asked(s)


def _dialog(s: screens.Screen) -> None:
    """A framed form in the middle of a dimmed page, its buttons at the lower right."""
    rng, page = s.rng, s.page
    ground = page.background[0]
    shade = ground - 70 if ground > 100 else ground + 40
    page.draw.rectangle((0, 0, page.width, page.height), fill=(shade, shade, shade))
    left, top = page.width * 0.14, page.height * 0.1
    right, bottom = page.width - left, page.height - top
    page.draw.rounded_rectangle((left, top, right, bottom), 8, fill=page.background, outline=(110, 110, 110))
    page.text(left + 16, top + s.size * 2, s.words([*screens.PAGES, "New item", "Sign in"]), s.font, int(s.size * 1.3), s.ink)
    s.icon(right - s.size * 2, top + s.size, s.size)
    y = top + s.size * 3.2
    while y < bottom - s.size * 7.5:
        y = s.field(left + 16, y, (right - left) * 0.8) if rng.random() < 0.7 else s.toggle(left + 16, y)
        y += s.size * 0.8
    x = right - s.size * 16
    for _ in range(2):
        x = s.button(max(x, left + 10), bottom - s.size * 3) + 10


def _cards(s: screens.Screen) -> None:
    """A grid of cards, each with a heading, a line of text and something to press."""
    rng, page = s.rng, s.page
    columns = int(rng.integers(2, 4))
    wide, tall = (page.width - 12) / columns, s.size * 9.0
    for row in range(int(page.height // tall)):
        for column in range(columns):
            x, y = 8 + column * wide, 8 + row * tall
            page.draw.rectangle((x, y, x + wide - 10, y + tall - 10), outline=(170, 170, 170))
            page.text(x + 8, y + s.size * 1.6, s.words(screens.PAGES, 0.6)[:14], s.font, int(s.size * 1.2), s.ink)
            text = anything(rng, True)
            while text and s.width(text) > wide - 30:
                text = text[:-1]
            page.text(x + 8, y + s.size * 3.2, text, s.font, s.size, s.ink)
            if rng.random() < 0.6 and wide > s.size * 10:
                s.button(x + 8, y + s.size * 4.6)
            elif rng.random() < 0.5:
                s.link(x + 8, y + s.size * 5.8, "link", [*screens.PAGES, "Read more", "Details"])
            else:
                s.icon(x + 8, y + s.size * 4.8, s.size * 1.2)
