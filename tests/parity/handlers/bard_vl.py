"""BARD-VL: Qwen3-VL tower with deepstack."""

from __future__ import annotations

from tests.parity.block_like import BlockCases
from tests.parity.block_training import BlockTraining
from tests.parity.prompted import Prompts
from tests.parity.vision import Qwen

FAMILIES = ("bard-vl",)
VISION = Qwen(
    "qwen3_vl", {"": "model.visual."}, {},
)
PROMPTS = Prompts()
CASES = BlockCases(PROMPTS, strategy="low_confidence_dynamic")
TRAINING = BlockTraining(PROMPTS)
HANDLERS = {**VISION.handlers, "prompt": PROMPTS.check, "mask": CASES.mask, "logits": CASES.logits, "gen": CASES.run, "mask_train": TRAINING.mask, "train": TRAINING.prefixed}
