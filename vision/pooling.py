"""Several looks at one page, pooled: what a tower of 8-pixel cells misses or confuses depends on where the cells fall.

A character that lies across the border of two cells, or a dot of two pixels, is read differently when the page is shown at
another size. :func:`pool` matches the characters of the looks and adds up what they say; a character that only one look
of two has found must be surer than one that both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vision.lines import Detections, Floats

#: Two claims are of one character if their middles lie within WIDTHS of the wider, or HEIGHTS of the taller, of each other
#: (dots and strokes are narrower than the looks agree to), and within ROWS of the taller up and down.
WIDTHS, HEIGHTS, ROWS = 0.5, 0.18, 0.6
#: Least mean score of a character over all looks, 0 in those that have not found it: the same as in one look alone.
LEAST = 0.35
_CHUNK = 256

Floats64 = NDArray[np.float64]


def pool(looks: Sequence[Detections], offsets: Sequence[int]) -> Detections:
    """The characters of a page of which several looks tell: in the order of the first look, then those that only later ones have.

    Args:
        looks: boxes in the same pixels; those that found nothing do not count.
        offsets: added to the cells of each, whose features stand one behind the other.
    """
    parts = [_with_cells(look, offset) for look, offset in zip(looks, offsets, strict=True) if len(look)]
    if len(parts) < 2:
        return parts[0] if parts else looks[0]
    found, seen = parts[0], np.ones(len(parts[0]))  # how many looks have found each
    for look in parts[1:]:
        found, seen = _joined(found, seen, look)
    return found.take(np.flatnonzero(found.score * seen / len(parts) > LEAST))


def _joined(found: Detections, seen: Floats64, look: Detections) -> tuple[Detections, Floats64]:
    """`found`, which `seen` [N] looks each have found, with what one more look found."""
    match, apart = _matches(found.boxes, look.boxes)
    a, b = np.flatnonzero(match >= 0), match[match >= 0]
    share = seen[a] / (seen[a] + 1)
    classes, probs = _votes(found.take(a), look.take(b), seen[a])
    both = Detections(
        _mean(found.boxes[a], look.boxes[b], share[:, None]), classes, probs, _mean(found.score[a], look.score[b], share),
        _mean(found.blank[a], look.blank[b], share), found.cells[a],
    )  # fmt: skip
    here, there = np.flatnonzero(match < 0), np.flatnonzero(apart)
    order = np.argsort(np.concatenate((a, here, len(found) + there)), kind="stable")
    return _join(both, found.take(here), look.take(there)).take(order), np.concatenate((seen[a] + 1, seen[here], np.ones(len(there))))[order]


def _with_cells(found: Detections, offset: int) -> Detections:
    return replace(found, cells=np.where(found.cells >= 0, found.cells + offset, -1))


def _mean(a: Floats, b: Floats, share: Floats64) -> Floats:
    return (a * share + b * (1 - share)).astype(np.float32)


def _join(*parts: Detections) -> Detections:
    names = Detections.__dataclass_fields__
    return Detections(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def _votes(a: Detections, b: Detections, seen: Floats64) -> tuple[NDArray[np.int64], Floats]:
    """Likeliest classes of N matched pairs and their probabilities: those of all looks, `seen` [N] behind `a`, weighted by their scores."""
    count, top = len(a), a.classes.shape[1]
    most = int(max(a.classes.max(initial=0), b.classes.max(initial=0), top - 1))
    votes = np.zeros((count, most + 1), np.float32)
    rows = np.arange(count)[:, None]
    for found, weight in ((a, a.score * seen), (b, b.score)):
        np.add.at(votes, (rows, found.classes), found.probs * weight[:, None])
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
