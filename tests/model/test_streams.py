"""Streams of structured tasks on random weights: they end with what the plain call gives, and show it being written."""

import numpy as np
import pytest
from PIL import Image

from vlm import DiffusionVLM, ImageNotFoundError, OptionError, PromptError, SchemaError
from vlm.decoding.canvas import MASK, REMASKED, Canvas
from vlm.decoding.loop import Frame
from vlm.decoding.presets import PRESETS, known_options
from vlm.live import STATES, cells_of, text_so_far
from vlm.processor.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("exact")
SCHEMA = {"total": "number", "paid": "boolean!", "note": "string"}


@pytest.fixture(scope="module")
def model(tiny):
    return DiffusionVLM.from_pretrained(tiny)


@pytest.fixture(scope="module")
def page():
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def same(a, b):
    assert (a.text, a.data, a.status, a.box, a.warnings, a.source) == (b.text, b.data, b.status, b.box, b.warnings, b.source)
    assert (a.usage.steps, a.usage.forwards, a.usage.tokens) == (b.usage.steps, b.usage.forwards, b.usage.tokens)
    assert {p: (f.value, f.box) for p, f in a.fields.items()} == {p: (f.value, f.box) for p, f in b.fields.items()}


@pytest.mark.parametrize("task", ["extract", "ground"])
def test_ends_with_what_the_call_gives(model, page, task):
    wanted = SCHEMA if task == "extract" else "click OK"
    parts = list(getattr(model, f"stream_{task}")(page, wanted))
    assert all(p.result is None for p in parts[:-1])
    (result,) = parts[-1].result
    same(result, getattr(model, task)(page, wanted))
    assert len(parts) - 1 == result.usage.steps
    assert result.usage.ms > 0


def test_slots_close_one_by_one(model, page):
    parts = list(model.stream_extract(page, SCHEMA, preset="one-by-one"))
    done = [sum(view.info is not None for view in part.slots[0]) for part in parts]
    assert done == sorted(done) and done[0] < 3 and done[-1] == 3
    assert "·" in parts[0].text[0] and parts[0].text[0].startswith('{"total": ')
    last = parts[-1]
    assert "·" not in last.text[0]
    for view in last.slots[0]:
        assert view.info is not None and view.pointer == view.info.pointer
        final = last.result[0].fields[view.pointer]
        if not final.forced:  # what the schema demands in place of nothing is put in at the end
            assert (view.info.value, view.info.box) == (final.value, final.box)
            assert view.info.confidence == pytest.approx(final.confidence)
    closed = {}
    for part in parts:  # a closed slot stays as it is
        for view in part.slots[0]:
            if view.info is not None:
                assert closed.setdefault(view.pointer, view.info.value) == view.info.value


def test_cells_of_a_scaffold(model, page):
    parts = list(model.stream_extract(page, SCHEMA, preset="one-by-one"))
    first, last = model.cells(parts[0]), model.cells(parts[-1])
    assert {c.slot for c in first} == {"", "/total", "/paid", "/note"}
    assert all((c.state == "given") == (c.slot == "") for c in first)
    assert sum(c.state == "new" for c in first) == 1
    assert {c.state for c in last} == {"given", "kept"}
    assert "".join(c.text for c in last) == parts[-1].text[0]
    assert all(c.confidence == 0 for c in first if c.state in ("given", "mask"))


def test_infill(model, page):
    text = "The total is [[8]] and [[paid:5:cash|card]]."
    result = model.infill(text, page)
    assert result.text.startswith("The total is ") and result.text.endswith(".")
    assert list(result.data) == ["total", "paid"] and result.data["paid"] in ("cash", "card", None)
    parts = list(model.stream_infill(text, page))
    same(parts[-1].result[0], result)
    assert model.infill("[[3]]").data.keys() == {"blank"}  # neither picture nor prompt
    assert model.infill("[[3]]", prompt="say it").usage.tokens <= 3


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m, p: m.stream_extract(p, {"a": "nonsense"}), SchemaError),
        (lambda m, p: m.stream_extract("none.png", SCHEMA), ImageNotFoundError),
        (lambda m, p: m.stream_extract(p, SCHEMA, presett="x"), OptionError),
        (lambda m, p: m.stream_ground(p, " "), PromptError),
        (lambda m, p: m.stream_infill("nothing open", p), SchemaError),
        (lambda m, p: m.stream_infill("", p), PromptError),
        (lambda m, p: m.infill("[[4]]", p, seed="x"), OptionError),
    ],
)
def test_wrong_requests_fail_at_once(model, page, call, error):
    with pytest.raises(error):
        call(model, page)


def test_presets_say_every_option(model):
    presets = model.presets()
    assert set(presets) == set(PRESETS) and presets["dimple"]["gamma"] == 0.7 and known_options()["dimple"]["gamma"] == 0.95
    for name, options in presets.items():
        model.engine.plan({"preset": name, **options})  # all of them are accepted


def test_characters_of_several_tokens():
    tokenizer = Tokenizer.pocket()
    ids = [*tokenizer.encode_chars("a😀b"), tokenizer.special["<|pad|>"]]
    canvas = Canvas.from_rows([ids], mask_id=tokenizer.special["<|mask|>"], pad_id=tokenizer.special["<|pad|>"])
    frame = Frame(0, canvas.ids, canvas.states(canvas.masked), canvas.commit_confidence, canvas.forwards)
    cells = cells_of(tokenizer, frame)
    assert "".join(c.text for c in cells) == "a😀b" and len(cells) == 7  # four bytes for one character
    assert cells[-1].control == "<|pad|>" and cells[4].text == "😀"
    broken = cells_of(tokenizer, Frame(0, canvas.ids[:, :3], frame.state[:, :3], frame.confidence[:, :3], canvas.forwards))
    assert "".join(c.text for c in broken) == "a�"


def test_cells_taken_back():
    """A reviser's work is seen: what it opens again is remasked in that frame, and an ordinary mask later."""
    tokenizer = Tokenizer.pocket()
    canvas = Canvas.from_rows([[None, None, 40]], mask_id=tokenizer.special["<|mask|>"], pad_id=0)
    every = canvas.masked.clone()
    canvas.commit(every, canvas.ids.new_tensor([41, 42]), canvas.commit_confidence.new_ones(2))
    before = canvas.masked.clone()
    canvas.masked[0, 1] = True
    state = canvas.states(before)
    assert [STATES[s] for s in state[0].tolist()] == ["kept", "remasked", "given"]
    assert canvas.states(canvas.masked)[0, 1] == MASK != REMASKED
    assert text_so_far(tokenizer, canvas.ids[0].tolist(), state[0].tolist()).count("·") == 1
