"""Structured output on held-out documents: slot-trellis against what has no automata, same weights, pages and process.

``python -m benchmarks.structure --pages 6``

* `prompt`: the shape is described in the question and the answer is free text, of up to 192 cells in up to 64 forwards.
* `s3`: the scaffold is given, its slots are free (:func:`vlm.structure.alternatives.plain_draft`).
* `hooks`: the literals are written into a free canvas by a tokens hook; the model knows nothing of slots.
* `trellis`: ``extract``.

Structure: share of answers that are JSON, satisfy the schema, share of fields present. Content: precision, recall and F1 of
exact fields. Faithfulness: share of absent fields that were filled. Then what the trellis costs: its share of the time of
decoding, and per cell at a vocabulary of ``--vocabulary`` tokens against a softmax over the same logits, with the seconds it
takes to compile a schema cold and from disk.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from jsonschema import Draft202012Validator

from benchmarks.common import DocumentPage, arguments, load, median, pages, report, timed
from benchmarks.vocabulary import tokenizer as made_up_tokenizer
from vlm.decoding.canvas import Canvas
from vlm.decoding.loop import decode
from vlm.decoding.stops import Never
from vlm.metrics import leaves, same_value
from vlm.model import DiffusionVLM
from vlm.published import outline
from vlm.structure import automaton, lift, regex
from vlm.structure.alternatives import Draft, fixed_tokens, plain_draft, with_hooks
from vlm.structure.fill import blank
from vlm.structure.scaffold import Scaffold, compile_scaffold
from vlm.structure.schema import parse_schema
from vlm.structure.slot_engine import SlotEngine

#: A receipt with most kinds of leaves.
RECEIPT: dict[str, Any] = {
    "type": "object",
    "required": ["company", "date", "total", "count", "paid"],
    "properties": {
        "company": {"type": ["string", "null"]}, "phone": {"type": "string", "maxLength": 16}, "email": {"type": "string", "format": "email"},
        "date": {"type": "string", "format": "date"}, "total": {"type": "number"}, "count": {"type": "integer", "minimum": 0, "maximum": 1000},
        "paid": {"type": "boolean"}, "either": {"type": ["string", "integer"]}, "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{2,4}$"},
    },
}  # fmt: skip


@dataclass
class Tally:
    """What one way did over all pages."""

    answers: int = 0
    json: int = 0
    valid: int = 0
    present: int = 0
    wanted: int = 0
    right: int = 0
    said: int = 0
    truth: int = 0
    filled: int = 0
    absent: int = 0
    forwards: int = 0
    ms: list[float] = field(default_factory=list)

    def add(self, page: DocumentPage, text: str, forwards: int, ms: float) -> None:
        """Count one answer, given as text."""
        case = page.case
        assert case.schema is not None
        try:
            data = json.loads(text)
            self.json += 1
        except ValueError:
            data = None
        checker = Draft202012Validator(case.schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        self.valid += data is not None and checker.is_valid(data)
        found = {p: v for p, v in leaves(data).items() if v not in (None, "")} if isinstance(data, dict) else {}
        keys = case.schema["properties"]
        self.present += sum(key in data for key in keys) if isinstance(data, dict) else 0
        self.right += sum(same_value(found[p], v) for p, v in case.truth.items() if p in found)
        self.filled += sum(p in found for p in case.absent)
        self.answers, self.wanted, self.said = self.answers + 1, self.wanted + len(keys), self.said + len(found)
        self.truth, self.absent, self.forwards = self.truth + len(case.truth), self.absent + len(case.absent), self.forwards + forwards
        self.ms.append(ms)

    def figures(self, name: str) -> dict[str, float]:
        """The measures under a prefix."""
        precision, recall = self.right / max(self.said, 1), self.right / max(self.truth, 1)
        return {
            f"{name}: JSON": self.json / self.answers, f"{name}: satisfies the schema": self.valid / self.answers,
            f"{name}: fields present": self.present / max(self.wanted, 1), f"{name}: precision": precision, f"{name}: recall": recall,
            f"{name}: F1": 2 * precision * recall / max(precision + recall, 1e-9), f"{name}: absent fields filled": self.filled / max(self.absent, 1),
            f"{name}: forwards an answer": self.forwards / self.answers, f"{name}: ms an answer": median(self.ms),
        }  # fmt: skip


def by_prompt(model: DiffusionVLM, page: DocumentPage, scaffold: Scaffold) -> tuple[str, int]:
    """(text, forwards) of free text behind a description of the shape."""
    result = model.ask(page.image, f"Answer in JSON: {outline(scaffold)}", max_new_tokens=min(len(scaffold), 192), max_forwards=64)
    return result.text, result.usage.forwards


def by_draft(model: DiffusionVLM, page: DocumentPage, scaffold: Scaffold, hooks: bool) -> tuple[str, int]:
    """(text, forwards) of a scaffold without automata; with `hooks` its literals come in by a tokens hook."""
    engine, draft = model.engine, plain_draft(scaffold)
    plan = engine.plan({})
    denoiser = engine.denoiser([model._prompt("", plan)], [[page.reading]], len(scaffold), plan, None if hooks else scaffold)
    recipe = plan.recipe.with_parts(banned=engine.banned(plan, scaffold), stop=Never())
    if hooks:
        canvas = Canvas.blank(1, len(scaffold), mask_id=scaffold.symbols.mask, pad_id=scaffold.symbols.pad)
        recipe = with_hooks(recipe, canvas, tokens=fixed_tokens(draft))
    else:
        canvas = blank([scaffold])
    for _ in decode(denoiser, canvas, recipe):
        pass
    return as_text(draft, scaffold, canvas.ids[0].tolist()), int(canvas.forwards[0])


def as_text(draft: Draft, scaffold: Scaffold, ids: list[int]) -> str:
    """The canvas as text; an absent value outside quotes is written null."""
    null = scaffold.symbols.null
    spelled: list[int] = []
    for slot in scaffold.slots:
        bare = all(ids[c] in draft.dropped for c in slot.cells)
        quoted = slot.start > 0 and draft.text([ids[slot.start - 1]]).endswith('"')
        if bare and not quoted and null is not None:
            word = scaffold.tokenizer.encode_chars("null")[: slot.budget]
            ids[slot.start : slot.start + len(word)] = word
    spelled = [i for i in ids if i not in draft.dropped]
    return scaffold.tokenizer.decode(spelled)


def methods(model: DiffusionVLM, todo: list[DocumentPage]) -> dict[str, Any]:
    """All four ways on all pages, one page after the other."""
    tallies = {name: Tally() for name in ("prompt", "s3", "hooks", "trellis")}
    inside: list[float] = []
    whole: list[float] = []
    propose = SlotEngine.propose

    def clocked(self: SlotEngine, *args: Any) -> Any:
        value, ms = timed(lambda: propose(self, *args))
        inside.append(ms)
        return value

    for page in todo:
        scaffold = compile_scaffold(parse_schema(page.case.schema), model.tokenizer)
        for name, run in (
            ("prompt", partial(by_prompt, model, page, scaffold)), ("s3", partial(by_draft, model, page, scaffold, False)),
            ("hooks", partial(by_draft, model, page, scaffold, True)),
        ):  # fmt: skip
            (text, forwards), ms = timed(run)
            tallies[name].add(page, text, forwards, ms)
        with mock.patch.object(SlotEngine, "propose", clocked):
            result, ms = timed(partial(model.extract, page.image, page.case.schema))
        whole.append(ms)
        tallies["trellis"].add(page, result.text, result.usage.forwards, ms)
        print({name: f"{t.right}/{t.truth} right, {t.valid}/{t.answers} valid" for name, t in tallies.items()}, file=sys.stderr)
    figures: dict[str, Any] = {}
    for name, tally in tallies.items():
        figures |= tally.figures(name)
    figures["trellis: share of the time of decoding"] = sum(inside) / sum(whole)
    return figures


def large(size: int) -> dict[str, Any]:
    """Compiling and a step at a large vocabulary."""
    made = made_up_tokenizer(size)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"VLM_CACHE": folder}):

        def compiled() -> Scaffold:
            scaffold = compile_scaffold(parse_schema(RECEIPT), made)
            for slot in scaffold.slots:
                _ = slot.constraint
            return scaffold

        def forget() -> None:
            lift._TABLES.clear()
            for cached in (automaton._leaf_dfa, automaton._text_dfa, regex.full_dfa, regex.pattern_dfa):
                cached.cache_clear()

        forget()
        start = time.process_time()
        scaffold = compiled()
        cold = time.process_time() - start
        forget()
        start = time.process_time()
        compiled()
        warm = time.process_time() - start
    canvas = blank([scaffold])
    engine = SlotEngine(scaffold)
    logits = torch.randn(int(canvas.masked.sum()), size, generator=torch.Generator().manual_seed(0))
    step, softmax, eight = [], [], []
    slot = next(s for s in scaffold.slots if s.pointer == "/company")
    first = torch.zeros_like(canvas.masked)
    first[0, slot.start : slot.start + 8] = True
    for _ in range(8):
        step.append(timed(lambda: engine.propose(canvas, canvas.masked, logits))[1])
        softmax.append(timed(lambda: logits.softmax(dim=-1).max(dim=-1))[1])
        eight.append(timed(lambda: engine.propose(canvas, first, logits[:8]))[1])
    return {
        "vocabulary": size, "compile, cold, s (processor time)": cold, "compile, from disk, s (processor time)": warm, "cells": len(logits),
        "ms a step, all slots": median(step[1:]), "ms a step, a slot": median(step[1:]) / len(scaffold.slots),
        "softmax and argmax of the same logits, ms": median(softmax[1:]), "step / softmax": median(step[1:]) / median(softmax[1:]),
        "ms a step, eight cells of free text": median(eight[1:]),
    }  # fmt: skip


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--vocabulary", type=int, default=126_464, help="tokens of the large vocabulary; 0 leaves that part out")
    args = parser.parse_args()
    model = load(args)
    todo = pages(model, args.pages, args.random)
    if todo:
        model.extract(todo[0].image, todo[0].case.schema)  # warm up
    figures = methods(model, todo) if todo else {}
    report(args, model, {"pages": len(todo), **figures, **(large(args.vocabulary) if args.vocabulary else {})})
    return 0


if __name__ == "__main__":
    sys.exit(main())
