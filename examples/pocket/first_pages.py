"""First lessons: small pages of labels and values, where finding and copying is learned before real layouts come."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.pocket.page import Page, Run, load_font, pick_font
from examples.pocket.sample import Query, Sample, Value
from examples.pocket.words import amount, anything, cased, code, date, digits, syllable_word

_COMMON = (
    "name company address date total subtotal tax invoice number phone email customer order account reference seat gate "
    "flight class type status city country state code price quantity item amount due balance paid change cash card "
    "member birth expiry issued valid height weight sex nationality department manager title project room table server "
    "start end time from to via fee rate discount shipping terms note product model serial version size color"
).split()


def label(rng: np.random.Generator, held_out: bool = False) -> str:
    """One to three words, common or made up."""
    words = [
        str(_COMMON[rng.integers(len(_COMMON))]) if rng.random() < 0.5 else syllable_word(rng, held_out)
        for _ in range(int(rng.choice([1, 1, 2, 2, 3])))
    ]
    return " ".join(words)


def key_of(text: str, rng: np.random.Generator) -> str:
    """A JSON key that a person might choose for a label."""
    words = text.lower().split()
    kind = rng.random()
    if kind < 0.55:
        return "_".join(words)
    if kind < 0.75:
        return words[0] + "".join(w.capitalize() for w in words[1:])
    if kind < 0.85:
        return "-".join(words)
    if kind < 0.93:
        return " ".join(words)
    short = [w[0] + "".join(c for c in w[1:] if c not in "aeiou") for w in words]
    return "_".join(short)


def value(rng: np.random.Generator, held_out: bool = False) -> str:
    """What may stand behind a label."""
    kind = rng.random()
    if kind < 0.3:
        return " ".join(cased(syllable_word(rng, held_out), rng) for _ in range(int(rng.integers(1, 4))))
    if kind < 0.5:
        return amount(rng)
    if kind < 0.65:
        return date(rng)[0]
    if kind < 0.85:
        return code(rng)
    return anything(rng, held_out)


def printed(run: Run, start: int, text: str) -> Value:
    """The value that stands at `start` in the run."""
    return Value(text, list(run.glyphs[start : start + len(text)]))


def make(rng: np.random.Generator, held_out: bool = False) -> Sample:
    """A page of 2-7 label/value pairs and three queries for subsets of them."""
    font = pick_font(rng, held_out)
    bold = pick_font(rng, held_out) if rng.random() < 0.3 else font
    size = int(rng.integers(11, 24))
    pairs: dict[str, str] = {}
    while len(pairs) < int(rng.integers(2, 8)):
        pairs[label(rng, held_out)] = value(rng, held_out)[:28].strip() or digits(rng, 3)
    layout = str(rng.choice(["colon", "same", "right", "above"]))
    mark = str(rng.choice([":", ":", "", " :", "."])) if layout != "above" else ""
    case = rng.random()
    shown = {k: (k.upper() if case < 0.35 else k.title() if case < 0.8 else k) for k in pairs}
    column = max(load_font(bold, size).getlength(s + mark) for s in shown.values()) + size * rng.uniform(0.6, 3)
    widest = max(load_font(font, size).getlength(v) for v in pairs.values())
    left = int(rng.integers(4, 30))
    width = int(left + column + widest + rng.integers(8, 60))
    step = size * rng.uniform(1.2, 2.0)
    rows = len(pairs) * (2 if layout == "above" else 1) + 2
    height = int(step * rows + size)
    page = Page((width + 7) // 8 * 8, (height + 7) // 8 * 8)
    y = size * 1.3
    if rng.random() < 0.5:
        page.text(left, y, anything(rng, held_out)[:20], bold, size)
        y += step
    values: dict[str, Value] = {}
    for name, text in pairs.items():
        if layout == "colon":
            run = page.text(left, y, f"{shown[name]}{mark} {text}", font, size)
            values[name] = printed(run, len(shown[name] + mark) + 1, text)
        elif layout == "above":
            page.text(left, y, shown[name], bold, size)
            y += size * 1.15
            values[name] = printed(page.text(left + rng.integers(0, 6), y, text, font, size), 0, text)
        else:
            page.text(left, y, shown[name] + mark, bold, size)
            x = left + column if layout == "same" else width - load_font(font, size).getlength(text) - 4
            values[name] = printed(page.text(x, y, text, font, size), 0, text)
        y += step
    queries = [_query(rng, values, held_out) for _ in range(3)]
    return Sample(page=page, image=None, things=[], queries=queries, kind="first")


def _query(rng: np.random.Generator, values: dict[str, Value], held_out: bool) -> Query:
    names = list(values)
    rng.shuffle(names)
    names = names[: int(rng.integers(1, 5))]
    asked: list[tuple[str, Value | None]] = [(key_of(n, rng), values[n]) for n in names]
    if rng.random() < 0.4:
        other = label(rng, held_out)
        if other not in values:
            asked.insert(int(rng.integers(len(asked) + 1)), (key_of(other, rng), None))
    properties: dict[str, Any] = {}
    leaves: dict[str, Value | None] = {}
    for key, found in asked:
        if key in properties:
            continue
        properties[key] = {"type": ["string", "null"], "maxLength": 28}
        leaves["/" + key.replace("~", "~0").replace("/", "~1")] = found
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    answer = {k: (leaves["/" + k].text if leaves["/" + k] else None) for k in properties}  # type: ignore[union-attr]
    return Query(task="extract", instruction="", schema=schema, answer=answer, values=leaves)
