"""What the tasks of an evaluation share: the model with remembered readings, packs, figures, and schema validation."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jsonschema import Draft202012Validator
from tqdm import tqdm

from vision.loading import LoadedImage, load_image
from vision.reading import Reading
from vlm.engine import PocketEngine
from vlm.metrics import wilson
from vlm.model import DiffusionVLM
from vlm.results import Result

T = TypeVar("T")


@dataclass
class Figure:
    """One measured number.

    Attributes:
        task, metric: what was measured. value: a share, or seconds where `unit` says so. n: how many items it is over.
        floor, aim: of the issue, None where nothing is asked. smaller: whether less is better.
        interval: about 95 % of a share of n independent items, else None.
    """

    task: str
    metric: str
    value: float
    n: int
    floor: float | None = None
    aim: float | None = None
    smaller: bool = False
    unit: str = "share"
    interval: tuple[float, float] | None = None
    note: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """'aim', 'floor', 'below floor', or nothing where nothing is asked."""
        if self.n == 0 or (self.floor is None and self.aim is None):
            return ""
        sign = -1 if self.smaller else 1
        if self.aim is not None and sign * self.value >= sign * self.aim:
            return "aim"
        if self.floor is None:
            return "below aim"
        return "floor" if sign * self.value >= sign * self.floor else "below floor"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, with the verdict."""
        return {**asdict(self), "verdict": self.verdict}


def share(task: str, metric: str, right: float, n: int, **more: Any) -> Figure:
    """The figure `right` out of `n`, with its interval."""
    return Figure(task, metric, right / n if n else 0.0, n, interval=wilson(right, n), **more)


class Remembering(PocketEngine):
    """An engine that reads a picture once, however many questions are asked about it."""

    def __init__(self, engine: PocketEngine) -> None:
        super().__init__(engine.model, engine.tokenizer)
        self._seen: dict[int, tuple[Any, Reading]] = {}

    def see(self, image: Any, rescale: bool = True) -> Reading:
        """The reading of an RGB image, from memory if this very object was read before."""
        known = self._seen.get(id(image))
        if known is None:
            known = self._seen[id(image)] = (image, super().see(image, rescale))
        return known[1]

    def see_each(self, images: Sequence[Any]) -> list[Reading]:
        """The same of several."""
        return [self.see(image) for image in images]

    def remember(self, image: Any, reading: Reading) -> None:
        """Take this for the reading of an image."""
        self._seen[id(image)] = (image, reading)

    def forget(self) -> None:
        """Drop all readings."""
        self._seen.clear()


@dataclass
class Validity:
    """Counts structured results that satisfy their schema (JSON Schema 2020-12, formats checked)."""

    checked: int = 0
    valid: int = 0
    repaired: int = 0
    first_error: str = ""

    def check(self, result: Result, schema: dict[str, Any]) -> bool:
        """Whether the result's text is JSON, equals its data, and satisfies the schema."""
        self.checked += 1
        self.repaired += result.status == "forced"
        try:
            data = json.loads(result.text)
            errors = [e.message for e in Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).iter_errors(data)]
            if data != result.data:
                errors.append("text and data differ")
        except ValueError as error:
            errors = [str(error)]
        if errors and not self.first_error:
            self.first_error = f"{errors[0]} in {result.text[:200]} for {json.dumps(schema)[:400]}"
        self.valid += not errors
        return not errors


@dataclass
class Bench:
    """A model under evaluation and where its questions come from.

    Attributes:
        root: folder of packs; None leaves them out. split: of packs, 'all' takes every row. limit: most items of a task.
        counts: documents, lines and screens to draw. seed: of the drawn sets.
    """

    model: DiffusionVLM
    root: Path | None
    split: str = "val"
    limit: int | None = None
    documents: int = 300
    lines: int = 400
    screens: int = 150
    seed: int = 0
    validity: Validity = field(default_factory=Validity)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Remembering(self.model.engine)
        self.model.engine = self.engine

    def some(self, items: list[T]) -> list[T]:
        """`limit` items, spread evenly over all."""
        if self.limit is None or len(items) <= self.limit:
            return items
        return [items[i * len(items) // self.limit] for i in range(self.limit)]

    def count(self, wanted: int) -> int:
        """`wanted`, or the limit if that is less."""
        return wanted if self.limit is None else min(wanted, self.limit)

    def follow(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """The items with a progress bar on stderr if that is a terminal; readings are forgotten after each."""
        for item in tqdm(items, desc=what, total=total, disable=None):
            yield item
            self.engine.forget()

    def has(self, pack: str) -> bool:
        """Whether the pack lies under the root."""
        return self.root is not None and (self.root / pack / "manifest.jsonl").is_file()

    def rows(self, pack: str) -> list[dict[str, Any]]:
        """Rows of a pack's manifest in the wanted split; a pack without splits gives all its rows."""
        assert self.root is not None
        with (self.root / pack / "manifest.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        if self.split == "all" or not any("split" in row for row in rows):
            return rows
        return [row for row in rows if row.get("split") == self.split]

    def image(self, pack: str, row: dict[str, Any]) -> LoadedImage:
        """The picture of a row."""
        assert self.root is not None
        return load_image(self.root / pack / (row.get("file") or row["image"]))

    def extract(self, image: LoadedImage, schema: dict[str, Any]) -> Result:
        """``model.extract``, its schema checked; an error is an empty result, and remembered."""
        result: Result = self.model.extract(image, schema, on_error="row")
        if result.status == "error":
            assert result.error is not None
            self.refused.append(result.error["message"])
            return result
        self.validity.check(result, schema)
        return result


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self.start


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def as_table(figures: list[Figure]) -> str:
    """The figures as a markdown table."""
    head = ("task", "metric", "figure", "95 %", "n", "floor", "aim", "reached")
    lines = [head] + [
        (
            f.task, f.metric, _number(f, f.value), "" if f.interval is None else f"{100 * f.interval[0]:.1f}-{100 * f.interval[1]:.1f}", str(f.n),
            _bound(f, f.floor), _bound(f, f.aim), f.verdict,
        )
        for f in figures
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    notes = [f"{f.task}, {f.metric}: {f.note}" for f in figures if f.note]
    return "\n".join([*text, *([""] if notes else []), *notes])


def _number(f: Figure, value: float) -> str:
    return f"{100 * value:.1f} %" if f.unit == "share" else f"{value:.3g} {f.unit}"


def _bound(f: Figure, value: float | None) -> str:
    return "" if value is None else ("<= " if f.smaller else "") + _number(f, value)
