"""LaViDa on LLaDA and on Dream: views, SigLIP, projector, pooling, packing."""

from __future__ import annotations

from tests.parity.vision import Siglip

FAMILIES = ("lavida-llada", "lavida-dream",)
VISION = Siglip(
    "siglip_tower/config.json", tower="model.vision_tower.vision_tower.vision_model.", projector="model.mm_projector.", projector_layers=("0", "2"),
    newline="model.image_newline", pooled=True,
)
HANDLERS = {**VISION.handlers}
