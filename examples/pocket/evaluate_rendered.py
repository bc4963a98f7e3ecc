"""Evaluation on what we draw: documents, single lines, screens; and the validity of structured results."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

from examples.pocket import scenes
from examples.pocket.evaluation import Bench, Clock, Figure, share
from examples.pocket.held_out import Case, document_cases, line_case, random, screen_cases
from vision.loading import load_image
from vlm.metrics import box_iou, centre_inside, character_errors, leaves, reading_accuracy, same_value
from vlm.results import Result


class DocumentScore:
    """Running counts over documents of one kind."""

    def __init__(self) -> None:
        self.right = self.leaves = self.filled = self.absent = self.boxed = self.boxes = self.rows = self.arrays = self.perfect = self.pages = 0

    def add(self, case: Case, result: Result) -> None:
        """Count one result; an absent leaf is filled unless its value is null or missing."""
        said = leaves(result.data)
        right = sum(same_value(said.get(p), v) for p, v in case.truth.items())
        filled = sum(said.get(p) not in (None, "") for p in case.absent)
        self.right, self.leaves = self.right + right, self.leaves + len(case.truth)
        self.filled, self.absent = self.filled + filled, self.absent + len(case.absent)
        for pointer, box in case.boxes.items():
            found = result.fields.get(pointer)
            self.boxes += 1
            self.boxed += found is not None and found.box is not None and box_iou(found.box, box) >= 0.5
        for pointer, count in case.rows.items():
            self.arrays += 1
            self.rows += isinstance(result.data, dict) and len(result.data.get(pointer[1:]) or []) == count
        self.pages += 1
        self.perfect += right == len(case.truth) and filled == 0


def documents(bench: Bench) -> list[Figure]:
    """Fields, absent fields and boxes of rendered documents; every document is asked for everything it says."""
    clock, total, kinds = Clock(), DocumentScore(), defaultdict(DocumentScore)
    n = bench.count(bench.documents)
    forwards = tokens = pages = 0
    ms = 0.0
    for index in bench.follow(range(n), "documents", n):
        for case in document_cases(index, bench.seed):
            assert case.schema is not None
            result = bench.extract(load_image(case.image), case.schema)
            total.add(case, result)
            kinds[case.kind].add(case, result)
            forwards, tokens, ms, pages = forwards + result.usage.forwards, tokens + result.usage.tokens, ms + result.usage.ms, pages + 1
    seconds = clock()
    out = [
        share("documents", "field exact match", total.right, total.leaves, floor=0.85, aim=0.97, seconds=seconds, note="present fields of every kind of document and of arrays; blanks squeezed, case kept"),
        share("absent", "false fill", total.filled, total.absent, floor=0.05, aim=0.01, smaller=True, seconds=seconds, note="1 to 3 fields a document that it does not say"),
        share("boxes", "IoU >= 0.5", total.boxed, total.boxes, floor=0.80, aim=0.98, seconds=seconds, note="union of the copied cells against the rendered box, present fields, right or wrong"),
        share("documents", "whole answers right", total.perfect, total.pages),
        share("documents", "arrays with the right number of rows", total.rows, total.arrays),
        Figure("documents", "ms an answer", ms / max(pages, 1), pages, unit="ms"),
        Figure("documents", "forwards an answer", forwards / max(pages, 1), pages, unit=""),
        Figure("documents", "cells a forward", tokens / max(forwards, 1), pages, unit=""),
    ]  # fmt: skip
    out += [share("documents", f"field exact match, {k}", s.right, s.leaves) for k, s in sorted(kinds.items())]
    out += [share("boxes", f"IoU >= 0.5, {k}", s.boxed, s.boxes) for k, s in sorted(kinds.items())]
    return out


def lines(bench: Bench) -> list[Figure]:
    """Single lines in fonts that training never used, by ``read``."""
    clock, n = Clock(), bench.count(bench.lines)
    wrong = total = exact = loose = squeezed = 0
    for index in bench.follow(range(n), "lines", n):
        image, text = line_case(index, bench.seed)
        reading = bench.model.read(image).text.replace("\n", " ")
        errors, length = character_errors(text, reading)
        wrong, total, exact = wrong + errors, total + length, exact + (errors == 0)
        a, b, _ = reading_accuracy([text], reading)
        loose, squeezed = loose + a, squeezed + b
    return [
        share("lines", "character accuracy", total - wrong, total, floor=0.95, aim=0.99, seconds=clock(), note="edit distance to the whole reading, case and blanks count"),
        share("lines", "character accuracy, case and blanks ignored", squeezed - loose, squeezed),
        share("lines", "lines exact", exact, n),
    ]  # fmt: skip


def captions(bench: Bench) -> list[Figure]:
    """Captions of scenes of one to six shapes, training's own kind with seeds of their own: the whole sentence, and its phrases."""
    clock, n = Clock(), bench.count(100)
    exact = shared = said = stated = 0
    for index in bench.follow(range(n), "captions", n):
        rng = random(4, index, bench.seed)
        sample = scenes.make(rng, True, "several")
        text = bench.model.caption(scenes.picture(sample, rng)).text
        truth = scenes.caption(sample.things)
        there, told = (Counter(re.split(r", | and ", words)) for words in (truth, text))
        exact, shared, said, stated = exact + (text == truth), shared + (there & told).total(), said + told.total(), stated + there.total()
    return [
        share("captions", "phrases, F1", 2 * shared, said + stated, seconds=clock(), note="'a red circle', 'two teal stars'"),
        share("captions", "whole captions", exact, n),
    ]


#: Result of ``ground`` as a schema.
GROUNDED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"enum": ["click", "type", "hover", "select"]},
        "bbox": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000}, "minItems": 4, "maxItems": 4}]},
    },
    "required": ["action", "bbox"],
}


def screens(bench: Bench) -> list[Figure]:
    """Instructions on rendered screens."""
    clock, n = Clock(), bench.count(bench.screens)
    hits: dict[str, list[int]] = defaultdict(list)
    overlaps = actions = total = nowhere = 0
    for index in bench.follow(range(n), "screens", n):
        cases = screen_cases(index, bench.seed)
        image = load_image(cases[0].image) if cases else None
        for case in cases:
            result = bench.model.ground(image, case.instruction)
            bench.validity.check(result, GROUNDED)
            target = case.boxes[""]
            hits[case.kind].append(centre_inside(result.box, target))
            overlaps += result.box is not None and box_iou(result.box, target) >= 0.5
            nowhere += result.box is None
            actions += result.data["action"] == case.truth["/action"]
            total += 1
    every = [h for kind in hits.values() for h in kind]
    return [
        share("screens", "centre in target", sum(every), total, floor=0.70, aim=0.92, seconds=clock()),
        share("screens", "IoU >= 0.5", overlaps, total),
        share("screens", "action right", actions, total),
        share("screens", "pointed nowhere", nowhere, total, smaller=True),
        *(share("screens", f"centre in target, {k}", sum(h), len(h)) for k, h in sorted(hits.items())),
    ]


#: Schemas with every kind of leaf, for pages that were never made for them.
ODD_SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {
            "paid": {"type": "boolean"},
            "currency": {"enum": ["MYR", "USD", "EUR"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 99},
            "rate": {"type": "number", "minimum": 0, "maximum": 1},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["paid", "currency", "count", "rate", "day"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            "lines": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 10}, "price": {"type": ["number", "null"]}}, "required": ["text", "price"]}},
            "seller": {"type": "object", "properties": {"name": {"type": ["string", "null"], "maxLength": 12}, "phone": {"type": "string", "minLength": 3, "maxLength": 12}}, "required": ["name"]},
        },
        "required": ["code", "lines", "seller"],
    },
    {"type": "object", "properties": {"<|mask|>": {"type": "string", "maxLength": 6}, 'a"b': {"const": 3}, "x/y~z": {"type": ["integer", "null"], "multipleOf": 5}}, "required": ["<|mask|>", 'a"b', "x/y~z"]},
)  # fmt: skip


def schema_valid(bench: Bench) -> list[Figure]:
    """Every structured result of this run, and awkward schemas asked of pages that do not answer them."""
    clock, n = Clock(), bench.count(24)
    for index in bench.follow(range(n), "schema_valid", n):
        case = document_cases(index, bench.seed)[0]
        for schema in ODD_SCHEMAS:
            bench.extract(load_image(case.image), schema)
    seen = bench.validity
    note = "every extraction and grounding of this run, and awkward schemas on documents" + (f"; first error: {seen.first_error}" if seen.first_error else "")
    return [
        share("schema_valid", "results that satisfy their schema", seen.valid, seen.checked, floor=1.0, aim=1.0, seconds=clock(), note=note),
        share("schema_valid", "results with a repaired value", seen.repaired, seen.checked, smaller=True),
    ]
