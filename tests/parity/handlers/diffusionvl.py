"""DiffusionVL: Qwen2.5-VL tower whose merger is stored as the projector."""

from __future__ import annotations

from tests.parity.vision import Qwen

FAMILIES = ("diffusionvl",)
VISION = Qwen(
    "qwen2_5_vl", {"": "model.vision_tower.vision_tower.", "merger.": "model.mm_projector.merger."}, {},
)
HANDLERS = {**VISION.handlers}
