"""Every maker of samples: finished canvases read back as the answer, pointers point at what they copy."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from examples.pocket import documents, first_pages, scenes, screens
from examples.pocket.lessons import LessonMaker, see
from examples.pocket.page import families
from examples.pocket.reader_data import CHAR_CLASS
from vision.tokens import BLANK, CHAR, GAP, ROW_END, SPELLED, THING
from vlm.processor.tokenizer import Tokenizer
from vlm.training.losses import NOWHERE, UNKNOWN

TOKENIZER = Tokenizer.pocket()
MAKERS = {"documents": documents.make, "first_pages": first_pages.make, "scenes": scenes.make, "screens": screens.make}


@pytest.fixture(scope="module", autouse=True)
def fonts():
    if shutil.which("fc-list") is None:
        pytest.skip("fc-list is not installed")
    if not families(False):
        pytest.skip("no fonts for drawing pages")


def lessons(name, count, tight=False):
    """(query, lesson, visual tokens, scaffold or None) of some samples, read without error."""
    maker = LessonMaker(TOKENIZER)
    for seed in range(count):
        rng = np.random.default_rng((seed, 5))
        sample = MAKERS[name](rng)
        tokens = see(sample, rng, error=0.0)
        for query in sample.queries:
            lesson = maker.make(query, tokens, sample.page, rng if tight else None)
            yield query, lesson, tokens, None if query.schema is None or tight else maker.scaffold(query.schema)


def text_of(ids):
    return TOKENIZER.decode([int(t) for t in ids])


@pytest.mark.parametrize("name", MAKERS)
def test_finished_canvas_reads_back_as_the_answer(name):
    seen = 0
    for query, lesson, _, scaffold in lessons(name, 6):
        if scaffold is None:
            end = lesson.ids.tolist().index(TOKENIZER.special["<|eos|>"])
            assert text_of(lesson.ids[:end]) == str(query.answer)
            assert (lesson.ids[end + 1 :] == TOKENIZER.special["<|pad|>"]).all() and lesson.answer.all()
        else:
            data, fields = scaffold.read(lesson.ids.tolist())
            assert data == query.answer
            assert [p for p, f in fields.items() if f.forced] == []
            literal = ~lesson.answer
            assert (lesson.ids[literal] == np.array(scaffold.ids)[literal]).all()
        seen += 1
    assert seen >= 6


@pytest.mark.parametrize("name", MAKERS)
def test_shortened_slots_hold_whole_values(name):
    """With slots cut to about the size of their values, every value still stands in its slot, whole."""
    for query, lesson, _, _ in lessons(name, 4, tight=True):
        if query.schema is None:
            continue
        slots = np.split(lesson.ids, np.flatnonzero(lesson.slot_index == 1))[1:]
        held = [text_of(t for t in s if int(t) not in TOKENIZER.control_ids) for s in slots]
        for value in query.values.values():
            if value is not None:
                assert any(h.startswith(value.text) for h in held), value.text


@pytest.mark.parametrize("name", MAKERS)
def test_pointers_point_at_the_character_they_copy(name):
    right = copied = unknown = cells = told = 0
    ends = [TOKENIZER.special[n] for n in ("<|pad|>", "<|eos|>")]
    for query, lesson, tokens, scaffold in lessons(name, 6):
        assert lesson.pointer[~lesson.answer].tolist() == [NOWHERE] * int((~lesson.answer).sum())
        written = lesson.answer & ~np.isin(lesson.ids, ends)
        cells += int(written.sum())
        unknown += int((lesson.pointer[written] == UNKNOWN).sum()) if query.schema else 0  # counts have no single reason
        for cell in np.flatnonzero(lesson.pointer >= 0):
            entry, char = int(lesson.pointer[cell]), text_of([lesson.ids[cell]])
            if lesson.ids[cell] in ends:  # a value ends where something else comes
                assert entry == lesson.pointer[cell - 1] + 1
                continue
            value = query.values[scaffold.slots[lesson.slots.slot[cell] - 1].pointer] if scaffold else query.values.get("")
            reasons = value.boxes if value else []
            if query.task == "ground" or reasons:
                want, box = reasons[lesson.slot_index[cell] - 1] if reasons else query.box, tokens.boxes[entry]
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                assert want[0] <= x <= want[2] and want[1] <= y <= want[3]
                if reasons and tokens.kind[entry] == CHAR:  # a letter of the thing's name
                    assert tokens.cells[entry] == SPELLED and tokens.classes[entry, 0] == CHAR_CLASS[char]
                else:
                    assert tokens.kind[entry] in ((THING, BLANK) if reasons else (THING, CHAR))
                told += 1
                continue
            if char == " ":
                assert tokens.kind[entry] in (BLANK, GAP, ROW_END)
                continue
            assert tokens.kind[entry] == CHAR
            assert CHAR_CLASS[char] in tokens.classes[entry, :2], (char, query.values)  # the reader doubts itself now and then
            right += tokens.classes[entry, 0] == CHAR_CLASS[char]
            copied += 1
    assert unknown <= 0.05 * cells
    if name in ("documents", "first_pages"):
        assert copied > 100 and right >= 0.97 * copied
    if name in ("scenes", "screens"):
        assert told > 10


@pytest.mark.parametrize("name", MAKERS)
def test_cells_know_their_place_in_their_slot(name):
    for _, lesson, _, _ in lessons(name, 3):
        inside = lesson.slot_index > 0
        assert (inside == lesson.answer).all()
        starts = lesson.slot_index == 1
        continued = inside & ~starts
        assert (lesson.slot_index[continued] == lesson.slot_index[np.flatnonzero(continued) - 1] + 1).all()
        assert ((lesson.slots.slot > 0) == inside).all() or not lesson.slots.slot.any()  # free text has no table
