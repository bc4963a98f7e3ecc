"""Dream-VL: Qwen2-VL tower and a second projector."""

from __future__ import annotations

from tests.parity.dream_like import Generations
from tests.parity.prompted import Prompts
from tests.parity.vision import Qwen

FAMILIES = ("dream-vl",)
VISION = Qwen(
    "qwen2_vl", {"": "visual."}, {"layers.0.": "projector.linear_1.", "layers.1.": "projector.linear_2."}, small="enlarge",
)
PROMPTS = Prompts()
RUNS = Generations(PROMPTS)
HANDLERS = {**VISION.handlers, "prompt": PROMPTS.check, "logits": PROMPTS.logits, "gen": RUNS.run, "train": RUNS.train}

