"""Dimple-7B (arXiv:2505.16990; rp-yu/Dimple-7B): Dream-7B behind the Qwen2.5-VL tower, positions of three axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlm.checkpoints.keymap import Weight, llama_names
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.qwen_vl import QwenVision, QwenVL, patches_of, qwen_vl_weights
from vlm.processor.template import Frame, Special

#: What stands around a picture in the chat format of Qwen2.5-VL.
VISION_FRAME = Frame((Special("<|vision_start|>"),), (Special("<|vision_end|>"),))


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(rope_scaling=None, full_attn_mask=True)
    sections = tuple(int(n) for n in settings.get("mrope_section", default=(16, 24, 24)))
    backbone = replace(qwen_backbone(settings, logit_shift=1), mrope_sections=sections)
    patches = patches_of(settings, (3136, 12845056), small="refuse")
    return ModelConfig(backbone, QwenVision("qwen2_5_vl", settings.inner("vision_config").data, patches, act="silu"), settings.data)


def _weights(config: ModelConfig) -> list[Weight]:
    return qwen_vl_weights(config, llama_names(), "visual.", projector="img_projector.")


#: `pooled` works under `reference_quirks` alone. README and demo (64 tokens), and the short-answer evaluation (8 tokens).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "dimple-published": ("dimple", {"gamma": 0.95, "steps": 64, "temperature": 0.2, "top_p": 0.95, "pooled": True}),
    "dimple-demo": ("dimple", {"gamma": 0.95, "steps": 64, "order": "random", "pooled": True}),
    "dimple-short": ("dream-maskgit-plus", {"steps": 8, "pooled": True}),
}

FAMILY = Family(
    name="dimple",
    model_types=("dimple",),
    architectures=("DimpleModel",),
    configure=_configure,
    weights=_weights,
    template=replace(chatml_template("dimple", image=VISION_FRAME), images_first=False),
    build=QwenVL,
    ignored=(r".*rotary.*inv_freq",),
    stop=("<|im_end|>", "<|endoftext|>"),
    presets=PRESETS,
    proven="pictures, prompts, positions, forward, cached and uncached generations and training losses against the published code on tiny random "
    "weights; real weights not run",
)
