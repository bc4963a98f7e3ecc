"""DiffusionVL: Qwen2.5-VL tower whose merger is stored as the projector."""

from __future__ import annotations

from dataclasses import replace

from tests.parity.block_like import BlockCases
from tests.parity.block_training import BlockTraining
from tests.parity.prompted import Prompts
from tests.parity.vision import Qwen

FAMILIES = ("diffusionvl",)
VISION = Qwen(
    "qwen2_5_vl", {"": "model.vision_tower.vision_tower.", "merger.": "model.mm_projector.merger."}, {},
)
PROMPTS = Prompts(lambda template: replace(template, images_first=False))
CASES = BlockCases(PROMPTS, threshold=0.85)
TRAINING = BlockTraining(PROMPTS)
HANDLERS = {**VISION.handlers, "prompt": PROMPTS.check, "mask": CASES.mask, "logits": CASES.logits, "gen": CASES.run, "mask_train": TRAINING.mask, "train": TRAINING.doubled}
