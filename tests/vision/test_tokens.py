"""From the tower's maps to visual tokens: decoding of boxes, alternatives, kinds, counters and rows as text."""

import numpy as np
import pytest
import torch

from tests.vision.test_lines import line, page
from vision.lines import Detections
from vision.reader import ALPHABET, COLORS, THINGS, ReaderConfig, ReaderOutput
from vision.tokens import ANCHOR, BLANK, CHAR, GAP, PLACE, ROW_END, SPELLED, THING, Things, assemble, detect, detect_things, place_of, text_of, wide_gaps

COLON = ALPHABET.index(":") + 1
CONFIG = ReaderConfig()


def empty_output(rows, columns, batch=1):
    """Maps that say 'nothing' everywhere."""
    a, t, c = len(CONFIG.alphabet), len(CONFIG.things), len(CONFIG.colors)
    shape = (rows, columns)
    output = ReaderOutput(
        torch.zeros(batch, 6, *shape), torch.zeros(batch, 2, 1 + a, *shape), torch.zeros(batch, 2, 4, *shape), torch.full((batch, 2, *shape), -5.0),
        torch.zeros(batch, 1 + t, *shape), torch.zeros(batch, 1 + c, *shape), torch.zeros(batch, 4, *shape),
    )  # fmt: skip
    output.chars[:, :, 0] = 20.0
    output.things[:, 0] = 20.0
    return output


def write(output, box, character, blank=False, batch=0, margin=8.0):
    """Let the half cell in which the box has its centre claim the character."""
    x0, y0, x1, y1 = box
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    column, row = int(cx // 8), int(cy // 8)
    side = int(cx % 8 >= 4)
    output.chars[batch, side, 0, row, column] = 0.0
    output.chars[batch, side, ALPHABET.index(character) + 1, row, column] = margin
    place = ((cx - (column * 8 + side * 4 + 2)) / 8, (cy - (row * 8 + 4)) / 8, np.log((x1 - x0) / 8), np.log((y1 - y0) / 8))
    output.char_boxes[batch, side, :, row, column] = torch.tensor(place)
    output.blanks[batch, side, row, column] = 5.0 if blank else -5.0


def written(rows, columns, *lines):
    """Maps that hold lines of text (string, x, y)."""
    output = empty_output(rows, columns)
    for text, x, y in lines:
        at = iter(line(text, x, y))
        for i, character in enumerate(text):
            if character != " ":
                write(output, next(at), character, blank=text[i + 1 : i + 2] == " ")
    return output


def test_boxes_survive_the_maps():
    output = written(12, 20, ("Hello", 10, 20), ("W0rld", 90, 50))
    found = detect(output)
    wanted = page(line("Hello", 10, 20), line("W0rld", 90, 50))
    order = np.lexsort((found.boxes[:, 0], found.boxes[:, 1]))
    np.testing.assert_allclose(found.boxes[order], wanted, atol=1e-3)
    assert "".join(ALPHABET[c - 1] for c in found.classes[order, 0]) == "HelloW0rld"
    assert found.classes.shape == (10, 4) and (np.diff(found.probs, axis=1) <= 1e-6).all()
    assert ((found.score > 0.9) & (found.score <= 1)).all()
    x, y = (found.boxes[:, 0] + found.boxes[:, 2]) / 2, (found.boxes[:, 1] + found.boxes[:, 3]) / 2
    np.testing.assert_array_equal(found.cells, (y // 8).astype(int) * 20 + (x // 8).astype(int))


def test_a_threshold_and_a_row_of_the_batch():
    output = empty_output(4, 4, batch=2)
    write(output, (8, 8, 14, 18), "x", batch=1)
    assert len(detect(output, 0)) == 0 and len(detect(output, 1)) == 1
    assert len(detect(output, 1, threshold=0.999999)) == 0
    assert detect(output, 1, top=2).classes.shape == (1, 2)


def thing(output, box, name, color, logit=5.0):
    x0, y0, x1, y1 = box
    x, cy = min(x0 + ANCHOR, (x0 + x1) / 2), (y0 + y1) / 2
    column, row = int(x // 8), int(cy // 8)
    output.things[0, 0, row, column] = 0.0
    output.things[0, 1 + THINGS.index(name), row, column] = logit
    output.colors[0, 1 + color, row, column] = 5.0
    numbers = ((x0 - (column * 8 + 4)) / 8, (cy - (row * 8 + 4)) / 8, np.log((x1 - x0) / 8), np.log((y1 - y0) / 8))
    output.thing_boxes[0, :, row, column] = torch.tensor(numbers)


def test_things_are_decoded_and_double_claims_dropped():
    output = empty_output(16, 40)
    thing(output, (16, 40, 200, 64), "field", 2)
    thing(output, (28, 40, 212, 66), "field", 2, logit=4.0)  # the same field, less surely, from another cell
    thing(output, (230, 8, 300, 30), "star", 4)
    found = detect_things(output)
    order = np.argsort(found.boxes[:, 0])
    assert [THINGS[c - 1] for c in found.classes[order]] == ["field", "star"]
    assert found.colors[order].tolist() == [0, 5]  # widgets have none
    np.testing.assert_allclose(found.boxes[order][0], (16, 40, 200, 64), atol=1e-3)
    np.testing.assert_allclose(found.boxes[order][1], (230, 8, 300, 30), atol=1e-3)
    assert len(detect_things(empty_output(4, 4)).classes) == 0


def test_kinds_and_text():
    output = written(10, 30, ("to be", 8, 16), ("or", 150, 16), ("not", 8, 48))
    tokens = assemble(detect(output), Things.none(), (240, 80), COLON)
    c, b, g, e = CHAR, BLANK, GAP, ROW_END
    assert tokens.kind.tolist() == [c, c, b, c, c, g, c, c, e, c, c, c, e]
    assert [row[0] for row in text_of(tokens, ALPHABET)] == ["to be or", "not"]
    box = text_of(tokens, ALPHABET)[1][1]
    np.testing.assert_allclose(box, (8, 48, 8 + 2 * 6 + 5.4, 58), atol=1e-3)
    assert (tokens.cells >= 0).tolist() == (tokens.kind == CHAR).tolist()
    assert tokens.place.shape == (13, PLACE) and np.isfinite(tokens.place).all()


def test_counters_begin_anew_after_a_colon_and_in_each_segment():
    output = written(6, 40, ("a: bc d", 8, 16), ("xy", 250, 16))
    tokens = assemble(detect(output), Things.none(), (320, 48), COLON)
    chars = tokens.kind == CHAR
    assert tokens.index[chars].tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 1], [3, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_counters_are_clipped():
    output = written(4, 100, ("m" * 120, 8, 12))
    tokens = assemble(detect(output), Things.none(), (800, 32), COLON)
    assert tokens.index.max(axis=0).tolist() == [95, 0, 23]


def test_things_stand_before_the_text():
    output = written(10, 30, ("ok", 40, 20))
    thing(output, (20, 50, 60, 66), "star", 1)
    thing(output, (20, 10, 60, 32), "star", 1)
    tokens = assemble(detect(output), detect_things(output), (240, 80), COLON)
    things = np.flatnonzero(tokens.kind == THING)
    assert things.tolist() == [0, 11] and tokens.kind[-3:].tolist() == [CHAR, CHAR, ROW_END]
    assert tokens.boxes[0, 1] < tokens.boxes[11, 1]  # from top to bottom
    assert tokens.color[things].tolist() == [2, 2] and tokens.color.sum() == 4
    assert [row[0] for row in text_of(tokens, ALPHABET)] == ["ok"]


def test_names_of_things_are_spelled_behind_them():
    output = empty_output(10, 30)
    thing(output, (20, 50, 60, 66), "circle", 3)
    tokens = assemble(detect(output), detect_things(output), (240, 80), COLON)
    color = COLORS[tokens.color[0] - 1]
    assert tokens.kind.tolist() == [THING, *[CHAR] * len(color), BLANK, *[CHAR] * 6, ROW_END] and (tokens.cells[1:] == SPELLED).all()
    assert "".join(ALPHABET[c - 1] for c in tokens.classes[tokens.kind == CHAR, 0]) == f"{color}circle"
    words = tokens.lexicon.roles[tokens.lexicon.holder]
    assert words[len(color) + 2, 1] == words[1, 0] > 0  # 'circle' knows the colour before it


def test_pieces_set_apart_are_two_words_whatever_the_tower_says_of_blanks():
    def at(*lefts, width=6.0):
        return np.array([[x, 0, x + width, 10] for x in lefts], np.float32)

    assert wide_gaps(at(0, 7, 21, 28)).tolist() == [False, True, False, False]
    assert wide_gaps(at(0, 11, width=2.0)).tolist() == [False, False]  # narrow letters of a typewriter
    assert wide_gaps(at(0, 16, width=2.0)).tolist() == [True, False]
    assert wide_gaps(np.zeros((0, 4), np.float32)).tolist() == [] and wide_gaps(at(3)).tolist() == [False]


def test_nothing_at_all():
    tokens = assemble(detect(empty_output(3, 3)), Things.none(), (24, 24), COLON)
    assert len(tokens) == 0 and text_of(tokens, ALPHABET) == []
    only = Detections(*(np.zeros(s, t) for s, t in (((0, 4), "f4"), ((0, 4), "i8"), ((0, 4), "f4"), (0, "f4"), (0, "f4"), (0, "i8"))))
    assert len(assemble(only, Things.none(), (1, 1), COLON)) == 0


def test_scaled_and_clipped():
    tokens = assemble(detect(written(6, 20, ("abc", 8, 16))), Things.none(), (160, 48), COLON)
    np.testing.assert_allclose(tokens.scaled(2, 3).boxes, tokens.boxes * [2, 3, 2, 3])
    assert len(tokens.clipped(2)) == 2 and tokens.clipped(2).kind.tolist() == tokens.kind[:2].tolist()


def test_place():
    place = place_of(np.array([[10, 20, 30, 40]], np.float32), (100, 200), 10.0)[0]
    assert place.tolist() == pytest.approx([2.0, 3.0, 0.2, 0.15, 1.0, 3.0, np.log(2), np.log(2)], abs=1e-6)
