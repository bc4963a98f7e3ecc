"""Reading order of synthetic boxes: rows, columns, slant, gaps, sizes, and the merging of double claims."""

import numpy as np
import pytest

from vision.lines import Detections, arrange, suppress


def line(text, x, y, size=10.0, slant=0.0):
    """Boxes of the characters of a line (blanks have none), 0.6 em wide; `slant` is dy/dx."""
    step = 0.6 * size
    return [(x + i * step, y + slant * (x + i * step), x + i * step + 0.9 * step, y + slant * (x + i * step) + size) for i, c in enumerate(text) if c != " "]


def page(*lines):
    return np.array([box for boxes in lines for box in boxes], np.float32)


def read(boxes, text, seed=0):
    """The text in reading order; `text` names the boxes in their true order. Rows as strings, segments joined by '|'."""
    mixed = np.random.default_rng(seed).permutation(len(boxes))
    found = arrange(boxes[mixed])
    letters = [text[mixed[i]] for i in found.order]
    rows: dict[int, str] = {}
    last = -1
    for letter, row, segment in zip(letters, found.row, found.segment, strict=True):
        before = rows.get(int(row), "")
        rows[int(row)] = before + ("|" if before and segment != last else "") + letter
        last = segment
    return [rows[r] for r in sorted(rows)]


def plain(*texts):
    return "".join(texts).replace(" ", "")


@pytest.mark.parametrize("seed", range(5))
def test_rows_from_top_to_bottom(seed):
    texts = ["first line here", "second one", "and the third"]
    boxes = page(*(line(t, 20, 30 + 16 * i) for i, t in enumerate(texts)))
    assert read(boxes, plain(*texts), seed) == [plain(t) for t in texts]


def test_wide_gaps_part_segments_but_not_rows():
    boxes = page(line("label", 10, 10), line("12.50", 200, 10), line("total", 10, 30), line("99.00", 200, 30))
    assert read(boxes, "label12.50total99.00") == ["label|12.50", "total|99.00"]


@pytest.mark.parametrize("slant", [-0.1, -0.04, 0.04, 0.1])
def test_slanted_pages(slant):
    texts = ["abcdefghij klmno pq", "rstuvwxyz 0123456", "ABCDEF GHIJK LMNOPQR"]
    boxes = page(*(line(t, 20, 60 + 20 * i, slant=slant) for i, t in enumerate(texts)))
    boxes = np.concatenate((boxes, page(line("99", 260, 60, slant=slant))))  # by itself it lies nearer to another row
    assert read(boxes, plain(*texts, "99")) == [plain(texts[0]) + "|99", plain(texts[1]), plain(texts[2])]
    assert arrange(boxes).slant == pytest.approx(slant, abs=0.01)


def test_a_heading_and_small_print_keep_their_rows():
    boxes = page(line("Big", 20, 10, size=40), line("small", 20, 60, size=8), line("print", 20, 72, size=8))
    assert read(boxes, "Bigsmallprint") == ["Big", "small", "print"]


def test_neighbouring_lines_do_not_steal_characters():
    """Tight leading: lines follow each other at 1.15 times the height."""
    texts = [f"row{i}with{i}text" for i in range(8)]
    boxes = page(*(line(t, 20 + 3 * (i % 2), 10 + 11.5 * i) for i, t in enumerate(texts)))
    assert read(boxes, "".join(texts)) == texts


def test_leaders_do_not_tear_rows_apart():
    """Dots whose boxes lie too low: between label and value, joined to a value, and a rule between the rows."""
    rows = [("name", "smith"), ("total", "12.50"), ("change", "99.00")]
    boxes, text, marks = [], "", []
    for i, (label, value) in enumerate(rows):
        y = 10 + 20 * i
        for part, place in ((line(label, 10, y), label), (line("." * 30, 70, y + 5, size=7), "." * 30), (line(value, 210, y), value)):
            boxes += part
            text += place
            marks += [not c.isalnum() for c in place]
    found = arrange(np.array(boxes, np.float32), marks=np.array(marks))
    said = ["".join(text[i] for i in found.order[found.row == row] if text[i].isalnum()) for row in np.unique(found.row)]
    assert said == [(label + value).replace(".", "") for label, value in rows] and found.slant == pytest.approx(0.0, abs=0.005)
    torn = arrange(np.array(boxes, np.float32))
    assert len(np.unique(torn.row)) > 3 or abs(torn.slant) > 0.005  # what it is good for
    rule = page(line("above", 10, 10), line("-" * 20, 10, 24), line("below", 10, 38))
    kept = arrange(rule, marks=np.array([False] * 5 + [True] * 20 + [False] * 5))
    assert kept.row.tolist() == [0] * 5 + [1] * 20 + [2] * 5  # a rule between two rows is a row
    alone = arrange(page(line("***", 10, 10)), marks=np.ones(3, bool))
    assert alone.row.tolist() == [0, 0, 0]


def test_everything_is_named_once():
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 300, (200, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(4, 12, (200, 2))), axis=1).astype(np.float32)
    found = arrange(boxes)
    assert sorted(found.order) == list(range(200))
    assert (np.diff(found.row) >= 0).all() and (np.diff(found.segment) >= 0).all()
    for row in np.unique(found.segment):  # a segment lies in one row, and runs from left to right
        part = found.segment == row
        assert len(np.unique(found.row[part])) == 1
        centre = boxes[found.order[part]][:, [0, 2]].mean(axis=1)
        assert (np.diff(centre) >= 0).all()


def test_nothing_and_one():
    assert len(arrange(np.zeros((0, 4), np.float32)).order) == 0
    one = arrange(page(line("a", 5, 5)))
    assert one.order.tolist() == one.row.tolist() == one.segment.tolist() == [0] and one.height == pytest.approx(10)


def detections(boxes, classes, probs, score):
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32), np.array(classes), np.array(probs, np.float32), np.array(score, np.float32), np.zeros(n, np.float32), np.arange(n)
    )


def test_double_claims_are_merged_and_their_votes_added():
    boxes = [(10, 10, 16, 20), (11, 10, 17, 20), (30, 10, 36, 20)]
    merged = suppress(detections(boxes, [[1, 2], [2, 3], [4, 5]], [[0.5, 0.4], [0.9, 0.1], [0.7, 0.2]], [0.9, 0.8, 0.7]))
    assert merged.boxes.tolist() == [list(map(float, boxes[0])), list(map(float, boxes[2]))]  # the likelier claim keeps its place
    assert merged.classes.tolist() == [[2, 1], [4, 5]]  # .4 * .9 + .9 * .8 beats .5 * .9
    mass = 0.9 * 0.9 + 0.8
    np.testing.assert_allclose(merged.probs, [[(0.36 + 0.72) / mass, 0.45 / mass], [0.7, 0.2]], rtol=1e-6)
    assert merged.cells.tolist() == [0, 2]


def test_neighbours_are_not_merged():
    boxes = page(line("il", 10, 10), line("il", 10, 21))
    assert len(suppress(detections(boxes, [[1]] * 4, [[1.0]] * 4, [0.9, 0.8, 0.9, 0.8]))) == 4
    assert len(suppress(detections(np.zeros((0, 4)), np.zeros((0, 2), int), np.zeros((0, 2)), []))) == 0


def test_order_does_not_matter_for_merging():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (40, 2))
    found = detections(np.concatenate((corner, corner + 6), 1), rng.integers(1, 9, (40, 3)), rng.dirichlet(np.ones(3), 40), rng.permutation(40) / 41 + 0.01)
    once = suppress(found)
    again = suppress(found.take(rng.permutation(40)))
    np.testing.assert_array_equal(once.boxes, again.boxes)
    np.testing.assert_allclose(once.probs, again.probs, rtol=1e-5)
