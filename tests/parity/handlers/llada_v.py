"""LLaDA-V: views, SigLIP 2, projector, packing with a limit."""

from __future__ import annotations

from tests.parity.vision import Siglip

FAMILIES = ("llada-v",)
VISION = Siglip(
    "siglip_tower/config.json", tower="model.vision_tower.vision_tower.vision_model.", projector="model.mm_projector.", projector_layers=("0", "2"),
    newline="model.image_newline",
)
HANDLERS = {**VISION.handlers}
