"""A drawn sample: what is on the page and what may be asked about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.pocket.page import Glyph, Page


@dataclass
class Thing:
    """An object of a scene or a widget of a screen; `box` is x0, y0, x1, y1 in pixels."""

    kind: str
    color: str | None
    box: list[float]
    text: str = ""


@dataclass
class Value:
    """Characters of an answer and what each is taken from.

    Attributes:
        glyphs: the glyph that is copied, None for blanks and what is not copied.
        boxes: box of the thing that is the reason for the character, where no glyph is; None for nothing on the page, and
            an empty list where nobody knows. No list at all: nothing on the page.
    """

    text: str
    glyphs: list[Glyph | None]
    boxes: list[list[float] | None] = field(default_factory=list)


@dataclass
class Query:
    """One thing to ask: `values` maps the JSON pointer of each leaf to its Value (None: absent)."""

    task: str
    instruction: str
    schema: dict[str, Any] | None
    answer: Any
    values: dict[str, Value | None]
    box: list[float] | None = None


@dataclass
class Sample:
    """A page (or a given picture), the things on it and the queries about it; `facts` is all that a document says."""

    page: Page | None
    image: NDArray[np.uint8] | None
    things: list[Thing]
    queries: list[Query]
    kind: str = field(default="")
    facts: list[Any] = field(default_factory=list)


def render(sample: Sample, rng: np.random.Generator, hardness: float) -> NDArray[np.uint8]:
    """Degrade the page and keep the picture; boxes of glyphs and things move along."""
    assert sample.page is not None
    boxes = [t.box for t in sample.things] + [q.box for q in sample.queries if q.box is not None]
    unique = list({id(b): b for b in boxes}.values())
    sample.image = sample.page.finish(rng, hardness, boxes=unique)
    return sample.image
