"""LaViDa on LLaDA (arXiv:2505.16839; jacklishufan/lavida-llada-v1.0-instruct, also -fim, -reason and -lowres).

LLaDA-8B behind SigLIP: views at any resolution, pooled to 14 x 14 after the projector, prefix-LM generation.
"""

from __future__ import annotations

from typing import Any

from vlm.checkpoints.keymap import LLADA, Weight
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.llada import llada_backbone, llada_template
from vlm.families.llava import SYSTEM, LlavaModel, complete, llava_vision, llava_weights, tower_ignored

#: Published evaluation, whose blocks are min(128, answer) cells: every cell its own step; COCO captions; the demo of the paper.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "lavida-published": ("lavida", {"block_length": 128, "step_ratio": 1.0, "shape": "even"}),
    "lavida-coco": ("lavida", {"block_length": 128, "step_ratio": 0.5, "shift": 0.33}),
    "lavida-fast": ("lavida", {"block_length": 128, "step_ratio": 0.25, "shift": 1 / 3}),
    "lavida-infill": ("lavida", {"block_length": 256, "step_ratio": 1.0, "shift": 1 / 3}),
}
#: Checkpoints that config.json cannot tell apart, by the end of their name.
VARIANTS: dict[str, dict[str, Any]] = {
    "fim": {"infill_token": "<|reserved_token_2|>"},
    "lowres": {"mm_pool_stills": False},
    "reason": {},
}


def _configure(settings: Settings) -> ModelConfig:
    vision = llava_vision(settings, pooled=True)
    return ModelConfig(llada_backbone(settings), vision, settings.data, fill_token=str(settings.get("infill_token", default="")))


def _weights(config: ModelConfig) -> list[Weight]:
    return llava_weights(config, LLADA)


FAMILY = Family(
    name="lavida-llada",
    model_types=("llava_llada", "llada"),
    architectures=("LlavaLladaForMaskedDiffusion",),
    keys=("mm_vision_tower", "d_model"),
    configure=_configure,
    weights=_weights,
    build=LlavaModel,
    complete=complete,
    template=llada_template("lavida-llada", system=SYSTEM, image_gap=" ", after_images="\n"),
    ignored=(r".*rotary_emb.*", *tower_ignored()),
    attention="prefix",
    stop=("<|eot_id|>", "<|endoftext|>"),
    presets=PRESETS,
    default_preset="lavida-coco",
    variants=VARIANTS,
    lost_after_media=True,
    proven="views, features, prompts, logits with and without prefix cache, whole generations and training losses against the published code on tiny "
    "random weights; real weights not run",
)
