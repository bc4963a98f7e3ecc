"""Measures of reading, extraction and grounding. Small, dependency-free, defined by their docstrings."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance of two strings."""
    if not a or not b:
        return len(a) + len(b)
    codes = np.array([ord(c) for c in b])
    row = np.arange(len(b) + 1)
    steps = np.arange(len(b) + 1)
    for i, char in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(char)))
        row = np.concatenate(([i], best))
        row = np.minimum.accumulate(row - steps) + steps  # insertions, left to right
    return int(row[-1])


def window_distance(needle: str, text: str) -> int:
    """Smallest edit distance of `needle` to any substring of `text` (free ends in `text`; Sellers, 1980)."""
    if not needle:
        return 0
    if not text:
        return len(needle)
    codes = np.array([ord(c) for c in text])
    row = np.zeros(len(text) + 1, np.int64)
    steps = np.arange(len(text) + 1)
    for i, char in enumerate(needle, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(char)))
        row = np.concatenate(([i], best))
        row = np.minimum.accumulate(row - steps) + steps
    return int(row.min())


def squeezed(text: str) -> str:
    """Upper case without any white space: what reading is compared on."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).upper()


def reading_accuracy(lines: list[str], reading: str) -> tuple[int, int, int]:
    """Each labelled line against its best window in the reading, case and spaces ignored.

    Returns:
        (characters wrong, at most the line's length each; characters; lines without error).
    """
    text = squeezed(reading)
    wrong = total = exact = 0
    for line in lines:
        needle = squeezed(line)
        if not needle:
            continue
        distance = min(window_distance(needle, text), len(needle))
        wrong, total, exact = wrong + distance, total + len(needle), exact + (distance == 0)
    return wrong, total, exact


def normalised(value: object) -> str:
    """A field's value as compared: NFKC, upper case, blanks squeezed, ends trimmed; None is empty."""
    if value is None:
        return ""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", str(value))).strip().upper()


def box_iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    both = w * h
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def character_errors(truth: str, reading: str) -> tuple[int, int]:
    """(edit distance, at most the truth's length; length) of a line, case kept, runs of white space as one blank."""
    needle, text = " ".join(truth.split()), " ".join(reading.split())
    return min(edit_distance(needle, text), len(needle)), len(needle)


def anls(prediction: object, truth: object) -> float:
    """Normalised Levenshtein similarity of two values, 0 below one half (arXiv:1907.00490)."""
    a, b = normalised(prediction), normalised(truth)
    similarity = 1 - edit_distance(a, b) / max(len(a), len(b), 1)
    return similarity if similarity >= 0.5 else 0.0


def as_number(value: object) -> float | None:
    """The amount a text states once currency marks, commas and blanks are gone; None if it states none."""
    text = re.sub(r"RM|[$£€,\s]", "", normalised(value))
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Counts:
    """True positives, false positives and false negatives; add them up with ``+``."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """tp / (tp + fp), 0 without predictions."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0

    @property
    def recall(self) -> float:
        """tp / (tp + fn), 0 without anything to find."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn), 0 when there is nothing on either side."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else 0.0


def field_counts(prediction: object, truth: object) -> Counts:
    """One field: equal values are a true positive; a wrong one counts on both sides; None and "" are no value."""
    said, true = normalised(prediction), normalised(truth)
    if said and said == true:
        return Counts(1, 0, 0)
    return Counts(0, int(bool(said)), int(bool(true)))


def match_counts(predicted: Sequence[Any], truth: Sequence[Any], same: Callable[[Any, Any], bool]) -> Counts:
    """Objects of one picture: the largest one-to-one matching of pairs that are the `same` (augmenting paths)."""
    partners = [[j for j, t in enumerate(truth) if same(p, t)] for p in predicted]
    owner: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j in partners[i]:
            if j not in tried:
                tried.add(j)
                if j not in owner or place(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    tp = sum(place(i, set()) for i in range(len(predicted)))
    return Counts(tp, len(predicted) - tp, len(truth) - tp)


def centre_inside(box: Sequence[float] | None, target: Sequence[float]) -> bool:
    """Whether the middle of `box` lies in `target` (x0 <= x < x1, y0 <= y < y1); no box never does."""
    if box is None:
        return False
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return target[0] <= x < target[2] and target[1] <= y < target[3]


def leaves(data: Any, pointer: str = "") -> dict[str, Any]:
    """Scalar leaves of JSON data by their pointer."""
    if isinstance(data, Mapping):
        pairs = [(str(k).replace("~", "~0").replace("/", "~1"), v) for k, v in data.items()]
    elif isinstance(data, (list, tuple)):
        pairs = [(str(i), v) for i, v in enumerate(data)]
    else:
        return {pointer: data}
    found: dict[str, Any] = {}
    for name, value in pairs:
        found |= leaves(value, f"{pointer}/{name}")
    return found


def same_value(prediction: object, truth: object) -> bool:
    """Whether a leaf is exactly right: numbers by value, texts letter by letter but for blanks at the ends and their runs."""
    if isinstance(prediction, bool) or isinstance(truth, bool) or prediction is None or truth is None:
        return prediction is truth
    if isinstance(prediction, (int, float)) and isinstance(truth, (int, float)):
        return prediction == truth
    if isinstance(prediction, str) and isinstance(truth, str):
        return " ".join(prediction.split()) == " ".join(truth.split())
    return False


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share `right` / `n` at about 95 % (Wilson, 1927); (0, 1) when there is nothing to go by."""
    if n == 0:
        return 0.0, 1.0
    p, shrink = right / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
