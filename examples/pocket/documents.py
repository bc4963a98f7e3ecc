"""Documents drawn with known fields: receipts, invoices, tickets, forms, cards and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.pocket import facts as say
from examples.pocket.facts import CONCEPTS, Fact, Rng
from examples.pocket.page import FontFile, Page, Run, load_font, pick_font
from examples.pocket.sample import Query, Sample, Value
from examples.pocket.words import COMMON, amount, anything, cased, digits, syllable_word

KINDS = ("receipt", "invoice", "ticket", "form", "card", "table")
#: How often a training document leaves a value out behind its label, and sets a line or marks (never dots) between the two.
BLANK_SHARE, FILL_SHARE = 0.04, 0.15
#: Printed labels that only held-out documents use.
HELD_OUT_LABELS = {
    "total": ["Total Payable", "Sum"], "date": ["Dated", "Day"], "invoice_number": ["Doc No"], "name": ["Name of holder"],
    "phone": ["Mobile"], "subtotal": ["Net"], "expiry": ["Valid to"],
}  # fmt: skip


@dataclass
class Pen:
    """Where the next line goes, in which type."""

    page: Page
    rng: Rng
    held_out: bool
    font: FontFile
    bold: FontFile
    size: int
    left: int
    right: int
    y: float
    leading: float
    shout: bool

    def width(self, text: str, font: FontFile | None = None, size: int | None = None) -> float:
        """Advance of the text in pixels."""
        return load_font(font or self.font, size or self.size).getlength(text)

    def feed(self, lines: float = 1.0) -> None:
        """Go down."""
        self.y += self.leading * lines

    def put(self, x: float, text: str, font: FontFile | None = None, size: int | None = None, color: tuple[int, int, int] = (0, 0, 0)) -> Run:
        """Draw at the present line."""
        return self.page.text(x, self.y, text, font or self.font, size or self.size, color)

    def centred(self, text: str, font: FontFile | None = None, size: int | None = None) -> Run:
        """Draw in the middle of the line."""
        x = (self.left + self.right - self.width(text, font, size)) / 2
        return self.put(max(x, 2), text, font, size)

    def fits(self, text: str, width: float, size: int | None = None) -> str:
        """The text cut to `width` pixels at a word or character."""
        while text and self.width(text, None, size) > width:
            text = text.rsplit(" ", 1)[0] if " " in text else text[:-1]
        return text

    def rule(self) -> None:
        """A line across, drawn or made of characters."""
        self.feed(0.6)
        if self.rng.random() < 0.5:
            self.page.draw.line((self.left, self.y, self.right, self.y), fill=(60, 60, 60), width=1)
        else:
            mark = str(self.rng.choice(["-", "-", "=", "*"]))
            count = int((self.right - self.left) / max(self.width(mark), 1))
            self.put(self.left, mark * count)
        self.feed(0.6)


def _pen(rng: Rng, held_out: bool, width: int, size: int, mono: float = 0.3) -> Pen:
    font = pick_font(rng, held_out, mono)
    bold = font if rng.random() < 0.6 else pick_font(rng, held_out, mono)
    paper = int(rng.integers(225, 256))
    tint = tuple(int(c) for c in np.clip(paper - rng.integers(0, 25, 3), 0, 255)) if rng.random() < 0.3 else (paper,) * 3
    page = Page(width, 1400, (tint[0], tint[1], tint[2]))
    left = int(rng.integers(4, 28))
    return Pen(page, rng, held_out, font, bold, size, left, width - int(rng.integers(4, 24)), size * 1.6, size * float(rng.uniform(1.15, 1.9)), rng.random() < 0.4)


def _crop(pen: Pen) -> None:
    """Cut the page under its last line."""
    page = pen.page
    height = int(pen.y + pen.size * pen.rng.uniform(0.6, 2.0) + 7) // 8 * 8
    page.image = page.image.crop((0, 0, page.width, height))
    page.height = height


def _label(concept: str, labels: list[str], rng: Rng, held_out: bool) -> str:
    if held_out and concept in HELD_OUT_LABELS and rng.random() < 0.3:
        labels = HELD_OUT_LABELS[concept]
    text = str(rng.choice(labels))
    return text.upper() if rng.random() < 0.25 else text


def _pair(pen: Pen, concept: str, manner: str, keys: list[str], labels: list[str], kind: str, left: float, right: float, money: str = "") -> Fact:
    """One label with its value in the given manner between `left` and `right`; leaves the pen on the value's line."""
    rng = pen.rng
    label = _label(concept, labels, rng, pen.held_out)
    text, canonical = say.text_for(kind, rng, pen.held_out)
    if not pen.held_out and rng.random() < BLANK_SHARE:
        text = ""  # a form nobody filled in here
    whole = text
    if pen.shout and kind in ("person", "word", "words", "company"):
        text = text.upper()
    prefix = money if kind == "amount" else ""
    fact = Fact(concept, keys, kind, canonical=canonical)
    colon = str(rng.choice([":", ":", " :", "", "."])) if manner in ("same", "column", "ends") else ""
    if manner == "above":
        text = pen.fits(text, right - left)
        pen.put(left, pen.fits(label, right - left, max(10, int(pen.size * 0.8))), pen.bold, max(10, int(pen.size * 0.8)), (90, 90, 90) if rng.random() < 0.5 else (0, 0, 0))
        pen.feed(0.85)
        run, start = pen.put(left, prefix + text), len(prefix)
    elif manner == "same":
        text = pen.fits(text, right - left - pen.width(f"{label}{colon} {prefix}"))
        run, start = pen.put(left, f"{label}{colon} {prefix}{text}"), len(f"{label}{colon} {prefix}")
    else:
        pen.put(left, f"{label}{colon}", pen.bold)
        gap = pen.width(f"{label}{colon}", pen.bold) + pen.size * 0.5
        at = left + gap if manner == "ends" else max(left + gap, left + 0.42 * (right - left))
        text = pen.fits(text, right - at - pen.width(prefix))
        if manner == "ends":
            at = right - pen.width(prefix + text)
        run = pen.put(at, prefix + text)
        if not pen.held_out and rng.random() < FILL_SHARE:
            _fill(pen, left + gap, at - pen.size * 0.3)
        start = len(prefix)
    if text != whole:  # cut to fit: no ISO form of half a date
        fact.canonical = None
    if text:
        fact.parts = [(run, start, text)]
    return fact


def _fill(pen: Pen, left: float, right: float) -> None:
    """Something between a label and its value: a line, or marks that are no part of either."""
    rng = pen.rng
    if rng.random() < 0.4:
        y = pen.y - float(rng.choice([0.0, 0.3])) * pen.size
        if right > left:
            pen.page.draw.line((left, y, right, y), fill=(90, 90, 90), width=1)
        return
    mark = str(rng.choice(["_", "-", "_ ", "- ", "~", "=", "*", "> "]))
    count = int((right - left) / max(pen.width(mark), 1))
    if count > 0:
        pen.put(left, (mark * count).rstrip())


def _usable(facts: list[Fact]) -> list[Fact]:
    """Facts that really stand on the page; dates cut short lose their ISO form."""
    usable = [f for f in facts if f.parts]
    for f in usable:
        if f.canonical and len(f.value().text) < 8:
            f.canonical = None
    return usable


def _queries(facts: list[Fact], rng: Rng, held_out: bool, extra: list[Query] | None = None) -> list[Query]:
    usable, empty = _usable(facts), [f for f in facts if not f.parts]
    made = [say.query(usable, rng, held_out, empty) for _ in range(2 if extra else 3)] if usable else []
    return [q for q in made if q is not None] + (extra or [])


def _money(rng: Rng) -> str:
    return str(rng.choice(["", "", "", "$", "RM ", "RM", "£", "€", "USD "]))


def _concepts(rng: Rng, names: list[str], count: int, invented: float, held_out: bool) -> list[tuple[str, list[str], list[str], str]]:
    """`count` concepts with disjoint keys, some of them made up."""
    picked: list[tuple[str, list[str], list[str], str]] = []
    taken: set[str] = set()
    pool = list(rng.permutation(names))
    while len(picked) < count and (pool or invented):
        if rng.random() < invented or not pool:
            entry = say.made_up(rng, held_out)
        else:
            name = str(pool.pop())
            entry = (name, *CONCEPTS[name])
        letters = {k.replace("_", "").lower() for k in entry[1]} | {label.lower() for label in entry[2]}
        if not letters & taken:
            taken |= letters
            picked.append(entry)
    return picked


def _title(pen: Pen, words: list[str]) -> None:
    """A heading, now and then with a coloured band."""
    rng = pen.rng
    text = str(rng.choice(words)) if rng.random() < 0.6 else cased(syllable_word(rng, pen.held_out), rng) + " " + str(rng.choice(words))
    size = int(pen.size * rng.uniform(1.0, 1.6))
    text = text if pen.width(text, pen.bold, size) < pen.right - pen.left else text[:10]
    if rng.random() < 0.3:
        shade = int(rng.integers(40, 140))
        pen.page.draw.rectangle((0, pen.y - size * 1.1, pen.page.width, pen.y + size * 0.5), fill=(shade, shade, min(255, shade + 60)))
        pen.put(pen.left, text, pen.bold, size, (255, 255, 255))
    elif rng.random() < 0.5:
        pen.centred(text, pen.bold, size)
    else:
        pen.put(pen.left, text, pen.bold, size)
    pen.feed(1.5)


def receipt(rng: Rng, held_out: bool) -> Sample:
    """A shop receipt: header, ids, items, sums, thanks."""
    size = int(rng.integers(12, 20))
    pen = _pen(rng, held_out, int(size * rng.uniform(19, 28)) // 8 * 8, size, mono=0.5)
    facts: list[Fact] = []
    middle = rng.random() < 0.75

    def header(text: str, font: FontFile | None = None, big: int | None = None) -> Run:
        run = pen.centred(text, font, big) if middle else pen.put(pen.left, text, font, big)
        pen.feed(1.15 if big else 1.0)
        return run

    span = pen.right - pen.left
    if rng.random() < 0.3:
        header(pen.fits(anything(rng, held_out), span))
    name = say.company(rng, held_out)
    name = name.upper() if rng.random() < 0.6 else name
    big = int(size * rng.uniform(1.0, 1.4))
    company = Fact("company", ["company", "company_name", "merchant", "store", "vendor", "company", "shop"], "company")
    name = pen.fits(name, span, big) or digits(rng, 4)
    company.parts = [(header(name, pen.bold if rng.random() < 0.5 else None, big), 0, name)]
    facts.append(company)
    if rng.random() < 0.5:
        header(pen.fits(f"({digits(rng, 6)}-{'ABCDEFGHKMPTUVWX'[rng.integers(16)]})" if rng.random() < 0.6 else f"CO. REG NO: {digits(rng, 7)}", span))
    if rng.random() < 0.85:
        place = Fact("address", ["address", "store_address", "address", "company_address"], "address")
        for line in say.address_lines(rng, held_out):
            line = pen.fits(line.upper() if pen.shout else line, span)
            if line:
                place.parts.append((header(line), 0, line))
        facts.append(place)
    for concept in rng.permutation(["phone", "tax_id", "email", "website"])[: int(rng.integers(0, 3))]:
        if middle:
            text, _ = say.text_for(CONCEPTS[concept][2], rng, held_out)
            label = f"{_label(concept, CONCEPTS[concept][1], rng, held_out)}{rng.choice([': ', ' : ', ':', ' '])}"
            text = pen.fits(text, span - pen.width(label))
            run = header(label + text)
            facts.append(Fact(concept, CONCEPTS[concept][0], CONCEPTS[concept][2], [(run, len(label), text)] if text else []))
        else:
            facts.append(_pair(pen, concept, "same", *CONCEPTS[concept], pen.left, pen.right))
            pen.feed()
    if rng.random() < 0.5:
        header(str(rng.choice(["TAX INVOICE", "RECEIPT", "SIMPLIFIED TAX INVOICE", "Cash Bill", "INVOICE", "** COPY **"])))
    if rng.random() < 0.6:
        pen.rule()
    ids = [*rng.permutation(["invoice_number", "receipt_number", "cashier", "table", "order_number"])[: int(rng.integers(0, 3))], "date"]
    manner = str(rng.choice(["same", "same", "column", "ends"]))
    for concept in rng.permutation(ids):
        if concept == "date" and rng.random() < 0.4:  # date and time without labels
            text, iso, spots = say.day(rng)
            clock = say.clock(rng)
            line = f"{text} {clock}" if rng.random() < 0.7 else text
            facts.append(Fact("date", ["date", "date", "purchase_date", "receipt_date"], "date", [(pen.put(pen.left, line), 0, text)], (iso, spots)))
        else:
            facts.append(_pair(pen, str(concept), manner, *CONCEPTS[str(concept)], pen.left, pen.right))
        pen.feed()
    pen.rule()
    items, query = _items(pen, int(rng.integers(1, 6)))
    pen.rule()
    facts += _sums(pen, ["subtotal", "tax", "discount", "rounding"], ["cash", "change"])
    if rng.random() < 0.6:
        pen.feed(0.5)
        for _ in range(int(rng.integers(1, 3))):
            header(pen.fits(" ".join(str(rng.choice(COMMON)) for _ in range(4)).upper(), span))
    _crop(pen)
    return Sample(pen.page, None, [], _queries(facts, rng, held_out, [query] if rng.random() < 0.3 and items else None), "receipt", _usable(facts))


def _sums(pen: Pen, before: list[str], after: list[str]) -> list[Fact]:
    """The sums at the foot: some lines before the total, the total, some after it."""
    rng, money = pen.rng, _money(pen.rng)
    names = [str(n) for n in before if rng.random() < 0.45] + ["total"] + [str(n) for n in after if rng.random() < 0.5]
    manner = str(rng.choice(["ends", "ends", "ends", "column", "same"]))
    left = pen.left if rng.random() < 0.7 else pen.left + 0.3 * (pen.right - pen.left)
    out = []
    for name in names:
        keys, labels, kind = CONCEPTS[name]
        out.append(_pair(pen, name, manner, keys, labels, kind, left, pen.right, money))
        pen.feed(1.1)
    return out


def _items(pen: Pen, count: int) -> tuple[int, Query]:
    """Item lines with name, quantity and price, and the query for them as an array."""
    rng = pen.rng
    with_quantity = rng.random() < 0.6
    values: dict[str, Value | None] = {}
    rows: list[dict[str, Any]] = []
    name_key, price_key = str(rng.choice(["name", "description", "item"])), str(rng.choice(["price", "amount", "total"]))
    at = pen.left + pen.width("000 ") if with_quantity else pen.left
    if rng.random() < 0.5:
        pen.put(at, str(rng.choice(["Item", "Description", "ITEM"])))
        if with_quantity:
            pen.put(pen.left, str(rng.choice(["Qty", "QTY"])))
        price_label = str(rng.choice(["Price", "Amount", "RM", "Total"]))
        pen.put(pen.right - pen.width(price_label), price_label)
        pen.feed()
    for i in range(count):
        price = amount(rng, 3)
        room = pen.right - at - pen.width(price + "  ")
        text = pen.fits(" ".join(cased(syllable_word(rng, pen.held_out), rng) if rng.random() < 0.6 else str(rng.choice(COMMON)) for _ in range(int(rng.integers(1, 4))))[:20].strip(), room)
        text = (text.upper() if pen.shout else text) or digits(rng, 2)
        quantity = str(rng.integers(1, 20))
        name_run = pen.put(at, text)
        price_run = pen.put(pen.right - pen.width(price), price)
        entry: dict[str, Any] = {}
        base = f"/items/{i}"
        values[f"{base}/{name_key}"] = Value(text, list(name_run.glyphs))
        entry[name_key] = text
        if with_quantity:
            values[f"{base}/quantity"] = Value(quantity, list(pen.put(pen.left, quantity).glyphs))
            entry["quantity"] = int(quantity)
        number = Fact("price", [], "amount", [(price_run, 0, price)]).number()
        values[f"{base}/{price_key}"] = number
        entry[price_key] = float(number.text)
        rows.append(entry)
        pen.feed()
    properties: dict[str, Any] = {name_key: {"type": ["string", "null"], "maxLength": 20}}
    if with_quantity:
        properties["quantity"] = {"type": ["integer", "null"]}
    properties[price_key] = {"type": ["number", "null"]}
    most = max(count, int(rng.integers(count, 6)))
    for i in range(count, most):
        for key in properties:
            values[f"/items/{i}/{key}"] = None
    item = {"type": "object", "properties": properties, "required": list(properties)}
    schema = {"type": "object", "properties": {"items": {"type": "array", "maxItems": most, "items": item}}, "required": ["items"]}
    return count, Query("extract", "", schema, {"items": rows}, values)


def _grid(pen: Pen, entries: list[tuple[str, list[str], list[str], str]], money: str) -> list[Fact]:
    """Labels and values in one or two columns."""
    rng = pen.rng
    columns = 2 if rng.random() < 0.35 and pen.right - pen.left > pen.size * 22 else 1
    manner = str(rng.choice(["same", "column", "above", "ends"] if columns == 1 else ["same", "above", "above"]))
    out, span = [], (pen.right - pen.left) / columns
    boxed = rng.random() < 0.15
    for i in range(0, len(entries), columns):
        top = pen.y
        for c, entry in enumerate(entries[i : i + columns]):
            pen.y = top
            start = pen.left + c * span
            out.append(_pair(pen, entry[0], manner, entry[1], entry[2], entry[3], start + 2, start + span - pen.size * 0.6, money))
            if boxed:
                pen.page.draw.rectangle((start - 2, top - pen.size * 1.1, start + span - 4, pen.y + pen.size * 0.35), outline=(120, 120, 120))
        pen.feed(1.25 if manner == "above" or boxed else 1.05)
    return out


def form(rng: Rng, held_out: bool, kind: str = "form") -> Sample:
    """A form, card or ticket: a title and labelled values."""
    names = {
        "form": list(CONCEPTS), "card": ["name", "surname", "given_name", "birth", "expiry", "id_number", "nationality", "sex", "height", "address", "department", "position", "company"],
        "ticket": ["name", "seat", "gate", "flight", "origin", "destination", "event", "venue", "price", "class", "date", "time", "order_number"],
        "invoice": ["invoice_number", "date", "due_date", "customer", "order_number", "tax_id", "phone", "email", "company", "address", "payment", "status"],
    }[kind]  # fmt: skip
    size = int(rng.integers(12, 22))
    pen = _pen(rng, held_out, int(size * rng.uniform(16, 32)) // 8 * 8, size, mono=0.2)
    facts: list[Fact] = []
    if rng.random() < 0.7:
        words = {"form": ["Form", "Application", "Registration", "Report"], "card": ["Identity Card", "Member", "Licence", "PASS"], "ticket": ["Boarding Pass", "Ticket", "E-Ticket"], "invoice": ["Invoice", "INVOICE", "Tax Invoice"]}
        _title(pen, words[kind])
    entries = _concepts(rng, names, int(rng.integers(2, 9)), 0.5 if kind == "form" else 0.12, held_out)
    facts += _grid(pen, entries, _money(rng))
    extra: list[Query] = []
    if kind == "invoice":
        pen.feed(0.5)
        _, query = _items(pen, int(rng.integers(1, 5)))
        pen.rule()
        facts += _sums(pen, ["subtotal", "tax", "discount", "shipping"], [])
        extra = [query] if rng.random() < 0.3 else []
    elif rng.random() < 0.3:
        pen.feed(0.4)
        pen.put(pen.left, pen.fits(anything(rng, held_out), pen.right - pen.left))
        pen.feed()
    _crop(pen)
    return Sample(pen.page, None, [], _queries(facts, rng, held_out, extra), kind, _usable(facts))


def table(rng: Rng, held_out: bool) -> Sample:
    """A table with a header row; asked for as an array of its rows."""
    size = int(rng.integers(12, 18))
    count, columns = int(rng.integers(2, 6)), int(rng.integers(2, 4))
    columns += int(not held_out and rng.random() < 0.25)
    pen = _pen(rng, held_out, int(size * (7 + 9 * columns)) // 8 * 8, size, mono=0.2)
    entries = list(_concepts(rng, ["name", "quantity", "price", "date", "status", "id_number", "seat", "department"], columns, 0.4, held_out))
    if rng.random() < 0.5:
        _title(pen, ["List", "Table", "Orders", "Members"])
    span = (pen.right - pen.left) / columns
    keys = [str(rng.choice(e[1])) for e in entries]
    shift = rng.choice([0.0, 0.0, 0.5, 1.0], columns) if not held_out else np.zeros(columns)  # left, middle or right of its column

    def cell(c: int, text: str, font: FontFile | None = None) -> Run:
        slack = max(0.0, span - pen.size - pen.width(text, font))
        return pen.put(pen.left + c * span + shift[c] * slack, text, font)

    for c, e in enumerate(entries):
        cell(c, pen.fits(str(rng.choice(e[2])), span - 6) or "No", pen.bold)
    lined = rng.random() < 0.5
    pen.feed(1.1)
    values: dict[str, Value | None] = {}
    rows: list[dict[str, Any]] = []
    kinds = [e[3] for e in entries]
    numeric = [k in ("amount", "integer") and rng.random() < 0.6 for k in kinds]
    for i in range(count):
        if lined:
            pen.page.draw.line((pen.left, pen.y - pen.size * 1.05, pen.right, pen.y - pen.size * 1.05), fill=(150, 150, 150))
        entry: dict[str, Any] = {}
        for c, (e, key) in enumerate(zip(entries, keys, strict=True)):
            text = pen.fits(say.text_for(e[3], rng, held_out)[0], span - size) or digits(rng, 2)
            fact = Fact(e[0], [], e[3], [(cell(c, text), 0, text)])
            value = fact.number() if numeric[c] else fact.value()
            values[f"/rows/{i}{say.pointer_of(key)}"] = value
            entry[key] = (float(value.text) if e[3] == "amount" else int(value.text)) if numeric[c] else value.text
        rows.append(entry)
        pen.feed(1.1)
    most = max(count, int(rng.integers(count, 6)))
    for i in range(count, most):
        for key in keys:
            values[f"/rows/{i}{say.pointer_of(key)}"] = None
    properties = {k: {"type": [("integer" if kinds[c] == "integer" else "number") if numeric[c] else "string", "null"], **({} if numeric[c] else {"maxLength": 20})} for c, k in enumerate(keys)}
    item = {"type": "object", "properties": properties, "required": keys}
    schema = {"type": "object", "properties": {"rows": {"type": "array", "maxItems": most, "items": item}}, "required": ["rows"]}
    _crop(pen)
    return Sample(pen.page, None, [], [Query("extract", "", schema, {"rows": rows}, values)], "table")


def make(rng: Rng, held_out: bool = False, kind: str | None = None) -> Sample:
    """One document of the given or a random kind, clean, with two or three queries."""
    while True:
        chosen = kind or str(rng.choice(KINDS, p=[0.25, 0.13, 0.1, 0.22, 0.1, 0.2]))
        if chosen == "receipt":
            sample = receipt(rng, held_out)
        elif chosen == "table":
            sample = table(rng, held_out)
        else:
            sample = form(rng, held_out, chosen)
        if sample.queries:
            return sample
