"""BARD-VL: Qwen3-VL tower with deepstack."""

from __future__ import annotations

from tests.parity.vision import Qwen

FAMILIES = ("bard-vl",)
VISION = Qwen(
    "qwen3_vl", {"": "model.visual."}, {},
)
HANDLERS = {**VISION.handlers}
