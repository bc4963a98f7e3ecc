"""Dimple: Qwen2.5-VL tower and a second projector with SiLU."""

from __future__ import annotations

from tests.parity.dream_like import Generations
from tests.parity.prompted import Prompts
from tests.parity.vision import Qwen

FAMILIES = ("dimple",)
VISION = Qwen(
    "qwen2_5_vl", {"": "visual."}, {"layers.0.": "img_projector.linear_1.", "layers.1.": "img_projector.linear_2."}, act="silu", small="refuse",
)
PROMPTS = Prompts()
RUNS = Generations(PROMPTS)
HANDLERS = {**VISION.handlers, "prompt": PROMPTS.check, "logits": PROMPTS.logits, "gen": RUNS.run, "train": RUNS.train}
