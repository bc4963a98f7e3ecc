"""What documents say: concepts with their JSON keys, printed labels and values; made-up labels; queries over them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from examples.pocket.page import Glyph, Run
from examples.pocket.sample import Query, Value
from examples.pocket.words import COMMON, amount, cased, code, digits, syllable_word

Rng = np.random.Generator
_MONTHS = "January February March April May June July August September October November December".split()


def company(rng: Rng, held_out: bool) -> str:
    """A made-up company name."""
    words = [cased(syllable_word(rng, held_out), rng) if rng.random() < 0.75 else cased(str(rng.choice(COMMON)), rng) for _ in range(int(rng.integers(1, 4)))]
    tails = ["", "", "SDN BHD", "SDN. BHD.", "Ltd", "LLC", "Inc.", "(M) SDN BHD", "& Co", "ENTERPRISE", "TRADING", "Store", "Cafe"]
    return " ".join([*words, str(rng.choice(tails))]).strip()


def person(rng: Rng, held_out: bool) -> str:
    """A made-up person's name."""
    return " ".join(cased(syllable_word(rng, held_out), rng) if rng.random() < 0.3 else syllable_word(rng, held_out).capitalize() for _ in range(int(rng.integers(2, 4))))


def address_lines(rng: Rng, held_out: bool) -> list[str]:
    """One to four lines of a made-up address."""
    def name() -> str:
        return cased(syllable_word(rng, held_out), rng)

    parts = [
        f"{rng.choice(['No. ', 'NO ', 'No', '', 'Lot ', 'LOT '])}{rng.integers(1, 300)}{rng.choice(['', ',', '-G,', 'A,'])} {rng.choice(['Jalan', 'JALAN', 'JLN', 'Lorong', ''])} {name()} {rng.choice(['Street', 'Road', '3/2', 'Avenue', str(rng.integers(1, 40))])}",
        f"{rng.choice(['Taman', 'TAMAN', 'Bandar', ''])} {name()} {name()}",
        f"{digits(rng, 5)} {name()}" if rng.random() < 0.7 else f"{name()}, {name()} {digits(rng, 5)}",
        f"{name()}{rng.choice(['', '.', ', Malaysia'])}",
    ]  # fmt: skip
    count = int(rng.integers(1, 5))
    comma = rng.random() < 0.7
    lines = [" ".join(p.split()) for p in parts[:count]]
    return [line + "," if comma and i < count - 1 and not line.endswith(",") else line for i, line in enumerate(lines)]


def phone(rng: Rng) -> str:
    """A phone number in one of several manners."""
    return str(rng.choice([f"{digits(rng, 2)}-{digits(rng, 8)}", f"+{digits(rng, 2)} {digits(rng, 3)} {digits(rng, 4)}", f"({digits(rng, 3)}) {digits(rng, 3)}-{digits(rng, 4)}", digits(rng, 10), f"03-{digits(rng, 4)} {digits(rng, 4)}"]))


def email(rng: Rng, held_out: bool) -> str:
    """A made-up address for mail."""
    return f"{syllable_word(rng, held_out)}{rng.choice(['', '.' + syllable_word(rng, held_out)])}@{syllable_word(rng, held_out)}.{rng.choice(['com', 'org', 'net', 'io', 'com.my'])}"


def clock(rng: Rng) -> str:
    """A time of day."""
    hour, minute = int(rng.integers(0, 24)), int(rng.integers(0, 60))
    return str(rng.choice([f"{hour:02d}:{minute:02d}", f"{hour:02d}:{minute:02d}:{rng.integers(0, 60):02d}", f"{hour % 12 or 12}:{minute:02d} {'PM' if hour > 11 else 'AM'}"]))


def day(rng: Rng) -> tuple[str, str, list[int]]:
    """A date as printed, its ISO form, and for each ISO character the printed character it equals (-1: none)."""
    d = datetime.date(1960, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 27000)))
    month = _MONTHS[d.month - 1] if rng.random() < 0.5 else _MONTHS[d.month - 1][:3]
    month = month.upper() if rng.random() < 0.3 else month
    forms = ["%d/%m/%Y", "%d-%m-%Y", "%Y-%m-%d", "%d.%m.%Y", "%d/%m/%y", "%d M %Y", "M %d, %Y", "%d-M-%Y", "%Y/%m/%d", "%d %m %Y"]
    form = str(rng.choice(forms, p=[0.26, 0.14, 0.14, 0.08, 0.08, 0.1, 0.06, 0.06, 0.05, 0.03]))
    out, where, i = "", {}, 0
    while i < len(form):
        part = form[i : i + 2] if form[i] == "%" else form[i]
        text = d.strftime(part) if part[0] == "%" else month if part == "M" else part
        if part in ("%Y", "%m", "%d", "%y"):
            where[part] = len(out)
        out += text
        i += len(part)
    spots = [-1] * 10
    for part, start, first in (("%Y", 0, 0), ("%y", 2, 0), ("%m", 5, 0), ("%d", 8, 0)):
        if part in where:
            for k in range(4 if part == "%Y" else 2):
                spots[start + k] = where[part] + first + k
    return out, d.isoformat(), spots


@dataclass
class Fact:
    """Something a document says: `run[start:start+len(text)]` on the page, asked for under any of `keys`.

    Attributes:
        kind: string, number, date, code...; decides the schema of its leaf.
        parts: pieces of text in order (several lines of an address); each (run, start, text).
        canonical: ISO date and the printed character of each of its characters, for dates.
    """

    concept: str
    keys: list[str]
    kind: str
    parts: list[tuple[Run, int, str]] = field(default_factory=list)
    canonical: tuple[str, list[int]] | None = None

    def value(self) -> Value:
        """The text as printed, lines joined by a blank, with its glyphs."""
        text = " ".join(t for _, _, t in self.parts)
        glyphs: list[Glyph | None] = []
        for i, (run, start, t) in enumerate(self.parts):
            glyphs += ([None] if i else []) + list(run.glyphs[start : start + len(t)])
        return Value(text, glyphs)

    def number(self) -> Value:
        """Digits, sign and point only: a JSON number without needless zeros in front."""
        full = self.value()
        kept = [(c, g) for c, g in zip(full.text, full.glyphs, strict=True) if c.isdigit() or c in ".-"]
        while len(kept) > 1 and kept[0][0] == "0" and kept[1][0] != ".":
            kept.pop(0)
        return Value("".join(c for c, _ in kept), [g for _, g in kept])

    def iso(self) -> Value:
        """The date as YYYY-MM-DD."""
        assert self.canonical is not None
        text, spots = self.canonical
        printed = self.value().glyphs
        return Value(text, [printed[s] if s >= 0 else None for s in spots])


#: concept: (JSON keys, printed labels, kind of value)
CONCEPTS: dict[str, tuple[list[str], list[str], str]] = {
    "invoice_number": (["invoice_number", "invoice_no", "invoiceNumber", "invoice_id", "bill_number"], ["Invoice No", "Invoice #", "Invoice Number", "Inv No", "INV NO", "Bill No", "Invoice"], "code"),
    "receipt_number": (["receipt_number", "receipt_no", "receiptNumber"], ["Receipt No", "Receipt #", "Rcpt No", "Receipt Number"], "code"),
    "order_number": (["order_number", "order_no", "orderId", "order_id"], ["Order No", "Order #", "Order Number", "Order ID"], "code"),
    "date": (["date", "invoice_date", "issue_date", "date"], ["Date", "DATE", "Invoice Date", "Issued", "Issue Date"], "date"),
    "due_date": (["due_date", "dueDate", "payment_due", "pay_by"], ["Due Date", "Due", "Payment Due", "Pay by"], "date"),
    "time": (["time"], ["Time", "TIME", "Hour"], "time"),
    "customer": (["customer", "customer_name", "client", "bill_to"], ["Customer", "Bill To", "Client", "Sold To"], "person"),
    "phone": (["phone", "telephone", "phone_number", "tel"], ["Tel", "Phone", "Telephone", "TEL NO", "Contact"], "phone"),
    "email": (["email", "email_address", "mail"], ["Email", "E-mail", "Mail"], "email"),
    "tax_id": (["tax_id", "gst_id", "gst_number", "vat_number"], ["GST ID", "GST Reg No", "VAT No", "Tax ID", "GST No"], "code"),
    "cashier": (["cashier", "served_by", "staff"], ["Cashier", "Served by", "Staff"], "person"),
    "table": (["table", "table_number"], ["Table", "Table No", "TBL"], "integer"),
    "subtotal": (["subtotal", "sub_total", "net_amount"], ["Subtotal", "Sub Total", "SUB-TOTAL", "Net Amount", "Amount before tax"], "amount"),
    "tax": (["tax", "tax_amount", "gst", "vat"], ["Tax", "GST 6%", "GST", "VAT", "Sales Tax", "Tax Amount"], "amount"),
    "total": (["total", "total_amount", "grand_total", "amount_due", "total"], ["Total", "TOTAL", "Grand Total", "Total Amount", "Amount Due", "Total Due", "TOTAL RM", "Total (Incl GST)", "Balance Due", "NET TOTAL"], "amount"),
    "cash": (["cash", "cash_tendered", "amount_paid"], ["Cash", "CASH", "Cash Tendered", "Amount Paid", "Tendered"], "amount"),
    "change": (["change", "change_due"], ["Change", "CHANGE", "Change Due"], "amount"),
    "discount": (["discount", "discount_amount"], ["Discount", "Disc", "Less Discount"], "amount"),
    "rounding": (["rounding", "rounding_adjustment"], ["Rounding", "Rounding Adj", "Round"], "amount"),
    "tip": (["tip", "gratuity"], ["Tip", "Gratuity", "Service Charge"], "amount"),
    "shipping": (["shipping", "delivery_fee"], ["Shipping", "Delivery", "Freight"], "amount"),
    "name": (["name", "full_name", "holder", "passenger"], ["Name", "Full Name", "Passenger", "Holder", "Passenger Name"], "person"),
    "surname": (["surname", "last_name", "family_name"], ["Surname", "Last Name", "Family Name"], "word"),
    "given_name": (["given_name", "first_name", "given_names"], ["Given Name", "First Name", "Given Names"], "word"),
    "birth": (["date_of_birth", "dob", "birth_date", "birthday"], ["Date of Birth", "DOB", "Born", "Birth Date"], "date"),
    "expiry": (["expiry_date", "expiry", "valid_until", "expires"], ["Expiry", "Expires", "Valid Until", "Expiry Date", "Exp"], "date"),
    "id_number": (["id_number", "document_number", "card_number", "licence_number"], ["ID No", "ID Number", "Document No", "Card No", "Licence No", "ID"], "code"),
    "nationality": (["nationality", "country"], ["Nationality", "Country"], "word"),
    "sex": (["sex", "gender"], ["Sex", "Gender"], "sex"),
    "height": (["height", "height_cm"], ["Height", "Height (cm)"], "integer"),
    "seat": (["seat", "seat_number"], ["Seat", "Seat No"], "seat"),
    "gate": (["gate"], ["Gate"], "seat"),
    "flight": (["flight", "flight_number", "train"], ["Flight", "Flight No", "Train"], "code"),
    "origin": (["from", "origin", "departure_city"], ["From", "Departure", "Origin"], "word"),
    "destination": (["to", "destination", "arrival_city"], ["To", "Arrival", "Destination"], "word"),
    "event": (["event", "event_name", "show"], ["Event", "Show", "Concert"], "words"),
    "venue": (["venue", "place", "location"], ["Venue", "Place", "Location", "Hall"], "words"),
    "price": (["price", "fare", "ticket_price"], ["Price", "Fare", "Ticket Price"], "amount"),
    "class": (["class", "travel_class"], ["Class", "Cabin"], "word"),
    "department": (["department", "dept", "division"], ["Department", "Dept", "Division"], "words"),
    "position": (["position", "job_title", "role"], ["Position", "Job Title", "Role", "Title"], "words"),
    "quantity": (["quantity", "qty", "count"], ["Quantity", "Qty", "Count"], "integer"),
    "weight": (["weight", "weight_kg"], ["Weight", "Weight (kg)"], "amount"),
    "company": (["company", "company_name", "employer", "vendor"], ["Company", "Employer", "Vendor"], "company"),
    "address": (["address", "street_address", "location_address"], ["Address", "Addr", "Street"], "address"),
    "website": (["website", "url", "web"], ["Web", "Website", "URL"], "email"),
    "payment": (["payment_method", "payment", "paid_by"], ["Payment", "Paid by", "Payment Method"], "payment"),
    "status": (["status", "state"], ["Status", "State"], "status"),
}  # fmt: skip
_CHOICES = {"payment": ["Cash", "VISA", "Card", "Master", "Debit", "Cheque"], "status": ["Paid", "Open", "Pending", "Closed", "Active", "Void"], "sex": ["M", "F", "Male", "Female"]}


def text_for(kind: str, rng: Rng, held_out: bool) -> tuple[str, tuple[str, list[int]] | None]:
    """A value of the kind as printed, and the canonical date if it is one."""
    if kind == "date":
        printed, iso, spots = day(rng)
        return printed, (iso, spots)
    simple: dict[str, Callable[[], str]] = {
        "code": lambda: code(rng), "time": lambda: clock(rng), "person": lambda: person(rng, held_out), "phone": lambda: phone(rng),
        "email": lambda: email(rng, held_out), "integer": lambda: str(rng.integers(1, 10 ** int(rng.integers(1, 5)))), "amount": lambda: amount(rng),
        "word": lambda: cased(syllable_word(rng, held_out), rng), "seat": lambda: f"{rng.integers(1, 60)}{'ABCDEF'[rng.integers(6)]}",
        "words": lambda: " ".join(cased(syllable_word(rng, held_out), rng) for _ in range(int(rng.integers(1, 4)))),
        "company": lambda: company(rng, held_out), "address": lambda: " ".join(address_lines(rng, held_out)[:1]),
    }  # fmt: skip
    if kind in _CHOICES:
        return str(rng.choice(_CHOICES[kind])), None
    return simple[kind](), None


def made_up(rng: Rng, held_out: bool) -> tuple[str, list[str], list[str], str]:
    """A concept nobody has heard of: (name, keys, labels, kind); the key follows the letters of the label."""
    words = [syllable_word(rng, held_out) if rng.random() < 0.6 else str(rng.choice(COMMON)) for _ in range(int(rng.choice([1, 1, 2, 2, 3])))]
    label = " ".join(words)
    short = "_".join(w[0] + "".join(c for c in w[1:] if c not in "aeiou") for w in words)
    keys = ["_".join(words)] * 5 + [words[0] + "".join(w.capitalize() for w in words[1:]), "-".join(words), label, short]
    kind = str(rng.choice(["code", "person", "amount", "date", "word", "words", "integer", "phone", "time", "email"]))
    return f"*{label}", keys, [label.title(), label.upper(), label.capitalize(), label], kind


def leaf(fact: Fact | None, kind: str, rng: Rng, limit: int, iso_share: float = 0.2) -> tuple[dict[str, Any], Value | None, Any]:
    """Schema, value and JSON answer of one leaf; `fact` None means that the document does not say it.

    `iso_share`: how many dates are asked for as YYYY-MM-DD, however they are printed.
    """
    if kind in ("amount", "integer") and rng.random() < 0.6:
        schema: dict[str, Any] = {"type": ["integer" if kind == "integer" else "number", "null"]}
        if fact is None:
            return schema, None, None
        value = fact.number()
        if value.text and value.text not in ("-", "."):
            return schema, value, float(value.text) if kind == "amount" else int(value.text)
    if kind == "date" and rng.random() < iso_share and (fact is None or fact.canonical):
        schema = {"type": ["string", "null"], "format": "date"}
        iso = fact.iso() if fact else None
        return schema, iso, iso.text if iso else None
    schema = {"type": ["string", "null"], "maxLength": limit}
    text = fact.value() if fact else None
    if text and len(text.text) > limit:
        schema["maxLength"] = len(text.text)
    return schema, text, text.text if text else None


def pointer_of(key: str) -> str:
    """JSON pointer of a top-level key."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


def query(facts: list[Fact], rng: Rng, held_out: bool, empty: list[Fact] | None = None, most: int = 7) -> Query | None:
    """A query for some of the facts in any order, absent ones asked in half of the cases.

    Args:
        empty: facts whose label is printed without a value: absent ones that are asked more often.
        most: facts of an ordinary query; some may ask for twice as many.
    """
    ordinary, more, iso_share = (0.8, 0.55, 0.2) if held_out else (0.67, 0.6, 0.4)  # held-out documents stay the ones they were
    seen = {f.concept for f in facts}
    most = most if rng.random() < ordinary else 2 * most
    order = rng.permutation(len(facts))[: int(rng.integers(1, most + 1))]
    asked: list[tuple[str, Fact | None, str]] = [(str(rng.choice(facts[i].keys)), facts[i], facts[i].kind) for i in order]
    taken = {k for f in facts for k in f.keys}
    for blank in empty or []:
        if rng.random() < 0.6 and blank.concept not in seen:
            asked.insert(int(rng.integers(len(asked) + 1)), (str(rng.choice(blank.keys)), None, blank.kind))
    if rng.random() < more:
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < 0.75:
                concept = str(rng.choice(list(CONCEPTS)))
                keys, _, kind = CONCEPTS[concept]
            else:
                concept, keys, _, kind = made_up(rng, held_out)
            key = str(rng.choice(keys))
            if concept not in seen and key not in taken:
                asked.insert(int(rng.integers(len(asked) + 1)), (key, None, kind))
    properties: dict[str, Any] = {}
    values: dict[str, Value | None] = {}
    answer: dict[str, Any] = {}
    limit = int(rng.choice([24, 32, 32, 40, 48]))
    for key, fact, kind in asked:
        if key not in properties:
            properties[key], values[pointer_of(key)], answer[key] = leaf(fact, kind, rng, limit, iso_share)
    if not properties:
        return None
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return Query("extract", "", schema, answer, values)
