"""LaViDa on Dream (arXiv:2505.16839; jacklishufan/lavida-dream-v1.0-instruct): Dream-7B behind SigLIP, prefix-LM generation."""

from __future__ import annotations

from typing import Any

from vlm.checkpoints.keymap import Weight, llama_names
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.llava import SYSTEM, LlavaModel, complete, llava_vision, llava_weights, tower_ignored

#: Published evaluation (as many steps as cells, the first cell from the prompt alone); half the steps; the class's own defaults.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "lavida-dream-published": ("dream-topk-margin", {"steps": None, "first_cell": True}),
    "lavida-dream-coco": ("dream-topk-margin", {"step_ratio": 0.5, "shape": "shift", "shift": 0.33, "first_cell": True}),
    "lavida-dream-sampling": ("dream-entropy", {"steps": None, "temperature": 0.2, "top_p": 0.95, "first_cell": True}),
}


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(rope_scaling=None, use_mrope=False)
    return ModelConfig(qwen_backbone(settings, logit_shift=1), llava_vision(settings, pooled=True), settings.data)


def _weights(config: ModelConfig) -> list[Weight]:
    return llava_weights(config, llama_names())


FAMILY = Family(
    name="lavida-dream",
    model_types=("llava_dream", "Dream"),
    architectures=("LlavaDreamForMaskedDiffusion", "DreamModel"),
    keys=("mm_vision_tower",),
    configure=_configure,
    weights=_weights,
    build=LlavaModel,
    complete=complete,
    template=chatml_template("lavida-dream", system=SYSTEM, image_gap=" ", after_images="\n"),
    ignored=(r".*rotary_emb.*", *tower_ignored()),
    attention="prefix",
    stop=("<|im_end|>", "<|endoftext|>"),
    presets=PRESETS,
    default_preset="lavida-dream-coco",
    variants={"lowres": {"mm_pool_stills": False}},
    proven="views, features, prompts, logits with and without prefix cache, whole generations and training losses against the published code on tiny "
    "random weights; real weights not run",
)
