"""From detected characters to lines in reading order.

Characters arrive as loose boxes. Neighbours are chained into *segments* (text without a wide gap), segments whose
middles lie at one height, after the page's own slant is taken out, form a *row*. The order row by row, left to right is
the order in which the backbone sees the page, and the text of the rows is what ``read`` returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Widest gap inside a segment, in line heights.
SEGMENT_GAP = 1.6
#: How far from the middle of a row, in line heights, marks still belong to it.
MARK_REACH = 0.75


@dataclass
class Detections:
    """Characters found on a page, in no particular order; N of them.

    Attributes:
        boxes: [N, 4] x0, y0, x1, y1 in pixels: ink from left to right, line from capital top to baseline.
        classes: [N, R] the R likeliest character classes (never 0); probs: [N, R] their probabilities.
        score: [N] probability that there is a character at all.
        blank: [N] probability that a blank follows.
        cells: [N] flat index of the cell that found it (row * width + column), -1 if there is none.
    """

    boxes: Floats
    classes: Ints
    probs: Floats
    score: Floats
    blank: Floats
    cells: Ints

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Detections:
        """The chosen detections, in the order of `index`."""
        return Detections(
            self.boxes[index], self.classes[index], self.probs[index], self.score[index], self.blank[index], self.cells[index]
        )


@dataclass
class Arrangement:
    """Reading order of N detections.

    Attributes:
        order: [N] detections in reading order.
        row, segment: [N] row and segment number of each entry of ``order`` (both rise along it).
        slant: dy/dx of the page's lines.
        height: median line height in pixels.
    """

    order: Ints
    row: Ints
    segment: Ints
    slant: float
    height: float


def suppress(found: Detections, reach: float = 0.4) -> Detections:
    """One detection per character: claims whose centres lie within `reach` widths are merged.

    The likeliest claim keeps its place; class probabilities of the merged claims are added, weighted by score.
    """
    n = len(found)
    if n == 0:
        return found
    found = found.take(np.argsort(-found.score, kind="stable"))
    x0, y0, x1, y1 = found.boxes.T
    cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    by_x = np.argsort(cx, kind="stable")
    rank = np.empty(n, np.int64)
    rank[by_x] = np.arange(n)
    sorted_x = cx[by_x]
    widest = float(w.max()) * reach
    first = np.searchsorted(sorted_x, cx - widest)
    last = np.searchsorted(sorted_x, cx + widest, side="right")
    alive = np.ones(n, bool)
    total = found.probs * found.score[:, None]
    classes, probs = found.classes.copy(), found.probs.copy()
    for i in range(n):
        if not alive[i]:
            continue
        near = by_x[first[i] : last[i]]
        near = near[alive[near] & (near > i)]
        if not len(near):
            continue
        same = (np.abs(cx[near] - cx[i]) < reach * np.maximum(w[near], w[i])) & (np.abs(cy[near] - cy[i]) < 0.6 * np.maximum(h[near], h[i]))
        near = near[same]
        if not len(near):
            continue
        alive[near] = False
        votes: dict[int, float] = {}
        for k in (i, *near):
            for c, p in zip(found.classes[k], total[k], strict=True):
                votes[int(c)] = votes.get(int(c), 0.0) + float(p)
        best = sorted(votes.items(), key=lambda item: -item[1])[: classes.shape[1]]
        mass = sum(votes.values()) or 1.0
        classes[i, : len(best)] = [c for c, _ in best]
        probs[i] = 0.0
        probs[i, : len(best)] = [p / mass for _, p in best]
    merged = Detections(found.boxes, classes, probs, found.score, found.blank, found.cells)
    return merged.take(np.flatnonzero(alive))


def arrange(boxes: Floats, gap: float = SEGMENT_GAP, marks: NDArray[np.bool_] | None = None) -> Arrangement:
    """Put N character boxes [N, 4] into reading order. O(N log N) up to the density of a page.

    Args:
        marks: [N] characters that are no letters or digits. Segments of nothing else (dotted leaders, rules) begin no row where
            there is one: how high a dot's line is, is hard to tell.
    """
    n = len(boxes)
    if n == 0:
        empty = np.zeros(0, np.int64)
        return Arrangement(empty, empty, empty, 0.0, 0.0)
    x0, y0, x1, y1 = boxes.T.astype(np.float64)
    cx, cy, h = (x0 + x1) / 2, (y0 + y1) / 2, y1 - y0
    height = float(np.median(h))
    right = _neighbours(x0, x1, cx, cy, h, gap)
    segment_of, heads = _chains(right, cx)
    count = len(heads)
    letters = np.ones(n) if marks is None else (~marks).astype(np.float64)
    strong = np.bincount(segment_of, letters, count) > 0
    counts = np.where(strong[segment_of], letters, 1.0)  # marks say where their segment lies only if it holds nothing else
    slant = _slant(segment_of, count, cx, cy, height, counts)
    level = cy - slant * cx
    size = np.bincount(segment_of, counts, count)
    seg_y = np.bincount(segment_of, level * counts, count) / size
    seg_h = np.bincount(segment_of, h * counts, count) / size
    seg_x = np.full(count, np.inf)
    np.minimum.at(seg_x, segment_of, x0)
    row_of = _rows(seg_y, seg_h, seg_x, strong)
    seg_order = np.lexsort((seg_x, row_of))
    place = np.empty(count, np.int64)
    place[seg_order] = np.arange(count)
    order = np.lexsort((cx, place[segment_of]))
    return Arrangement(order, row_of[segment_of[order]], place[segment_of[order]], slant, height)


def _neighbours(x0: Floats, x1: Floats, cx: Floats, cy: Floats, h: Floats, gap: float) -> Ints:
    """For each box the box right of it on the same line (-1: none); no box is right neighbour of two."""
    n = len(cx)
    by_x = np.argsort(cx, kind="stable")
    sorted_x = cx[by_x]
    reach = gap * h + (x1 - x0)
    last = np.searchsorted(sorted_x, x1 + reach + float((x1 - x0).max()), side="right")
    rank = np.empty(n, np.int64)
    rank[by_x] = np.arange(n)
    right = np.full(n, -1, np.int64)
    cost = np.full(n, np.inf)
    claimed: dict[int, int] = {}
    for i in by_x:
        near = by_x[rank[i] + 1 : last[i]]
        if not len(near):
            continue
        dx = x0[near] - x1[i]
        dy = np.abs(cy[near] - cy[i])
        tallest = np.maximum(h[near], h[i])
        fits = (dy < 0.45 * np.minimum(h[near], h[i]) + 0.06 * np.maximum(dx, 0)) & (dx < gap * tallest) & (dx > -0.6 * tallest)
        fits &= np.minimum(h[near], h[i]) > 0.45 * tallest
        if not fits.any():
            continue
        near, price = near[fits], (np.maximum(dx, 0) + 1.5 * dy + (cx[near] - cx[i]))[fits]
        j = int(near[np.argmin(price)])
        p = float(price.min())
        if j in claimed:
            if p >= cost[j]:
                continue
            right[claimed[j]] = -1
        claimed[j], cost[j], right[i] = int(i), p, j
    return right


def _chains(right: Ints, cx: Floats) -> tuple[Ints, list[int]]:
    """Number the chains of right neighbours; heads are the leftmost boxes."""
    n = len(right)
    has_left = np.zeros(n, bool)
    has_left[right[right >= 0]] = True
    heads = [int(i) for i in np.flatnonzero(~has_left)]
    segment = np.zeros(n, np.int64)
    for number, head in enumerate(heads):
        i = head
        while i >= 0:
            segment[i] = number
            i = int(right[i])
    return segment, heads


def _slant(segment: Ints, count: int, cx: Floats, cy: Floats, height: float, weight: NDArray[np.float64]) -> float:
    """Median slope of the segments that are long enough to have one; `weight` [N] is what each character counts."""
    size = np.bincount(segment, weight, count)
    mx = np.bincount(segment, cx * weight, count) / size
    my = np.bincount(segment, cy * weight, count) / size
    dx, dy = cx - mx[segment], cy - my[segment]
    sxx = np.bincount(segment, dx * dx * weight, count)
    sxy = np.bincount(segment, dx * dy * weight, count)
    long = (size >= 5) & (sxx > (3 * height) ** 2)
    if long.sum() < 1:
        return 0.0
    slopes, weights = sxy[long] / sxx[long], sxx[long]
    order = np.argsort(slopes)
    middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    return float(np.clip(slopes[order][min(middle, len(order) - 1)], -0.15, 0.15))


def _rows(seg_y: NDArray[np.float64], seg_h: NDArray[np.float64], seg_x: NDArray[np.float64], strong: NDArray[np.bool_]) -> Ints:
    """Row number of each segment: from top to bottom, a segment joins the open row whose level it shares. Segments that are not
    `strong` join the nearest row of the others, if one is at their height."""
    row = np.full(len(seg_y), -1, np.int64)
    order = np.argsort(seg_y, kind="stable")
    levels, heights = _joined(order[strong[order]], seg_y, seg_h, row)
    weak = np.flatnonzero(~strong)
    if len(levels) and len(weak):
        apart = np.abs(seg_y[weak, None] - levels)
        nearest = apart.argmin(1)
        near = apart[np.arange(len(weak)), nearest] < MARK_REACH * heights[nearest]
        row[weak[near]] = nearest[near]
    alone = order[row[order] < 0]
    if not len(alone):
        return row
    extra = np.full(len(seg_y), -1, np.int64)
    more, _ = _joined(alone, seg_y, seg_h, extra)
    row[alone] = extra[alone] + len(levels)
    place = np.empty(len(levels) + len(more), np.int64)
    place[np.argsort(np.concatenate((levels, more)), kind="stable")] = np.arange(len(place))
    return place[row]


def _joined(order: NDArray[np.intp], seg_y: NDArray[np.float64], seg_h: NDArray[np.float64], row: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Number the rows of the segments in `order` (by height on the page) into `row`; levels and heights of the rows."""
    levels: list[float] = []
    heights: list[float] = []
    weight = 1
    for s in order:
        if not levels or seg_y[s] - levels[-1] > 0.5 * min(heights[-1], seg_h[s]):
            levels.append(float(seg_y[s]))
            heights.append(float(seg_h[s]))
            weight = 1
        else:
            weight += 1
            levels[-1] += (float(seg_y[s]) - levels[-1]) / weight
            heights[-1] = min(heights[-1], float(seg_h[s]))
        row[s] = len(levels) - 1
    return np.array(levels), np.array(heights)
