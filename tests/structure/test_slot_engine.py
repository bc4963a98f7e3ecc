"""Random logits, random order, random re-masking: whatever comes out satisfies its schema."""

import itertools
import json

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.structure.support import POCKET, Canvas, decode, roots, start
from vlm.errors import DecodingError
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema
from vlm.structure.slot_engine import SlotEngine

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def check(schema, data):
    """The result validates, and survives serialising."""
    jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(data)
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def scaffold_of(schema, **options):
    return compile_scaffold(parse_schema(schema), POCKET, **options)


@relaxed
@given(roots, st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 30.0]), st.sampled_from([0.05, 0.5, 1.0]))
def test_every_result_validates(schema, seed, scale, share):
    scaffold = scaffold_of(schema, budget=8, max_items=2)
    generator = torch.Generator().manual_seed(seed)
    canvas = start([scaffold])
    literals = [i for i, slot in enumerate(scaffold.slot_of) if slot < 0]
    decode(SlotEngine(scaffold), canvas, generator, scale=scale, share=share)
    row = canvas.ids[0].tolist()
    assert [row[i] for i in literals] == [scaffold.ids[i] for i in literals]
    data, fields = scaffold.read(row)
    check(schema, data)
    for slot in scaffold.slots:
        assert slot.constraint.accept is not None
    assert all(0 <= info.confidence <= 1 for info in fields.values())


@relaxed
@given(roots, st.integers(0, 2**31))
def test_remasking_windows_and_draws(schema, seed):
    scaffold = scaffold_of(schema, budget=8, max_items=2)
    generator = torch.Generator().manual_seed(seed)
    canvas = start([scaffold])
    engine = SlotEngine(scaffold, temperature=1.0, seed=seed)
    decode(engine, canvas, generator, remask=0.1, window=0.5)
    check(schema, scaffold.read(canvas.ids[0].tolist())[0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(roots, st.integers(0, 2**31))
def test_garbage_on_the_canvas_is_repaired(schema, seed):
    """Without the engine: any ids, masks and control tokens in slots still read as valid data, flagged."""
    scaffold = scaffold_of(schema, budget=8, max_items=2)
    rng = np.random.default_rng(seed)
    row = [int(rng.integers(0, 416)) if slot >= 0 else i for i, slot in zip(scaffold.ids, scaffold.slot_of, strict=True)]
    check(schema, scaffold.read(row)[0])
    data, fields = scaffold.read(scaffold.ids)  # nothing decided at all
    check(schema, data)
    assert all(fields[slot.pointer].forced for slot in scaffold.slots if slot.pointer in fields)


RECEIPT = {
    "type": "object",
    "properties": {
        "company": {"type": ["string", "null"], "maxLength": 24},
        "address": {"type": ["string", "null"], "maxLength": 24},
        "date": {"type": ["string", "null"], "format": "date"},
        "total": {"type": ["number", "null"]},
        "paid": {"type": "boolean"},
        "items": {"type": "array", "maxItems": 2, "items": {"type": "object", "required": ["n", "q"], "properties": {
            "n": {"type": "string", "maxLength": 10}, "q": {"type": "integer", "minimum": 0, "maximum": 99}}}},
    },
    "required": ["company", "date", "total", "paid"],
}  # fmt: skip


def test_a_sure_model_gets_its_way():
    """Logits that spell an answer are decoded to that answer, in one step, at confidence near 1."""
    scaffold = scaffold_of(RECEIPT)
    wanted = {"/company": 'A "B" Ltd', "/date": "2024-02-29", "/total": "-0.5", "/paid": "true",
              "/items/0/n": "Tea", "/items/0/q": "12"}  # fmt: skip
    target = scaffold.fill(wanted)
    canvas = start([scaffold])
    logits = torch.zeros(int(canvas.masked.sum()), 416)
    logits[torch.arange(len(logits)), torch.tensor(target)[canvas.masked[0]]] = 20.0
    ids, score = SlotEngine(scaffold).propose(canvas, canvas.masked, logits)
    assert ids.tolist() == torch.tensor(target)[canvas.masked[0]].tolist()
    assert float(score.min()) > 0.999
    confidence = torch.ones(canvas.ids.shape)
    confidence[canvas.masked] = score
    data, fields = scaffold.read(target, confidence[0].tolist())
    assert data == {"company": 'A "B" Ltd', "address": None, "date": "2024-02-29", "total": -0.5, "paid": True,
                    "items": [{"n": "Tea", "q": 12}]}  # fmt: skip
    assert fields["/address"].value is None and not fields["/address"].forced
    assert all(info.confidence > 0.99 for info in fields.values())


@pytest.mark.parametrize("seed", range(10))
def test_proposal_is_the_best_valid_value(seed):
    """Against enumeration over all valid texts of a small slot, with and without committed cells."""
    schema = {"type": "object", "properties": {"c": {"enum": ["abab", "abb", "ba", "b", "aab", None]}}, "required": ["c"]}
    scaffold = scaffold_of(schema)
    slot = scaffold.slots[0]
    texts = ["abab", "abb", "ba", "b", "aab", None]
    rows = [slot.encode(text) for text in texts]
    rng = np.random.default_rng(seed)
    canvas = start([scaffold])
    logits = torch.from_numpy(rng.normal(0, 2, (slot.budget, 416))).float()
    engine = SlotEngine(scaffold)
    committed = {}
    for cell in [None, int(rng.integers(slot.budget))]:
        if cell is not None:
            committed[cell] = rows[int(rng.integers(len(rows)))][cell]
            canvas.ids[0, slot.start + cell] = committed[cell]
            canvas.masked[0, slot.start + cell] = False
        open_cells = [c for c in range(slot.budget) if c not in committed]
        fitting = [row for row in rows if all(row[c] == token for c, token in committed.items())]
        best = max(fitting, key=lambda row: sum(float(logits[c, row[c]]) for c in open_cells))
        ids, score = engine.propose(canvas, canvas.masked, logits[open_cells])
        assert ids.tolist() == [best[c] for c in open_cells]
        for place, c in enumerate(open_cells):
            options = sorted({row[c] for row in fitting})
            chances = logits[c, options].softmax(0)
            assert float(score[place]) == pytest.approx(float(chances[options.index(best[c])]), rel=1e-5)
        kept = engine(canvas, canvas.masked, logits[open_cells])
        for place, c in enumerate(open_cells):
            assert {i for i in range(416) if kept[place, i] > -torch.inf} == {row[c] for row in fitting}


def test_draws_of_whole_values():
    """At temperature 1 values come out as often as the conditional law says."""
    schema = {"type": "object", "properties": {"c": {"enum": ["ab", "ba", "b", None]}}, "required": ["c"]}
    scaffold = scaffold_of(schema)
    slot = scaffold.slots[0]
    rows = [slot.encode(text) for text in ("ab", "ba", "b", None)]
    count = 4000
    one = start([scaffold])
    canvas = Canvas(one.ids.repeat(count, 1), one.masked.repeat(count, 1))
    logits = torch.randn(slot.budget, 416, generator=torch.Generator().manual_seed(1))
    engine = SlotEngine(scaffold, temperature=1.0, seed=range(count))
    ids, _ = engine.propose(canvas, canvas.masked, logits.repeat(count, 1))
    drawn = ids.view(count, slot.budget)
    law = torch.tensor([sum(float(logits[c, row[c]]) for c in range(slot.budget)) for row in rows]).softmax(0)
    for row, chance in zip(rows, law.tolist(), strict=True):
        share = float((drawn == torch.tensor(row)).all(dim=1).float().mean())
        assert abs(share - chance) < 4 * (0.25 / count) ** 0.5


def test_batch_equals_singles():
    scaffolds = [scaffold_of(RECEIPT), scaffold_of({"a": "string", "b": "date"}), scaffold_of(RECEIPT, budget=5)]
    together = start(scaffolds)
    generator = torch.Generator().manual_seed(3)
    singles = []
    logits = []
    for scaffold in scaffolds:
        canvas = start([scaffold])
        logits.append(torch.randn(int(canvas.masked.sum()), 416, generator=generator))
        singles.append(SlotEngine(scaffold).propose(canvas, canvas.masked, logits[-1]))
    ids, score = SlotEngine(scaffolds).propose(together, together.masked, torch.cat(logits))
    assert torch.equal(ids, torch.cat([single[0] for single in singles]))
    torch.testing.assert_close(score, torch.cat([single[1] for single in singles]))


def test_cells_outside_slots_are_left_alone():
    scaffold = scaffold_of({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
    canvas = start([scaffold])
    width = canvas.ids.shape[1]
    canvas.ids = torch.nn.functional.pad(canvas.ids, (2, 1), value=1)
    canvas.masked = torch.nn.functional.pad(canvas.masked, (2, 1), value=True)
    logits = torch.randn(int(canvas.masked.sum()), 416, generator=torch.Generator().manual_seed(0))
    engine = SlotEngine(scaffold, offsets=2)
    ids, score = engine.propose(canvas, canvas.masked, logits)
    for place in (0, 1, len(ids) - 1):
        assert int(ids[place]) == int(logits[place].argmax())
        assert float(score[place]) == pytest.approx(float(logits[place].softmax(0).max()))
        assert torch.equal(engine(canvas, canvas.masked, logits)[place], logits[place])
    spelled = POCKET.decode(ids[2:-1].tolist())
    assert spelled in ("true", "false", "")
    only = torch.zeros_like(canvas.masked)
    only[0, 0] = True
    assert engine.propose(canvas, only, logits[:1]) is None
    assert engine(canvas, only, logits[:1]) is not None
    with pytest.raises(DecodingError):
        SlotEngine(scaffold, offsets=4).propose(canvas, canvas.masked, logits)
    with pytest.raises(DecodingError):
        SlotEngine([scaffold, scaffold]).propose(canvas, canvas.masked, logits)
    assert width + 3 == canvas.ids.shape[1]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_bans_and_broken_logits_never_break_a_slot(bad):
    scaffold = scaffold_of(RECEIPT)
    for banned in itertools.chain(range(0, 416, 23), [0, 4, slice(None)]):
        canvas = start([scaffold])
        logits = torch.randn(int(canvas.masked.sum()), 416, generator=torch.Generator().manual_seed(0))
        logits[:, banned] = bad
        ids, score = SlotEngine(scaffold).propose(canvas, canvas.masked, logits)
        assert bool(torch.isfinite(score).all())
        canvas.ids[canvas.masked] = ids
        check(RECEIPT, scaffold.read(canvas.ids[0].tolist())[0])


def test_contradicting_commits_are_read_as_forced():
    scaffold = scaffold_of({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
    canvas = start([scaffold])
    slot = scaffold.slots[0]
    canvas.ids[0, slot.start] = POCKET.char_id("z")
    canvas.masked[0, slot.start] = False
    logits = torch.randn(slot.budget - 1, 416, generator=torch.Generator().manual_seed(0))
    engine = SlotEngine(scaffold)
    ids, score = engine.propose(canvas, canvas.masked, logits)
    assert POCKET.control_ids.isdisjoint(ids.tolist()) or set(ids.tolist()) & POCKET.control_ids <= {0, 4}
    assert bool(torch.isfinite(score).all())
    canvas.ids[canvas.masked] = ids
    data, fields = scaffold.read(canvas.ids[0].tolist())
    assert isinstance(data["a"], bool) and fields["/a"].forced and fields["/a"].confidence == 0
