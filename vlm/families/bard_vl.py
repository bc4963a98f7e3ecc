"""BARD-VL (arXiv:2604.16514; fudan-generative-ai/Bard-VL-*): Qwen3-VL turned into a block-diffusion model.

Deepstack features, positions of three axes in turns, and an answer that starts a block of its own behind the prompt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vision.preprocess.pixels import HALF
from vlm.checkpoints.keymap import Weight, llama_names
from vlm.checkpoints.load import read_json
from vlm.decoding.blocks import Blocks
from vlm.families.dimple import VISION_FRAME
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.qwen_vl import QwenVision, QwenVL, patches_of, qwen_vl_weights

#: An unused row of the embedding; the released code takes it as an argument, some checkpoints name it beside config.json.
MASK = 151671


def _configure(settings: Settings) -> ModelConfig:
    text = settings.inner("text_config")
    rope = text.inner("rope_scaling" if "rope_scaling" in text.data else "rope_parameters")
    rope.expect(rope_type="default", mrope_interleaved=True)
    generation = read_json(Path(settings.source).parent / "generation_config.json", required=False)
    mask = Settings({**generation, **settings.data}, settings.source).number("mask_token_id", default=MASK)
    backbone = replace(
        qwen_backbone(text, logit_shift=0, qkv_bias=bool(text.get("attention_bias", default=False)), qk_norm=True, mask_token_id=mask),
        mrope_sections=tuple(int(n) for n in rope.get("mrope_section")), mrope_interleaved=True,
        tie_embeddings=bool(settings.get("tie_word_embeddings", default=text.get("tie_word_embeddings", default=False))),
        rope_theta=text.real("rope_theta", default=rope.real("rope_theta", default=5e6)),
    )  # fmt: skip
    patches = patches_of(settings, (256**2, 2048**2), patch=16, normalization=HALF)
    vision = QwenVision("qwen3_vl", settings.inner("vision_config").data, patches)
    return ModelConfig(backbone, vision, settings.data, blocks=Blocks(settings.number("block_size", default=4), "fresh"))


def _weights(config: ModelConfig) -> list[Weight]:
    return qwen_vl_weights(config, llama_names("model.language_model."), "model.visual.")


#: Defaults of the released code; its scripts for blocks of 32 (B32 checkpoints).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "bard-vl": ("block-dynamic", {"block_length": 4, "steps_per_block": 4, "threshold": 0.9}),
    "bard-vl-8": ("block-dynamic", {"block_length": 8, "steps_per_block": 8, "threshold": 0.9}),
    "bard-vl-32": ("block-dynamic", {"block_length": 32, "steps_per_block": 32, "threshold": 0.6}),
}

FAMILY = Family(
    name="bard-vl",
    model_types=("bard_vl",),
    architectures=("BardVLForConditionalGeneration",),
    configure=_configure,
    weights=_weights,
    template=replace(chatml_template("bard-vl", system=None, image=VISION_FRAME), images_first=False),
    build=QwenVL,
    ignored=(r".*rotary.*inv_freq",),
    attention="block-causal",
    stop=("<|im_end|>", "<|endoftext|>"),
    presets=PRESETS,
    default_preset="bard-vl",
    proven="pictures, prompts, positions, attention rule, forward, whole generations step by step and training losses against the published code on "
    "tiny random weights; real weights not run",
)
