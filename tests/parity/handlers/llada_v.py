"""LLaDA-V: views, SigLIP 2, projector, packing with a limit; prompts, logits, generation with stops and guidance, training."""

from __future__ import annotations

from typing import Any

from tests.parity.cases import Case
from tests.parity.llava import Sampler, handlers
from tests.parity.vision import Siglip
from vlm.decoding.loop import Recipe
from vlm.decoding.presets import preset

FAMILIES = ("llada-v",)
VISION = Siglip(
    "siglip_tower/config.json", tower="model.vision_tower.vision_tower.vision_model.", projector="model.mm_projector.", projector_layers=("0", "2"),
    newline="model.image_newline",
)


def _recipe(case: Case, settings: dict[str, Any]) -> Recipe:
    length, block = settings["gen_length"], settings["block_length"]
    return preset(
        "llada" if settings["remasking"] == "low_confidence" else "llada-random", steps_per_block=settings["steps"] // (length // block), block_length=block,
        temperature=settings["temperature"], banned=tuple(case.fixture.meta["banned_ids_at_generation"]),
        stop_at=tuple(tuple(run) for run in case.data.get("stop_token_ids") or ()), reference_quirks=True,
    )  # fmt: skip


HANDLERS = {**VISION.handlers, **handlers(Sampler(_recipe, "gen_length", cached=lambda _: False))}
