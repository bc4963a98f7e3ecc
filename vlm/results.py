"""What a call gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Usage:
    """What a row cost: commit rounds, model calls, tokens written, and its share of the wall time in milliseconds."""

    steps: int = 0
    forwards: int = 0
    tokens: int = 0
    ms: float = 0.0


@dataclass(frozen=True)
class FieldInfo:
    """One leaf of the data.

    Attributes:
        value: as in the data. confidence: 0..1. box: x0, y0, x1, y1 in pixels of the picture, None if it was not read
        off a place. forced: the value was repaired to satisfy the schema. pointer: JSON pointer into the data.
        p_valid: probability that the model, left alone, would have written any valid value here, as it stood before anything of
        the value was known; low where the model wanted something else. None where that was not seen.
        raw_confidence: before calibration; None where there is none.
    """

    value: Any
    confidence: float
    box: Box | None = None
    forced: bool = False
    pointer: str = ""
    p_valid: float | None = None
    raw_confidence: float | None = None


@dataclass(frozen=True)
class Line:
    """A line of text read off a picture, with its box in pixels and the mean confidence of its characters."""

    text: str
    box: Box
    confidence: float


@dataclass(frozen=True)
class Item:
    """An object or widget found on a picture."""

    kind: str
    color: str | None
    box: Box
    confidence: float


@dataclass(frozen=True)
class Candidate:
    """A place that may be meant by an instruction: box in pixels, and its share of the probability."""

    box: Box
    confidence: float


@dataclass(frozen=True)
class Result:
    """The answer to one request.

    Attributes:
        text: the answer as text (JSON for structured tasks). data: the parsed answer of structured tasks.
        box: pixels, for grounding; candidates: further places, the likeliest first. confidence: 0..1. fields: by JSON
        pointer. lines, items: of ``read``, ``objects``.
        status: 'ok', 'partial' (some slot undecided), 'forced' (some value repaired) or 'error'.
        error: {type, message, stage} when status is 'error'. source: what the picture was called.
    """

    text: str = ""
    data: Any = None
    box: Box | None = None
    confidence: float = 0.0
    fields: dict[str, FieldInfo] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    items: tuple[Item, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    status: str = "ok"
    error: dict[str, str] | None = None
    warnings: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; empty parts are left out."""
        full = asdict(self)
        return {k: v for k, v in full.items() if v not in (None, (), {}) or k in ("text", "data")}
