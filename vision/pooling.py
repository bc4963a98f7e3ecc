"""Two looks at one page, pooled: what a tower of 8-pixel cells misses or confuses depends on where the cells fall.

A character that lies across the border of two cells, or a dot of two pixels, is read differently when the page is shown at
another size. :func:`pool` matches the characters of both looks and adds up what they say; a character that only one look
has found must be surer than one that both have.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vision.lines import Detections, Floats

#: Two claims are of one character if their middles lie within WIDTHS of the wider, or HEIGHTS of the taller, of each other
#: (dots and strokes are narrower than the looks agree to), and within ROWS of the taller up and down.
WIDTHS, HEIGHTS, ROWS = 0.5, 0.18, 0.6
#: Score of a character that one look has found and the other has not.
ALONE = 0.7
_CHUNK = 256


def pool(first: Detections, second: Detections, offset: int) -> Detections:
    """The characters of a page of which two looks tell, in the order of `first`, then those that only `second` has.

    Args:
        first, second: boxes in the same pixels. offset: added to the cells of `second`, whose features stand behind the others.
    """
    if not len(first) or not len(second):
        return first if len(first) else _with_cells(second, offset)
    match, apart = _matches(first.boxes, second.boxes)
    a, b = np.flatnonzero(match >= 0), match[match >= 0]
    classes, probs = _votes(first.take(a), second.take(b))
    both = Detections(
        _mean(first.boxes[a], second.boxes[b]), classes, probs, _mean(first.score[a], second.score[b]),
        _mean(first.blank[a], second.blank[b]), first.cells[a],
    )  # fmt: skip
    here = (match < 0) & (first.score > ALONE)
    there = apart & (second.score > ALONE)
    merged = _join(both, first.take(here), _with_cells(second.take(there), offset))
    place = np.concatenate((a, np.flatnonzero(here), len(first) + np.flatnonzero(there)))
    return merged.take(np.argsort(place, kind="stable"))


def _with_cells(found: Detections, offset: int) -> Detections:
    return replace(found, cells=np.where(found.cells >= 0, found.cells + offset, -1))


def _mean(a: Floats, b: Floats) -> Floats:
    return ((a + b) / 2).astype(np.float32)


def _join(*parts: Detections) -> Detections:
    names = Detections.__dataclass_fields__
    return Detections(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def _votes(a: Detections, b: Detections) -> tuple[NDArray[np.int64], Floats]:
    """Likeliest classes of N matched pairs and their probabilities: those of both looks, weighted by their scores."""
    count, top = len(a), a.classes.shape[1]
    most = int(max(a.classes.max(initial=0), b.classes.max(initial=0), top - 1))
    votes = np.zeros((count, most + 1), np.float32)
    rows = np.arange(count)[:, None]
    for found in (a, b):
        np.add.at(votes, (rows, found.classes), found.probs * found.score[:, None])
    classes = np.argsort(-votes, axis=1, kind="stable")[:, :top]
    total = np.maximum(votes.sum(1, keepdims=True), 1e-6)
    return classes.astype(np.int64), (np.take_along_axis(votes, classes, 1) / total).astype(np.float32)


def _matches(a: Floats, b: Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each box of `a` that of `b` which shows the same character (-1: none); and which of `b` lie on no box of `a`."""
    ax, ay, aw, ah = _middles(a)
    bx, by, bw, bh = _middles(b)
    down, across = np.argsort(ay, kind="stable"), np.argsort(by, kind="stable")
    reach = ROWS * float(max(ah.max(), bh.max()))
    match, cost = np.full(len(a), -1, np.int64), np.full(len(a), np.inf)
    apart = np.ones(len(b), bool)
    for start in range(0, len(a), _CHUNK):
        i = down[start : start + _CHUNK]
        low, high = np.searchsorted(by[across], (ay[i[0]] - reach, ay[i[-1]] + reach), side="left")
        j = across[low:high]
        if not len(j):
            continue
        tall = np.maximum(ah[i, None], bh[j])
        dx = np.abs(ax[i, None] - bx[j]) / np.maximum(WIDTHS * np.maximum(aw[i, None], bw[j]), HEIGHTS * tall)
        dy = np.abs(ay[i, None] - by[j]) / tall
        same = (dx < 1) & (dy < ROWS)
        apart[j[same.any(0)]] = False
        distance = np.where(same, dx + dy, np.inf)
        nearest = distance.argmin(1)
        match[i], cost[i] = j[nearest], distance[np.arange(len(i)), nearest]
    match[np.isinf(cost)] = -1
    taken = np.full(len(b), -1, np.int64)  # of several that want one, the nearest has it
    for k in np.argsort(-cost, kind="stable"):
        if match[k] >= 0:
            taken[match[k]] = k
    match[(match >= 0) & (taken[match] != np.arange(len(a)))] = -1
    return match, apart


def _middles(boxes: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    x0, y0, x1, y1 = boxes.T
    return (x0 + x1) / 2, (y0 + y1) / 2, np.maximum(x1 - x0, 0.5), np.maximum(y1 - y0, 0.5)
