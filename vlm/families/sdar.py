"""SDAR (arXiv:2510.06303; JetLM/SDAR-1.7B-Chat, -4B-Chat, -8B-Chat and their base models): a block-diffusion Qwen3, text only.

The backbone of SDAR-VL without its pictures. Mixtures of experts (SDAR-30B-A3B) have another layout and are not claimed.
"""

from __future__ import annotations

from typing import Any

from vlm.checkpoints.keymap import Weight, backbone_weights, llama_names
from vlm.decoding.blocks import Blocks
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.sdar_vl import MASK


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(rope_scaling=None)
    mask = settings.number("mask_token_id", default=MASK)
    bias = bool(settings.get("attention_bias", default=False))
    backbone = qwen_backbone(settings, logit_shift=0, qkv_bias=bias, qk_norm=True, mask_token_id=mask)
    return ModelConfig(backbone, raw=settings.data, blocks=Blocks(settings.number("block_size", default=4)))


def _weights(config: ModelConfig) -> list[Weight]:
    return backbone_weights(config.backbone, llama_names())


def _preset(method: str, **options: Any) -> tuple[str, dict[str, Any]]:
    return method, {"block_length": 4, "steps_per_block": 4, "temperature": 1.0, "filtered": True, **options}


#: The release's script; it draws at temperature 1 and scores what was drawn by the filtered distribution.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sdar": _preset("block-dynamic", threshold=0.85),
    "sdar-greedy": _preset("block-dynamic", threshold=0.85, temperature=0.0),
    "sdar-static": _preset("block-static"),
    "sdar-sequential": _preset("block-sequential"),
}

FAMILY = Family(
    name="sdar",
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    configure=_configure,
    weights=_weights,
    template=chatml_template("sdar", system=None),
    ignored=(r"lm_head\.weight", r".*rotary.*inv_freq"),
    attention="block-causal",
    stop=("<|im_end|>", "<|endoftext|>"),
    presets=PRESETS,
    default_preset="sdar",
    proven="the backbone and the sampler as those of SDAR-VL, which were compared with the published code; config keys and prompt format of this "
    "release and real weights not checked",
)
