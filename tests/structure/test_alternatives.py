"""The ways without automata: their canvases, their hooks, and what comes back."""

import json

import pytest
import torch

from tests.structure.support import POCKET
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Prediction
from vlm.decoding.loop import run
from vlm.decoding.presets import preset
from vlm.errors import OptionError
from vlm.structure.alternatives import fim_draft, fixed_tokens, plain_draft, s3_draft, s3_prompt, s3_values, with_hooks, write_tokens
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema
from vlm.structure.table import Symbols

SYMBOLS = Symbols.of(POCKET)


class Says:
    """A model that is sure of a row of ids, of 'z' beyond."""

    vocab_size = POCKET.vocab_size

    def __init__(self, wanted):
        self.wanted = wanted

    def __call__(self, canvas, cells):
        columns = cells.nonzero()[:, 1].tolist()
        logits = torch.zeros(len(columns), self.vocab_size)
        for n, column in enumerate(columns):
            logits[n, self.wanted.get(column, POCKET.char_id("z"))] = 9.0
        return Prediction(logits)


def test_s3():
    draft = s3_draft(["name", 'a"b'], POCKET, SYMBOLS, cells=8, budgets={'a"b': 12})
    assert [len(span) for span in draft.spans.values()] == [8, 12] and "name" in s3_prompt(["name"]) and "<none>" in s3_prompt(["name"])
    wanted = {}
    for span, text in zip(draft.spans.values(), ("Ann", "<none><none>"), strict=True):
        ids = POCKET.encode_chars(text)[: len(span)]
        wanted |= dict(zip(span, ids + [SYMBOLS.pad] * (len(span) - len(ids)), strict=False))
    canvas = run(Says(wanted), draft.canvas(1, SYMBOLS), preset("llada", block_length=None, steps_per_block=4))
    ids = canvas.ids[0].tolist()
    assert s3_values(draft, ids) == {"name": "Ann", 'a"b': None}
    assert int(canvas.forwards[0]) == 4
    assert json.loads(draft.text(ids).strip("`json\n")) == {"name": "Ann", 'a"b': "<none><none>"}


def test_plain_drafts_follow_the_scaffold():
    scaffold = compile_scaffold(parse_schema({"a": "string", "n": "integer"}), POCKET)
    draft = plain_draft(scaffold)
    assert [c is None for c in draft.cells] == [s >= 0 for s in scaffold.slot_of] and set(draft.spans) == {"/a", "/n"}
    row = scaffold.fill({"/a": "x", "/n": "7"})
    assert json.loads(draft.text(row)) == {"a": "x", "n": 7}


def test_hooks():
    draft = plain_draft(compile_scaffold(parse_schema({"n": "boolean"}), POCKET))
    canvas = Canvas.blank(1, len(draft.cells), mask_id=SYMBOLS.mask, pad_id=SYMBOLS.pad)
    seen = []

    def tokens(step, ids):
        seen.append(step)
        return fixed_tokens(draft)(step, ids)

    def no_z(canvas, cells, logits):
        return logits.index_fill(1, torch.tensor([POCKET.char_id("z")]), -torch.inf)

    recipe = with_hooks(preset("one-by-one"), canvas, tokens=tokens, logits=no_z)
    given = sum(c is not None for c in draft.cells)
    assert int((~canvas.masked).sum()) == given and seen == [None]
    done = run(Says({}), canvas, recipe)
    text = POCKET.decode(done.ids[0].tolist())
    assert text.startswith('{"n": ') and "z" not in text
    assert seen[1:] == list(range(len(draft.cells) - given)) and int(done.forwards[0]) == len(draft.cells) - given
    write_tokens(done, torch.zeros_like(done.ids))  # nothing is open: nothing changes
    assert POCKET.decode(done.ids[0].tolist()) == text


def test_drafts_for_filling_in():
    anchor = next(name for name in POCKET.special if name not in ("<|mask|>", "<|pad|>", "<|null|>"))
    draft = fim_draft(["There is a ", 5, " dog."], POCKET, SYMBOLS, anchor)
    assert draft.cells.count(None) == 5 and draft.cells[draft.spans["0"].stop] == POCKET.special[anchor]
    ids = [SYMBOLS.pad if c is None else c for c in draft.cells]
    ids[draft.spans["0"].start : draft.spans["0"].start + 3] = POCKET.encode_chars("big")
    assert draft.text(ids) == "There is a big dog." and draft.values(ids) == {"0": "big"}
    with pytest.raises(OptionError, match="anchor"):
        fim_draft(["x", 2], POCKET, SYMBOLS)
    assert None in fim_draft(["x", 2], POCKET, SYMBOLS, None).cells
