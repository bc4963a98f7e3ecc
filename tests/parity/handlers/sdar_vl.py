"""SDAR-VL: LLaVA-OneVision views by the tensor resampler, SigLIP, projector, packing."""

from __future__ import annotations

from tests.parity.block_like import BlockCases
from tests.parity.block_training import BlockTraining
from tests.parity.prompted import Prompts
from tests.parity.vision import Siglip

FAMILIES = ("sdar-vl",)
VISION = Siglip(
    "config.json", tower="vision_tower.vision_model.", projector="multi_modal_projector.", projector_layers=("linear_1", "linear_2"),
    newline="image_newline", backend="tensor",
)
PROMPTS = Prompts()
CASES = BlockCases(PROMPTS)
TRAINING = BlockTraining(PROMPTS)
HANDLERS = {**VISION.handlers, "prompt": PROMPTS.check, "mask": CASES.mask, "logits": CASES.logits, "gen": CASES.run, "mask_train": TRAINING.mask, "train": TRAINING.packed}
