"""Pooling of several looks at one page."""

from __future__ import annotations

import numpy as np

from vision.lines import Detections
from vision.pooling import LEAST, pool


def look(*marks):
    """Marks (class, other class, probability of the first, score, blank, x, width) on one line of 14 pixels."""
    k, other, p, score, blank, x, w = np.array(marks, np.float32).reshape(-1, 7).T
    boxes = np.stack((x, np.full_like(x, 10), x + w, np.full_like(x, 24)), 1)
    return Detections(
        boxes, np.stack((k, other), 1).astype(np.int64), np.stack((p, 1 - p), 1), score, blank, np.arange(len(k))
    )


def test_a_sure_look_outvotes_an_unsure_one_and_places_are_the_mean():
    first = look((5, 7, 0.6, 0.9, 0.0, 10, 8), (1, 2, 1.0, 0.9, 1.0, 18, 8))
    second = look((7, 5, 0.9, 0.9, 0.2, 11, 8), (1, 2, 0.9, 0.9, 0.6, 18, 8))
    found = pool([first, second], [0, 100])
    assert found.classes[:, 0].tolist() == [7, 1] and found.cells.tolist() == [0, 1]
    np.testing.assert_allclose(found.probs[0], [(0.9 + 0.4) / 2, (0.6 + 0.1) / 2], atol=1e-6)
    np.testing.assert_allclose(found.boxes[0], [10.5, 10, 18.5, 24])
    np.testing.assert_allclose(found.blank, [0.1, 0.8], atol=1e-6)


def test_what_one_look_alone_has_seen_must_be_sure():
    low, high = 2 * LEAST - 0.1, 2 * LEAST + 0.1
    first = look((1, 2, 1.0, 0.9, 0, 0, 8), (2, 3, 1.0, high, 0, 10, 8), (3, 4, 1.0, low, 0, 20, 8))
    second = look((1, 2, 1.0, 0.9, 0, 0, 8), (4, 5, 1.0, high, 0, 30, 8), (5, 6, 1.0, low, 0, 40, 8))
    found = pool([first, second], [0, 100])
    assert found.classes[:, 0].tolist() == [1, 2, 4] and found.cells.tolist() == [0, 1, 101]
    empty = look()
    assert pool([first, empty], [0, 100]).cells.tolist() == [0, 1, 2]  # a look that found nothing does not count
    assert pool([empty, second], [0, 100]).cells.tolist() == [100, 101, 102]
    assert len(pool([empty, empty], [0, 0])) == 0


def test_of_three_looks_two_decide_and_each_counts_the_same():
    one, other = (5, 7, 0.9, 0.9, 0.0, 10, 8), (7, 5, 0.8, 0.9, 0.3, 13, 8)
    found = pool([look(one), look(other), look(other)], [0, 10, 20])
    assert found.classes.tolist() == [[7, 5]] and found.cells.tolist() == [0]
    np.testing.assert_allclose(found.probs[0], [(0.1 + 0.8 + 0.8) / 3, (0.9 + 0.2 + 0.2) / 3], atol=1e-6)
    np.testing.assert_allclose(found.boxes[0], [12, 10, 20, 24])
    np.testing.assert_allclose(found.blank, [0.2], atol=1e-6)
    alone, word = (1, 2, 1.0, 1.0, 0, 40, 8), (3, 4, 1.0, 0.6, 0, 60, 8)
    found = pool([look(one, word), look(one, alone), look(one, word)], [0, 10, 20])
    assert found.classes[:, 0].tolist() == [5, 3]  # sure as it may be, one look of three is not enough


def test_dots_meet_though_they_are_narrower_than_the_looks_agree_to():
    found = pool([look((3, 4, 1.0, 0.9, 0, 10.0, 2)), look((3, 4, 1.0, 0.9, 0, 12.0, 2))], [0, 100])
    assert len(found) == 1
    assert len(pool([look((3, 4, 1.0, 0.9, 0, 10.0, 2)), look((3, 4, 1.0, 0.9, 0, 14.5, 2))], [0, 100])) == 2  # two l's are as near


def test_of_two_that_want_one_the_nearer_has_it():
    first = look((1, 2, 1.0, 0.9, 0, 10, 8), (2, 3, 1.0, 0.95, 0, 13, 8))
    found = pool([first, look((2, 3, 1.0, 0.9, 0, 13, 8))], [0, 100])
    assert sorted(found.classes[:, 0].tolist()) == [1, 2] and len(found) == 2


def test_a_whole_page_keeps_its_order():
    rng = np.random.default_rng(0)
    count = 700  # more than one chunk
    boxes = np.stack((np.arange(count) % 40 * 12.0, np.arange(count) // 40 * 20.0), 1).astype(np.float32)
    boxes = np.concatenate((boxes, boxes + np.float32([8, 14])), 1).astype(np.float32)
    classes = rng.integers(1, 90, (count, 1))
    found = Detections(boxes, classes, np.ones((count, 1), np.float32), np.ones(count, np.float32), np.zeros(count, np.float32), np.arange(count))
    shuffled = rng.permutation(count)
    moved = found.take(shuffled)
    moved.boxes = moved.boxes + np.float32(1.0)
    both = pool([found, moved], [0, count])
    assert (both.cells == np.arange(count)).all() and (both.classes == classes).all()
    np.testing.assert_allclose(both.boxes, boxes + 0.5)
