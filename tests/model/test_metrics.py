"""Measures on made-up predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.metrics import (
    Counts,
    anls,
    as_number,
    box_iou,
    centre_inside,
    character_errors,
    edit_distance,
    field_counts,
    leaves,
    match_counts,
    reading_accuracy,
    same_value,
    wilson,
    window_distance,
)

short = st.text("abc ", max_size=7)


def slow_distance(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
    return table[-1, -1]


@given(short, short)
def test_edit_distance_is_levenshtein(a, b):
    assert edit_distance(a, b) == slow_distance(a, b)


@given(short, short)
def test_window_distance_is_the_best_substring(needle, text):
    windows = [text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)]
    assert window_distance(needle, text) == min(slow_distance(needle, w) for w in windows)


def test_reading_ignores_case_blanks_and_order():
    assert reading_accuracy(["Total 12.50", "THANK YOU", " "], "thankyou\ntotal l2.50") == (1, 18, 1)


def test_a_line_cannot_be_more_wrong_than_it_is_long():
    assert reading_accuracy(["abc"], "") == (3, 3, 0)
    assert character_errors("abc", "x" * 50) == (3, 3)


def test_characters_of_a_line_keep_case_but_not_runs_of_blanks():
    assert character_errors("Ab c", "Ab   c ") == (0, 4)
    assert character_errors("Ab c", "ab c") == (1, 4)


@pytest.mark.parametrize(
    ("said", "true", "counts"),
    [
        ("Acme  ltd", "ACME LTD", Counts(1, 0, 0)),
        ("Acme", "ACME LTD", Counts(0, 1, 1)),
        (None, "ACME", Counts(0, 0, 1)),
        ("Acme", None, Counts(0, 1, 0)),
        ("", None, Counts(0, 0, 0)),
        (12.5, "12.5", Counts(1, 0, 0)),
    ],
)
def test_fields(said, true, counts):
    assert field_counts(said, true) == counts


def test_f1_over_all_fields():
    counts = Counts(3, 1, 2) + Counts(1, 0, 0)
    assert (counts.precision, counts.recall, counts.f1) == (4 / 5, 4 / 6, 8 / 11)
    assert Counts().f1 == 0


def test_matching_is_the_largest_one_to_one():
    # the first prediction fits both truths, the second only the first: greedy order would lose one
    assert match_counts(["ab", "a"], ["a", "b"], lambda p, t: t in p) == Counts(2, 0, 0)
    assert match_counts(["a", "a", "c"], ["a", "b"], lambda p, t: p == t) == Counts(1, 2, 1)


def test_values_are_compared_by_type():
    assert same_value(12.5, 12.50) and same_value("a  b ", "a b") and same_value(True, True)
    assert not same_value("A", "a") and not same_value("12.5", 12.5) and not same_value(True, 1) and not same_value(None, "")


def test_leaves_by_pointer():
    assert leaves({"a/b": [1, {"c~": None}], "d": {}}) == {"/a~1b/0": 1, "/a~1b/1/c~0": None}


def test_boxes_and_centres():
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (1, 1, 2, 2)) == 0
    assert centre_inside((0, 0, 4, 4), (2, 2, 3, 3)) and not centre_inside((0, 0, 4, 4), (0, 0, 2, 2)) and not centre_inside(None, (0, 0, 9, 9))


def test_amounts_and_similar_strings():
    assert as_number("RM 1,234.50") == 1234.5 and as_number("free") is None and as_number("nan") is None
    assert anls("abcd", "abcx") == 0.75 and anls("a", "xyz") == 0


def test_wilson_interval():
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert wilson(0, 0) == (0, 1)
