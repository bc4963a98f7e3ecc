"""Visual-token selection for the reader tower: only cells that hold something go on to the backbone.

The tower's own probability of 'no character' is the pruning score. What is kept becomes a sequence in reading order:
characters, the blanks between them, an end mark after each row, and the objects or widgets of the picture. Every
entry knows its box in the original picture, so an attention over entries is an attention over places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vision.lines import Arrangement, Detections, arrange, suppress
from vision.reader import ALPHABET, COLORS, SHAPES, STRIDE, THINGS, ReaderOutput
from vision.words import Lexicon

#: What an entry is.
CHAR, BLANK, GAP, ROW_END, THING = range(5)
KINDS = 5
#: Largest values of the counters below; higher ones are clipped.
MAX_SEGMENT_INDEX, MAX_WORD, MAX_CHAR = 95, 15, 23
#: A thing is found at the cell this far (pixels) right of its left edge, or at its middle if it is narrower: the middle
#: of a wide input field looks like any other blank.
ANCHOR = 20.0
#: Line heights between two letters' edges, and middles, from which on there is a blank whatever the tower says.
WIDE_GAP, WIDE_STEP = 0.5, 1.3
#: ``cells`` of entries that spell the name of a thing.
SPELLED = -2
#: Scalars that say where an entry lies (see :func:`place_of`).
PLACE = 8


@dataclass
class VisualTokens:
    """K entries in reading order, ready for the adapter. All arrays are numpy.

    Attributes:
        kind: [K] CHAR, BLANK, GAP (between segments of one row), ROW_END or THING.
        classes: [K, R] character classes (thing classes for THING, 0 for the rest), likeliest first.
        probs: [K, R] their probabilities.
        color: [K] colour class of things, else 0.
        boxes: [K, 4] x0, y0, x1, y1 in pixels of the picture that was read.
        place: [K, PLACE] floats, see :func:`place_of`.
        index: [K, 3] place in the text: number of characters since the segment (or its last colon) began, number
            of words since then, number of characters since the word began.
        cells: [K] flat cell index to gather features from, -1 for entries without one, SPELLED for those of a name.
        score: [K] the tower's confidence that the entry exists.
        lexicon: the words of the page and which of them each entry is told about.
    """

    kind: NDArray[np.int64]
    classes: NDArray[np.int64]
    probs: NDArray[np.float32]
    color: NDArray[np.int64]
    boxes: NDArray[np.float32]
    place: NDArray[np.float32]
    index: NDArray[np.int64]
    cells: NDArray[np.int64]
    score: NDArray[np.float32]
    lexicon: Lexicon

    def __len__(self) -> int:
        return len(self.kind)

    def scaled(self, sx: float, sy: float) -> VisualTokens:
        """The same entries with boxes in the pixels of a picture `sx`, `sy` times as large."""
        return replace(self, boxes=self.boxes * np.array([sx, sy, sx, sy], np.float32))

    def clipped(self, limit: int) -> VisualTokens:
        """The first `limit` entries, for a backbone whose context is too short for the whole page."""
        arrays = {name: getattr(self, name)[:limit] for name in _ARRAYS}
        return VisualTokens(**arrays, lexicon=replace(self.lexicon, holder=self.lexicon.holder[:limit]))


_ARRAYS = tuple(name for name in VisualTokens.__dataclass_fields__ if name != "lexicon")


@dataclass
class Things:
    """Objects and widgets found: boxes [N, 4], classes [N] and colours [N], score [N], cells [N]."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    colors: NDArray[np.int64]
    score: NDArray[np.float32]
    cells: NDArray[np.int64]

    @classmethod
    def none(cls) -> Things:
        """No things at all."""
        flat = np.zeros(0, np.int64)
        return cls(np.zeros((0, 4), np.float32), flat, flat, np.zeros(0, np.float32), flat)


def detect(output: ReaderOutput, row: int = 0, threshold: float = 0.35, sure: float = 0.8, top: int = 4) -> Detections:
    """Characters that picture `row` of the batch holds, one detection each.

    Args:
        output: the tower's maps.
        row: which picture of the batch.
        threshold: least probability of ink. sure: what some cell near by (three to each side, one row) must have: paper
            that looks a little like print everywhere has no such cell, faint letters in a word do.
        top: how many alternatives to keep.
    """
    logits = output.chars[row].float()  # [2, C, h, w]
    width = logits.shape[-1]
    ink = 1 - torch.softmax(logits, dim=1)[:, 0]  # [2, h, w]
    anchors = (ink.amax(0, keepdim=True) > sure).float()
    near = torch.nn.functional.max_pool2d(anchors, (3, 7), stride=1, padding=(1, 3)) > 0
    side, y, x = torch.nonzero((ink > threshold) & near, as_tuple=True)
    named = torch.softmax(logits[side, 1:, y, x], dim=-1)  # [N, A]
    probs, classes = named.topk(top, dim=-1)
    dx, dy, lw, lh = output.char_boxes[row].float()[side, :, y, x].unbind(-1)
    cx = x * STRIDE + side * 4 + 2 + dx * STRIDE
    cy = y * STRIDE + 4 + dy * STRIDE
    w, h = lw.clamp(-3, 3).exp() * STRIDE, lh.clamp(-3, 3).exp() * STRIDE
    boxes = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)
    blank = output.blanks[row].float()[side, y, x].sigmoid()
    found = Detections(
        boxes.numpy(), (classes + 1).numpy(), probs.numpy(), ink[side, y, x].numpy(), blank.numpy(), (y * width + x).numpy()
    )
    return suppress(found)


def detect_things(output: ReaderOutput, row: int = 0, threshold: float = 0.15) -> Things:
    """Objects and widgets of picture `row`; neighbouring claims of one thing are merged into the likeliest."""
    probs = torch.softmax(output.things[row].float(), dim=0)
    width = probs.shape[-1]
    score, classes = probs[1:].max(dim=0)
    y, x = torch.nonzero(score > threshold, as_tuple=True)
    if not len(y):
        return Things.none()
    dx, dy, lw, lh = output.thing_boxes[row].float()[:, y, x]
    x0, cy = x * STRIDE + 4 + dx * STRIDE, y * STRIDE + 4 + dy * STRIDE
    w, h = lw.clamp(-3, 6).exp() * STRIDE, lh.clamp(-3, 6).exp() * STRIDE
    boxes = torch.stack((x0, cy - h / 2, x0 + w, cy + h / 2), dim=-1).numpy()
    colors = output.colors[row].float()[1:, y, x].argmax(dim=0) + 1
    colors[classes[y, x] >= len(SHAPES)] = 0  # widgets have no colour that was ever told
    found = Things(boxes, (classes[y, x] + 1).numpy(), colors.numpy(), score[y, x].numpy(), (y * width + x).numpy())
    keep = _distinct(found)
    return Things(found.boxes[keep], found.classes[keep], found.colors[keep], found.score[keep], found.cells[keep])


def _distinct(found: Things, overlap: float = 0.6) -> NDArray[np.int64]:
    """Greedy non-maximum suppression by intersection over union."""
    order = np.argsort(-found.score, kind="stable")
    kept: list[int] = []
    x0, y0, x1, y1 = found.boxes.T
    area = (x1 - x0) * (y1 - y0)
    for i in order:
        if kept:
            k = np.array(kept)
            w = np.minimum(x1[k], x1[i]) - np.maximum(x0[k], x0[i])
            h = np.minimum(y1[k], y1[i]) - np.maximum(y0[k], y0[i])
            both = np.maximum(w, 0) * np.maximum(h, 0)
            if (both / (area[k] + area[i] - both) > overlap).any():
                continue
        kept.append(int(i))
    return np.array(kept, np.int64)


def place_of(boxes: NDArray[np.float32], size: tuple[int, int], height: float) -> NDArray[np.float32]:
    """Where boxes [K, 4] lie: middle in line heights (x, y) and as a share of the page (x, y), left and right edge in
    line heights, and log size relative to the line height (w, h)."""
    x0, y0, x1, y1 = boxes.T
    unit = max(height, 1.0)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return np.stack(
        (
            cx / unit, cy / unit, cx / max(size[0], 1), cy / max(size[1], 1), x0 / unit, x1 / unit,
            np.log(np.maximum(x1 - x0, 0.5) / unit), np.log(np.maximum(y1 - y0, 0.5) / unit),
        ),
        axis=-1,
    ).astype(np.float32)  # fmt: skip


@lru_cache(maxsize=4)
def _marks(alphabet: str) -> NDArray[np.bool_]:
    """[1 + A] which classes are no letters or digits."""
    return np.array([False, *(not c.isalnum() for c in alphabet)])


def assemble(
    found: Detections,
    things: Things,
    size: tuple[int, int],
    colon: int,
    blank_threshold: float = 0.5,
    arrangement: Arrangement | None = None,
    alphabet: str = ALPHABET,
) -> VisualTokens:
    """Characters and things as one sequence in reading order.

    Args:
        found, things: what :func:`detect` and :func:`detect_things` found.
        size: width and height of the picture in pixels.
        colon: character class of ':', after which the counters begin anew (a value follows its label).
        blank_threshold: least probability of a blank entry after a character.
        arrangement: reading order of `found` if it is known already.
        alphabet: characters of the classes, class 1 first.
    """
    lines = arrangement or arrange(found.boxes, marks=_marks(alphabet)[found.classes[:, 0]])
    ordered = found.take(lines.order)
    n, top = len(ordered), ordered.probs.shape[1] if len(ordered) else 4
    last_of_segment = np.ones(n, bool)
    last_of_row = np.ones(n, bool)
    if n:
        last_of_segment[:-1] = lines.segment[1:] != lines.segment[:-1]
        last_of_row[:-1] = lines.row[1:] != lines.row[:-1]
    apart = (ordered.blank > blank_threshold) | wide_gaps(ordered.boxes)
    follows = np.where(last_of_row, ROW_END, np.where(last_of_segment, GAP, np.where(apart, BLANK, 0)))
    index = _text_index(ordered.classes[:, 0] if n else np.zeros(0, np.int64), last_of_segment, follows == BLANK, colon)
    extra = follows > 0
    slot = np.arange(n) + np.concatenate(([0], np.cumsum(extra)[:-1])) if n else np.zeros(0, np.int64)
    total = n + int(extra.sum())
    after = slot[extra] + 1
    kind = np.zeros(total, np.int64)
    classes = np.zeros((total, top), np.int64)
    probs = np.zeros((total, top), np.float32)
    boxes = np.zeros((total, 4), np.float32)
    counters = np.zeros((total, 3), np.int64)
    cells = np.full(total, -1, np.int64)
    score = np.ones(total, np.float32)
    kind[slot], kind[after] = CHAR, follows[extra]
    classes[slot], probs[slot], cells[slot], score[slot] = ordered.classes, ordered.probs, ordered.cells, ordered.score
    boxes[slot], counters[slot] = ordered.boxes, index
    gap = ordered.boxes[extra].copy()
    gap[:, 0], gap[:, 2] = ordered.boxes[extra, 2], ordered.boxes[extra, 2] + 0.3 * (gap[:, 3] - gap[:, 1])
    boxes[after] = gap
    counters[after] = index[extra] + np.array([1, 0, 1])
    height = lines.height or 16.0
    text: dict[str, NDArray[Any]] = {
        "kind": kind, "classes": classes, "probs": probs, "color": np.zeros(total, np.int64), "boxes": boxes,
        "place": place_of(boxes, size, height), "index": _clip(counters), "cells": cells, "score": score,
    }  # fmt: skip
    row = np.zeros(total, np.int64)
    row[slot], row[after] = lines.row, lines.row[extra]
    first, first_row = _named(things, size, height, top, alphabet)
    arrays = {name: np.concatenate((first[name], text[name])) for name in text}
    row = np.concatenate((first_row, row + first_row.max(initial=-1) + 1))
    chars = [alphabet[c - 1] if k == CHAR else "" for k, c in zip(arrays["kind"].tolist(), arrays["classes"][:, 0].tolist(), strict=True)]
    kinds = arrays["kind"]
    ends = np.isin(kinds, (GAP, ROW_END)) | _ends_label(chars)
    lexicon = Lexicon.of(chars, arrays["boxes"], row, kinds == THING, ends, arrays["cells"] == SPELLED)
    return VisualTokens(**arrays, lexicon=lexicon)


def _ends_label(chars: list[str]) -> NDArray[np.bool_]:
    """[K] colons that end a label; those of a time of day, between digits, do not."""
    around = zip(["", *chars], [*chars[1:], ""], strict=False)
    inside = [before.isdigit() and after.isdigit() for before, after in around]
    return np.array([c == ":" and not held for c, held in zip(chars, inside, strict=False)], bool)


def wide_gaps(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[N] after which of the boxes [N, 4], in reading order, the next one is so far away that there must be a blank: pieces
    set apart are no words of one text, so no blank was ever written between them. Middles count as well as edges, for
    the narrow letters of a typewriter stand apart, too."""
    out = np.zeros(len(boxes), bool)
    if len(boxes) > 1:
        height = np.minimum(boxes[1:, 3] - boxes[1:, 1], boxes[:-1, 3] - boxes[:-1, 1])
        middle = (boxes[:, 0] + boxes[:, 2]) / 2
        out[:-1] = (boxes[1:, 0] - boxes[:-1, 2] > WIDE_GAP * height) & (np.diff(middle) > WIDE_STEP * height)
    return out


def _text_index(classes: NDArray[np.int64], ends: NDArray[np.bool_], blank: NDArray[np.bool_], colon: int) -> NDArray[np.int64]:
    """Counters [N, 3] of characters (blanks count) and words since the segment or its last colon began."""
    out = np.zeros((len(classes), 3), np.int64)
    since, words, chars = 0, 0, 0
    for i in range(len(classes)):
        out[i] = since, words, chars
        if ends[i] or classes[i] == colon:
            since = words = chars = 0
        else:
            since, chars = since + 1, chars + 1
            if blank[i]:
                since, words, chars = since + 1, words + 1, 0
    return out


def _clip(counters: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.minimum(counters, np.array([MAX_SEGMENT_INDEX, MAX_WORD, MAX_CHAR]))


def name_of(thing: int, color: int, things: tuple[str, ...] = THINGS, colors: tuple[str, ...] = COLORS) -> str:
    """What a thing is called, from its classes: 'red circle', 'search' for an icon, nothing for plain widgets."""
    kind = things[thing - 1]
    if color:
        return f"{colors[color - 1]} {kind}"
    return kind.split(":")[1].replace("_", " ") if kind.startswith("icon:") else ""


def _named(things: Things, size: tuple[int, int], height: float, top: int, alphabet: str) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Arrays of VisualTokens for the things, from top to bottom and left to right, and the row of each entry.

    A thing with a name is followed by the name, letter by letter, as if it were printed there: so it is asked for, counted
    and copied in the same way as print.
    """
    middle = (things.boxes[:, 1] + things.boxes[:, 3]) / 2
    order = np.lexsort((things.boxes[:, 0], np.round(middle / max(height, 1.0))))
    kind, first, color, source, cells, index, row = [], [], [], [], [], [], []
    for number, i in enumerate(order.tolist()):
        name = name_of(int(things.classes[i]), int(things.colors[i]))
        kind += [THING, *(BLANK if c == " " else CHAR for c in name), *([ROW_END] if name else [])]
        first += [int(things.classes[i]), *(alphabet.index(c) + 1 if c in alphabet else 0 for c in name), *([0] if name else [])]
        extra = len(name) + bool(name)
        color += [int(things.colors[i]), *[0] * extra]
        cells += [int(things.cells[i]), *[SPELLED] * extra]
        source += [i] * (1 + extra)
        words = [name[:k].count(" ") for k in range(extra)]
        index += [(number, 0, 0), *((k, words[k], k - (name.rfind(" ", 0, k) + 1)) for k in range(extra))]
        row += [number] * (1 + extra)
    count = len(kind)
    classes, probs = np.zeros((count, top), np.int64), np.zeros((count, top), np.float32)
    classes[:, 0], probs[:, 0] = first, 1.0
    boxes = things.boxes[source].astype(np.float32).reshape(count, 4)
    arrays: dict[str, NDArray[Any]] = {
        "kind": np.array(kind, np.int64), "classes": classes, "probs": probs, "color": np.array(color, np.int64), "boxes": boxes,
        "place": place_of(boxes, size, height), "index": _clip(np.array(index, np.int64).reshape(count, 3)), "cells": np.array(cells, np.int64),
        "score": things.score[source].astype(np.float32),
    }  # fmt: skip
    return arrays, np.array(row, np.int64)


def text_of(tokens: VisualTokens, alphabet: str) -> list[tuple[str, tuple[float, float, float, float], float]]:
    """The rows as text: (characters, box of the row, mean confidence). Gaps and blanks become one blank each."""
    rows: list[tuple[str, tuple[float, float, float, float], float]] = []
    text, boxes, trust = "", [], []
    for i in range(len(tokens)):
        kind = tokens.kind[i]
        if tokens.cells[i] == SPELLED:
            continue
        if kind == CHAR:
            text += alphabet[tokens.classes[i, 0] - 1]
            boxes.append(tokens.boxes[i])
            trust.append(float(tokens.probs[i, 0] * tokens.score[i]))
        elif kind in (BLANK, GAP):
            text += " "
        elif kind == ROW_END and boxes:
            b = np.stack(boxes)
            box = (float(b[:, 0].min()), float(b[:, 1].min()), float(b[:, 2].max()), float(b[:, 3].max()))
            rows.append((text, box, float(np.mean(trust))))
            text, boxes, trust = "", [], []
    return rows
