"""Fast-dVLM (arXiv:2604.06832; Efficient-Large-Model/Fast_dVLM_3B): Qwen2.5-VL turned into a block-diffusion model that still runs as it did.

The prompt and finished blocks are causal token by token, the block under work sees itself; the answer starts a block of its
own; logits speak of the next token. What is known of the release is second-hand (see docs/families/fast-dvlm.md).
"""

from __future__ import annotations

from dataclasses import replace

from vlm.checkpoints.keymap import Weight, llama_names
from vlm.decoding.blocks import Blocks
from vlm.families.diffusionvl import SYSTEM
from vlm.families.dimple import VISION_FRAME
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.fast_dllm import MASK, fast_preset
from vlm.families.qwen_vl import QwenVision, QwenVL, patches_of, qwen_vl_weights


def _configure(settings: Settings) -> ModelConfig:
    """Both ages of Qwen2.5-VL's config.json: the language part on top, or under `text_config`."""
    text = settings.inner("text_config") if "text_config" in settings.data else settings
    rope = text.inner("rope_scaling" if "rope_scaling" in text.data else "rope_parameters")
    mask = Settings({**text.data, **settings.data}, settings.source).number("mask_token_id", default=MASK)
    tied = settings.get("tie_word_embeddings", default=text.get("tie_word_embeddings", default=False))
    backbone = replace(
        qwen_backbone(text, logit_shift=1, mask_token_id=mask), mrope_sections=tuple(int(n) for n in rope.get("mrope_section")), tie_embeddings=bool(tied),
        rope_theta=text.real("rope_theta", default=rope.real("rope_theta", default=1e6)),
    )  # fmt: skip
    vision = QwenVision("qwen2_5_vl", settings.inner("vision_config").data, patches_of(settings, (3136, 12845056)))
    block = Settings({**text.data, **settings.data}, settings.source).number("bd_size", "block_size", default=32)
    return ModelConfig(backbone, vision, settings.data, blocks=Blocks(block, "fresh", "token"))


def _weights(config: ModelConfig) -> list[Weight]:
    new = "text_config" in config.raw
    return qwen_vl_weights(config, llama_names("model.language_model." if new else "model."), "model.visual." if new else "visual.")


FAMILY = Family(
    name="fast-dvlm",
    model_types=("fast_dvlm", "Fast_dLLM_Qwen2_5_VL"),
    architectures=("Fast_dLLM_Qwen2_5_VLForConditionalGeneration",),
    configure=_configure,
    weights=_weights,
    template=replace(chatml_template("fast-dvlm", system=SYSTEM, image=VISION_FRAME), images_first=False),
    build=QwenVL,
    ignored=(r"lm_head\.weight", r".*rotary.*inv_freq"),
    attention="block-causal",
    stop=("<|im_end|>", "<|endoftext|>"),
    presets={"fast-dvlm": fast_preset(0.9), "fast-dvlm-one": fast_preset(1.0)},
    default_preset="fast-dvlm",
    proven="attention rule, shift and cache against one pass on tiny random weights; config keys, prompt format and real weights not checked",
)
