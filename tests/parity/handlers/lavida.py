"""LaViDa on LLaDA and on Dream: views, SigLIP, projector, pooling, packing; prompts, logits, generation, training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.parity.cases import Case, ids_of
from tests.parity.llava import Sampler, handlers, shape_of
from tests.parity.llava_training import Trainer
from tests.parity.vision import Siglip
from vlm.decoding.loop import Recipe
from vlm.decoding.presets import preset
from vlm.published import PublishedEngine
from vlm.training.conversations import Loss, Merged, complementary_loss

FAMILIES = ("lavida-llada", "lavida-dream",)
VISION = Siglip(
    "siglip_tower/config.json", tower="model.vision_tower.vision_tower.vision_model.", projector="model.mm_projector.", projector_layers=("0", "2"),
    newline="model.image_newline", pooled=True,
)
#: Names of LaViDa's `remasking` -> our scores.
SCORES = {"low_confidence": "prob", "random": "random", "entrophy": "entropy", "margin": "margin"}


def _recipe(case: Case, settings: dict[str, Any]) -> Recipe:
    shape, shift = shape_of(settings)
    if "alg" not in settings:
        block = settings["block_length"]
        return preset(
            "lavida", shape=shape, shift=shift, block_length=block, steps_per_block=min(settings.get("step_per_block") or block, block),
            step_ratio=settings.get("step_ratio"), score=SCORES[settings.get("remasking", "low_confidence")], temperature=settings["temperature"],
            reference_quirks=True,
        )  # fmt: skip
    name = f"dream-{settings['alg'].replace('_', '-')}"
    schedule = {} if name == "dream-origin" else {"step_ratio": settings.get("step_ratio"), "shape": None if shape == "even" else shape, "shift": shift}
    return preset(
        name, steps=min(settings["steps"], settings["max_new_tokens"]), temperature=settings["temperature"], top_p=settings.get("top_p"),
        first_cell=settings["prefix_lm"], reference_quirks=True, **schedule,
    )  # fmt: skip


SAMPLER = Sampler(_recipe, "max_new_tokens", cached=lambda s: s["prefix_lm"], scores=lambda s: s.get("alg") != "origin")


def _loss(case: Case, engine: PublishedEngine, batch: Merged, ratio: Tensor, noise: Tensor) -> Loss:
    markers = ids_of(case.fixture.meta, "fim_marker_id")
    return complementary_loss(engine.model.backbone, batch, ratio, noise=noise, never=markers, reference_quirks=True)


HANDLERS = {**VISION.handlers, **handlers(SAMPLER, Trainer(_loss, {}, padding=True))}
