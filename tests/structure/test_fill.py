"""Random schemas, random models, every kind of method: what comes out is valid."""

import json

import numpy as np
import pytest
import torch

from tests.structure.schemas import Draw, is_refusal, validate
from tests.structure.support import POCKET
from vlm.decoding.contracts import Prediction
from vlm.decoding.presets import preset
from vlm.errors import SchemaError
from vlm.structure.fill import fill
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema

VOCAB = POCKET.vocab_size
QUICK = preset("threshold", threshold=0.02, block_length=96)
RECIPES = [
    preset("dimple"), preset("dimple", gamma=0.4, temperature=1.0), preset("llada", block_length=16, steps_per_block=3), preset("threshold", threshold=0.2),
    preset("dream-origin", steps=6), preset("factor"), preset("lavida", step_ratio=0.2),
]  # fmt: skip


class Remask:
    """Takes commits back at random, for a while."""

    def __init__(self, seed, times=4, share=0.3):
        self.generator, self.times, self.share = torch.Generator().manual_seed(seed), times, share

    def __call__(self, canvas):
        if self.times:
            self.times -= 1
            back = (canvas.slot_index > 0) & ~canvas.masked & ~canvas.frozen & (torch.rand(canvas.ids.shape, generator=self.generator) < self.share)
            canvas.masked |= back
            canvas.ids[back] = canvas.mask_id


class RandomModel:
    """Logits that depend on the cell, the step and the row's seed only, so that a batch can be compared with its rows."""

    vocab_size = VOCAB

    def __init__(self, seeds, scale=3.0):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.scale = scale

    def __call__(self, canvas, cells):
        parts = [torch.randn((n, VOCAB), generator=g) * self.scale for n, g in zip(cells.sum(1).tolist(), self.generators, strict=True) if n]
        return Prediction(torch.cat(parts))


def filled(schema, recipe, seeds, **options):
    """(data of each row, its fields, the filling)."""
    scaffold = compile_scaffold(parse_schema(schema), POCKET, **{"budget": 6, "max_items": 2, **options})
    done = fill(RandomModel(seeds), [scaffold] * len(seeds), recipe)
    canvas = done.canvas
    assert not bool(canvas.open.any())
    rows = [s.read(canvas.ids[r].tolist(), canvas.commit_confidence[r].tolist()) for r, s in enumerate(done.scaffolds)]
    return [data for data, _ in rows], [fields for _, fields in rows], done


@pytest.mark.parametrize("part", range(8))
def test_every_result_of_every_schema_validates(part):
    compiled = 0
    for seed in range(part * 30, part * 30 + 30):
        schema = Draw(np.random.default_rng(seed)).root()
        recipe = RECIPES[seed // 6 % len(RECIPES)] if seed % 6 == 0 else QUICK.with_parts(reviser=Remask(seed) if seed % 3 else None)
        try:
            rows, fields, done = filled(schema, recipe, [seed, seed + 1], gated=seed % 4 == 0)
        except SchemaError as error:
            assert is_refusal(error), (schema, error)
            continue
        compiled += 1
        for data, info in zip(rows, fields, strict=True):
            try:
                validate(schema, data)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {json.dumps(schema)} -> {json.dumps(data)}") from error
            assert json.loads(json.dumps(data, allow_nan=False)) == data
            assert all(0 <= f.confidence <= 1 for f in info.values())
        for chances in done.valid:
            assert all(0 <= p <= 1 for p in chances.values())
    assert compiled >= 25


TREE = {
    "type": "object", "required": ["who", "shape"], "properties": {
        "who": {"type": "string", "maxLength": 5},
        "shape": {"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "integer"}}, "required": ["kind", "r"]},
            {"type": "object", "properties": {"kind": {"const": "line"}, "to": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}}, "required": ["kind", "to"]},
            {"type": "string", "maxLength": 4},
        ]},
        "next": {"$ref": "#"},
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", [preset("dimple"), preset("dimple", temperature=1.0), QUICK], ids=["greedy", "drawn", "quick"])
def test_batch_equals_singles(recipe):
    seeds = [3, 4, 5, 6]
    together, _, done = filled(TREE, recipe, seeds)
    alone = [filled(TREE, recipe, [seed])[0][0] for seed in seeds]
    assert together == alone
    assert len({json.dumps(d) for d in alone}) > 1 and len({len(s) for s in done.scaffolds}) > 1
    for data in alone:
        validate(TREE, data)


class Spy(RandomModel):
    """Notes which slots are asked for, call by call."""

    def __init__(self, seeds):
        super().__init__(seeds)
        self.layouts, self.asked = [], []

    def lay_out(self, scaffolds):
        self.layouts.append(list(scaffolds))

    def __call__(self, canvas, cells):
        scaffold = self.layouts[-1][0]
        asked = {scaffold.slots[scaffold.slot_of[c]].pointer: scaffold.slots[scaffold.slot_of[c]].selector for c in cells[0].nonzero()[:, 0].tolist()}
        self.asked.append(asked)
        return super().__call__(canvas, cells)


def test_selectors_come_before_what_they_govern():
    scaffold = compile_scaffold(parse_schema(TREE), POCKET, budget=6)
    assert [s.pointer for s in scaffold.open] == ["/shape", "/next"]
    spy = Spy([1])
    spy.lay_out([scaffold])
    done = fill(spy, [scaffold], QUICK)
    kinds = [set(asked.values()) for asked in spy.asked]
    assert kinds[0] == {True}
    assert {False} in kinds and kinds.index({False}) == len([k for k in kinds if k == {True}])  # nothing else until all are known
    assert not done.scaffolds[0].open
    assert len(spy.layouts) >= 2


def test_a_lower_bound_waits_for_what_it_depends_on():
    number = {"type": "integer", "minimum": 0, "maximum": 1000}
    schema = {"type": "object", "required": ["box"], "properties": {"box": {
        "type": "array", "minItems": 4, "maxItems": 4, "prefixItems": [number, number, {**number, "x-at-least": 0}, {**number, "x-at-least": 1}]}}}  # fmt: skip
    scaffold = compile_scaffold(parse_schema(schema), POCKET)
    rows, fields, done = filled(schema, preset("dimple"), list(range(24)))
    for data, info, last in zip(rows, fields, done.scaffolds, strict=True):
        x0, y0, x1, y1 = data["box"]
        assert info["/box/2"].forced or x1 >= x0
        assert info["/box/3"].forced or y1 >= y0
        assert [s.budget for s in last.slots] == [s.budget for s in scaffold.slots]
    assert any(not info["/box/2"].forced for info in fields)


def test_full_slots_grow_and_ended_ones_shrink():
    schema = {"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "string"}, "b": {"type": "string", "maxLength": 3}}}
    scaffold = compile_scaffold(parse_schema(schema), POCKET, budget=4)
    letters = torch.full((VOCAB,), -50.0)
    letters[POCKET.char_id("q")] = 0.0
    calls = []

    class Talker(RandomModel):
        def __call__(self, canvas, cells):
            calls.append(int(cells.sum()))
            return Prediction(letters.expand(int(cells.sum()), -1).clone())

    done = fill(Talker([0]), [scaffold], preset("dimple"), growth=8)
    data, _ = done.scaffolds[0].read(done.canvas.ids[0].tolist())
    assert data["a"] == "q" * 192 and data["b"] == "qqq"
    validate(schema, data)
    ended = torch.full((VOCAB,), -50.0)
    ended[POCKET.special["<|pad|>"]] = 0.0

    class Quiet(RandomModel):
        def __call__(self, canvas, cells):
            calls.append(int(cells.sum()))
            return Prediction(ended.expand(int(cells.sum()), -1).clone())

    needed = []
    for shrink in (False, True):
        calls.clear()
        done = fill(Quiet([0]), [scaffold], preset("llada", block_length=None, steps_per_block=7), shrink=shrink)
        assert done.scaffolds[0].read(done.canvas.ids[0].tolist())[0] == {"a": "", "b": ""}
        needed.append(len(calls))
    assert needed[1] < needed[0]


def test_schema_words_stay_text():
    """Names, constants and choices that spell control tokens are written out letter by letter and come back as they are."""
    evil = "<|mask|><|null|><|pad|><|eos|>"
    schema = {"type": "object", "required": [evil, "k"], "properties": {
        evil: {"enum": [evil, "x"]}, "k": {"oneOf": [{"type": "object", "properties": {evil: {"const": evil}}, "required": [evil]}, {"const": evil}]}}}  # fmt: skip
    scaffold = compile_scaffold(parse_schema(schema), POCKET)
    literals = [i for i, s in zip(scaffold.ids, scaffold.slot_of, strict=True) if s < 0]
    assert POCKET.control_ids.isdisjoint(literals)
    for data in filled(schema, QUICK, list(range(6)))[0]:
        validate(schema, data)
        assert evil in data
