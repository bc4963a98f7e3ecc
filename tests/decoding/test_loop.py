"""Properties every preset keeps, on a toy model that cannot see what batch it is in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.oracle import ToyDenoiser
from vlm.decoding.canvas import GIVEN, KEPT, MASK, NEW, Canvas
from vlm.decoding.contracts import Prediction
from vlm.decoding.loop import Frame, Recipe, decode, run
from vlm.decoding.presets import PRESETS, preset
from vlm.decoding.quotas import dream_table, linear_table, shaped_table
from vlm.decoding.stops import EndOfText
from vlm.errors import DecodingError, OptionError

VOCAB, MASK_ID, PAD, EOS, BANNED = 12, 11, 10, 9, (7, 8)
SMALL: dict[str, dict[str, Any]] = {
    "dimple": {"gamma": 0.6}, "threshold": {"threshold": 0.5, "block_length": 3}, "factor": {"block_length": 4}, "one-by-one": {},
    "dream-origin": {"steps": 4}, "dream-maskgit-plus": {"steps": 4, "alg_temp": 0.5}, "dream-topk-margin": {"steps": 5}, "dream-entropy": {"steps": 3},
    **{name: {"block_length": 3} for name in ("block-static", "block-dynamic", "block-sequential")},
    **{name: {"steps_per_block": 2, "block_length": 4} for name in ("llada", "llada-random", "lavida", "lavida-linear", "lavida-cosine")},
}  # fmt: skip

cell = st.one_of(st.none(), st.none(), st.integers(0, VOCAB - 4))
rows = st.lists(st.lists(cell, min_size=1, max_size=9), min_size=1, max_size=3)


def _canvas(content: list[list[int | None]]) -> Canvas:
    return Canvas.from_rows(content, mask_id=MASK_ID, pad_id=PAD)


def _recipe(name: str, **options: Any) -> Recipe:
    return preset(name, **{**SMALL[name], **options}, banned=(PAD, *BANNED))


def test_every_preset_is_covered() -> None:
    assert set(SMALL) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(content=rows, seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.0]))
def test_guards(name: str, content: list[list[int | None]], seed: int, temperature: float) -> None:
    canvas = _canvas(content)
    start, frozen, open_before = canvas.ids.clone(), canvas.frozen.clone(), canvas.open.clone()
    total = open_before.sum(1)
    left = total.clone()
    for frame in decode(ToyDenoiser(VOCAB, seed), canvas, _recipe(name, temperature=temperature), seed=seed):
        new = (frame.state == NEW).sum(1)
        assert bool((new[left > 0] >= 1).all()), "a row with open cells commits at least one"
        left = left - new
        assert bool((frame.ids[~open_before] == start[~open_before]).all()), "given cells and padding never change"
    assert not bool(canvas.open.any())
    assert bool((left == 0).all())
    assert bool((canvas.forwards <= total).all())
    written = canvas.ids[open_before]
    assert not bool(torch.isin(written, torch.tensor([MASK_ID, PAD, *BANNED])).any()), "no mask, pad or banned token comes out"
    assert bool((canvas.frozen == frozen).all())


@pytest.mark.parametrize("name", PRESETS)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(content=rows, seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 0.7]))
def test_a_batch_equals_its_rows(name: str, content: list[list[int | None]], seed: int, temperature: float) -> None:
    recipe, denoiser = _recipe(name, temperature=temperature), ToyDenoiser(VOCAB, seed)
    together = run(denoiser, _canvas(content), recipe, seed=seed)
    for i, row in enumerate(content):
        alone = run(denoiser, _canvas([row]), recipe, seed=seed)
        assert together.ids[i, : len(row)].tolist() == alone.ids[0].tolist()
        assert together.committed_at[i, : len(row)].tolist() == alone.committed_at[0].tolist()
        assert int(together.forwards[i]) == int(alone.forwards[0])


@pytest.mark.parametrize("name", PRESETS)
def test_frames_tell_the_whole_story(name: str) -> None:
    canvas = _canvas([[None, 3, None, None, None], [None, None]])
    previous = canvas.states(canvas.masked)
    assert previous.tolist()[0] == [MASK, GIVEN, MASK, MASK, MASK]
    ids = canvas.ids.clone()
    number = 0
    for frame in decode(ToyDenoiser(VOCAB), canvas, _recipe(name)):
        number += 1
        assert frame.step == number
        _check_transition(previous, ids, frame)
        previous, ids = frame.state, frame.ids
    assert bool((previous != MASK).all())
    assert torch.equal(ids, canvas.ids)
    assert torch.equal(canvas.committed_at[canvas.committed_at >= 0].unique(), torch.arange(1, number + 1))


def _check_transition(previous: torch.Tensor, ids: torch.Tensor, frame: Frame) -> None:
    allowed = {(GIVEN, GIVEN), (MASK, MASK), (MASK, NEW), (NEW, KEPT), (KEPT, KEPT)}
    assert set(zip(previous.flatten().tolist(), frame.state.flatten().tolist(), strict=True)) <= allowed
    changed = ids != frame.ids
    assert bool((frame.state[changed] == NEW).all())
    assert bool((frame.confidence[frame.state == MASK] == 0).all())


@settings(deadline=None, max_examples=30, derandomize=True)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3), steps=st.integers(1, 6), shape=st.sampled_from(["even", "shift", "cosine", "linear"]))
def test_quotas_are_per_row(lengths: list[int], steps: int, shape: str) -> None:
    options = {"steps_per_block": steps, "block_length": None}
    recipe = preset("llada", **options) if shape == "even" else preset("lavida", shape=shape, **options)
    canvas = _canvas([[None] * n for n in lengths])
    taken = torch.stack([(frame.state == NEW).sum(1) for frame in decode(ToyDenoiser(VOCAB), canvas, recipe)])
    for row, n in enumerate(lengths):
        table = linear_table(n, steps) if shape == "even" else shaped_table(n, steps, shape)
        assert [k for k in taken[:, row].tolist() if k] == [k for k in table if k]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(masks=st.integers(1, 80), steps=st.integers(1, 80), shift=st.floats(0.05, 8))
def test_tables_fill_everything(masks: int, steps: int, shift: float) -> None:
    assert sum(linear_table(masks, steps)) == masks
    assert sum(dream_table(masks, steps)) == masks
    for shape in ("shift", "cosine", "linear", "logit_normal"):
        table = shaped_table(masks, steps, shape, shift)
        assert sum(table) == masks
        assert min(table) >= 1
        assert len(table) <= min(masks, steps)


def test_blocks_are_filled_from_left_to_right_by_each_row() -> None:
    canvas = _canvas([[None] * 6, [None, None, 1, 1, None, None]])
    before = canvas.open.clone()
    for frame in decode(ToyDenoiser(VOCAB), canvas, preset("threshold", threshold=0.9, block_length=2)):
        current = before.int().argmax(dim=1) // 2  # block of the first open cell, row by row
        for row, column in (frame.state == NEW).nonzero().tolist():
            assert column // 2 == int(current[row])
        before = canvas.open.clone()
    assert not bool(canvas.open.any())


class _Script:
    """Prefers a fixed token for each cell, the left ones most surely."""

    vocab_size = VOCAB

    def __init__(self, tokens: list[list[int]]) -> None:
        self.tokens = torch.tensor(tokens)
        self.calls: list[torch.Tensor] = []

    def __call__(self, canvas: Canvas, cells: torch.Tensor) -> Prediction:
        self.calls.append(cells.clone())
        logits = torch.zeros(*cells.shape, VOCAB)
        strength = torch.linspace(9, 4, cells.shape[1]).expand(cells.shape).unsqueeze(-1)
        logits.scatter_(2, self.tokens.unsqueeze(-1), strength)
        return Prediction(logits[cells])


def test_a_row_stops_at_its_own_end_and_the_others_go_on() -> None:
    script = _Script([[1, EOS, 2, 3], [1, 2, 3, 4]])
    canvas = _canvas([[None] * 4, [None] * 4])
    run(script, canvas, preset("one-by-one").with_parts(stop=EndOfText((EOS,))))
    assert canvas.ids.tolist() == [[1, EOS, PAD, PAD], [1, 2, 3, 4]]
    assert canvas.forwards.tolist() == [2, 4]
    assert canvas.committed_at[0].tolist() == [1, 2, -1, -1], "padding was not proposed by the model"
    assert not bool(script.calls[-1][0].any()), "a finished row is not asked for any more"


def test_an_end_does_not_close_what_is_open_before_it() -> None:
    script = _Script([[1, 2, EOS, 3]])
    script.tokens = script.tokens.flip(1)  # the end is surest on the left of nothing: cell 1 holds it
    canvas = _canvas([[None] * 4])
    run(script, canvas, preset("one-by-one").with_parts(stop=EndOfText((EOS,))))
    assert canvas.ids.tolist() == [[3, EOS, PAD, PAD]]


def test_given_ends_do_not_count() -> None:
    canvas = _canvas([[EOS, None, None]])
    run(_Script([[1, 2, 3]]), canvas, preset("one-by-one").with_parts(stop=EndOfText((EOS,))))
    assert canvas.ids.tolist() == [[EOS, 2, 3]]


def test_the_last_allowed_forward_takes_everything() -> None:
    canvas = _canvas([[None] * 8, [None] * 3])
    run(ToyDenoiser(VOCAB), canvas, _recipe("one-by-one", max_forwards=3))
    assert canvas.forwards.tolist() == [3, 3]
    assert not bool(canvas.open.any())


def test_seeds_per_row_are_the_rows_own() -> None:
    recipe = _recipe("dimple", temperature=1.5)
    canvas = run(ToyDenoiser(VOCAB), _canvas([[None] * 6] * 3), recipe, seed=[5, 6, 5])
    assert canvas.ids[0].tolist() == canvas.ids[2].tolist() != canvas.ids[1].tolist()
    assert canvas.ids[1].tolist() == run(ToyDenoiser(VOCAB), _canvas([[None] * 6]), recipe, seed=6).ids[0].tolist()
    with pytest.raises(OptionError, match="2 seeds for 3 rows"):
        run(ToyDenoiser(VOCAB), _canvas([[None]] * 3), recipe, seed=[1, 2])


def test_a_model_that_proposes_only_the_mask_ends_a_faithful_run() -> None:
    """Under reference_quirks the cell stays open; the run must not go on for ever."""
    canvas = _canvas([[None, None]])
    run(_Script([[MASK_ID, MASK_ID]]), canvas, preset("llada", steps_per_block=2, reference_quirks=True))
    assert bool(canvas.masked.all())
    run(_Script([[MASK_ID, MASK_ID]]), canvas, preset("llada", steps_per_block=2))
    assert not bool(canvas.masked.any())
    assert not bool((canvas.ids == MASK_ID).any())


def test_a_denoiser_that_breaks_its_contract_is_named() -> None:
    class Short(ToyDenoiser):
        def __call__(self, canvas: Canvas, cells: torch.Tensor) -> Prediction:
            return Prediction(super().__call__(canvas, cells).logits[:-1])

    with pytest.raises(DecodingError, match="1 rows of logits for 2 cells"):
        run(Short(VOCAB), _canvas([[None, None]]), preset())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dimpel", {}, "did you mean 'dimple'"),
        ("dimple", {"gama": 1}, "did you mean 'gamma'"),
        ("llada", {"steps_per_block": 0}, "steps is 0"),
        ("lavida", {"shape": "square"}, "unknown schedule 'square'"),
        ("factor", {"factor": 0}, "factor is 0"),
        ("dimple", {"temperature": -1}, "temperature is -1"),
        ("dimple", {"top_p": 1.5}, "top_p is 1.5"),
        ("dimple", {"top_k": 0}, "top_k is 0"),
        ("llada", {"score": "vibes"}, "unknown score 'vibes'"),
        ("llada", {"sampling": "dice"}, "unknown sampling method 'dice'"),
        ("threshold", {"block_length": 0}, "block_length is 0"),
        ("dream-entropy", {"steps": 0}, "steps is 0"),
        ("dream-origin", {"steps": 0}, "steps is 0"),
        ("dimple", {"steps": 0}, "steps is 0"),
        ("dream-entropy", {"alg_temp": -1}, "alg_temp is -1"),
        ("dimple", {"eps": 1.0}, "eps is 1.0"),
        ("dimple", {"temperature": "hot"}, "wrong type"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        preset(name, **options)
