"""DiffusionVL (arXiv:2512.15713; hustvl/DiffusionVL-Qwen2.5VL-3B and -7B): Qwen2.5-VL turned into a block-diffusion model.

Blocks are counted from the first entry of the prompt, positions simply count on, and logits speak of their own cell. The
merger of the tower is stored as the projector.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlm.checkpoints.keymap import Weight, llama_names
from vlm.checkpoints.shards import Shards, read_header
from vlm.decoding.blocks import Blocks
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.qwen_vl import QwenVision, QwenVL, patches_of, qwen_vl_weights

#: System sentence of the conversations it was trained with; protocol data.
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
#: An unused row of the embedding, which the released code names in its source and not in config.json.
MASK = 151671
TOWER, MERGER = "model.vision_tower.vision_tower.", "model.mm_projector.merger."


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(enable_bd3lm=True, mm_projector_type="qwen_merger", mm_use_im_start_end=False, mm_use_im_patch_token=False)
    backbone = qwen_backbone(settings, logit_shift=0, mask_token_id=settings.number("mask_token_id", default=MASK))
    pixels = (settings.number("min_pixels", default=384**2), settings.number("max_pixels", default=512**2))
    vision = QwenVision("qwen2_5_vl", settings.inner("vision_config").data, patches_of(settings, pixels), axes=False)
    return ModelConfig(backbone, vision, settings.data, blocks=Blocks(settings.number("bd3lm_block_size", default=8)))


def _weights(config: ModelConfig) -> list[Weight]:
    return qwen_vl_weights(config, llama_names(), TOWER, merger=MERGER)


def _gather(shards: Shards) -> Shards:
    """The tensors with those of the converter's two extra files under the names they have in whole checkpoints.

    What stands before the names inside these files is not documented: whole names, the beginnings a tower has elsewhere, and
    none are understood.
    """
    found = dict(shards.tensors)
    for file, prefix, others in (("vision_tower", TOWER, ("vision_tower.", "visual.")), ("projector", MERGER, ("mm_projector.", "merger."))):
        path = shards.folder / f"{file}.safetensors"
        for stored in read_header(path) if path.is_file() else ():
            rest = stored.key.removeprefix(prefix).removeprefix("model.")
            for other in others:
                rest = rest.removeprefix(other)
            found.setdefault(prefix + rest, replace(stored, key=prefix + rest))
    return Shards(shards.folder, found)


#: Published evaluation (128 tokens), and its option that takes everything above a threshold.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffusionvl": ("block-static", {"block_length": 8, "steps_per_block": 8}),
    "diffusionvl-dynamic": ("block-dynamic", {"block_length": 8, "steps_per_block": 8, "threshold": 0.85}),
}

FAMILY = Family(
    name="diffusionvl",
    model_types=("diffusionvl_qwenvl",),
    architectures=("DiffusionVLQwenVLForCausalLM",),
    configure=_configure,
    weights=_weights,
    template=chatml_template("diffusionvl", system=SYSTEM, image_gap=" ", after_images="\n"),
    build=QwenVL,
    gather=_gather,
    ignored=(r".*rotary.*inv_freq",),
    attention="block-causal",
    stop=("<|im_end|>", "<|endoftext|>"),
    presets=PRESETS,
    default_preset="diffusionvl",
    proven="pictures, prompts, attention rule, forward, whole generations step by step and training losses against the published code on tiny random "
    "weights; real weights not run",
)
