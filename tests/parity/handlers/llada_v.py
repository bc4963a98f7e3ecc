"""LLaDA-V: views, SigLIP 2, projector, packing with a limit; prompts, logits, generation with stops and guidance, training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.parity.cases import Case
from tests.parity.llava import Sampler, handlers
from tests.parity.llava_training import Trainer
from tests.parity.vision import Siglip
from vlm.decoding.loop import Recipe
from vlm.decoding.presets import preset
from vlm.families.llada_v import EVERYWHERE
from vlm.published import PublishedEngine
from vlm.training.conversations import Loss, Merged, bound_loss

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


def _loss(case: Case, engine: PublishedEngine, batch: Merged, ratio: Tensor, noise: Tensor) -> Loss:
    causal = "conversation_ids" in case.data["tensors"]
    return bound_loss(engine.model.backbone, batch, ratio, noise=noise, rounds_are_causal=causal)


TRAINER = Trainer(_loss, {"header": True, "everywhere": EVERYWHERE}, padding=False)
HANDLERS = {**VISION.handlers, **handlers(Sampler(_recipe, "gen_length", cached=lambda _: False), TRAINER)}
