"""Measures of reading, extraction and grounding. Small, dependency-free, defined by their docstrings."""

from __future__ import annotations

import re
import unicodedata

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
