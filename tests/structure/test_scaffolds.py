"""Layouts that trained weights depend on stay what they are."""

import hashlib
import json
from pathlib import Path

from tests.structure.support import POCKET
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema

#: Schemas with the digest of their layout when pocket was trained.
RECORDED = Path(__file__).with_name("scaffolds.json")


def test_recorded_layouts_are_unchanged():
    cases = json.loads(RECORDED.read_text())
    assert len(cases) >= 60
    for case in cases:
        scaffold = compile_scaffold(parse_schema(case["schema"]), POCKET)
        slots = [[s.pointer, s.kind, s.start, s.budget, s.nullable] for s in scaffold.slots]
        digest = hashlib.sha256(json.dumps([scaffold.ids, scaffold.slot_of, slots]).encode()).hexdigest()
        assert digest == case["sha256"], case["schema"]
