"""BARD-VL: Qwen3-VL tower with deepstack."""

from __future__ import annotations

from tests.parity.block_like import BlockCases
from tests.parity.prompted import Prompts
from tests.parity.vision import Qwen

FAMILIES = ("bard-vl",)
VISION = Qwen(
    "qwen3_vl", {"": "model.visual."}, {},
)
PROMPTS = Prompts()
CASES = BlockCases(PROMPTS, strategy="low_confidence_dynamic")
HANDLERS = {**VISION.handlers, "prompt": PROMPTS.check, "mask": CASES.mask, "logits": CASES.logits, "gen": CASES.run}
