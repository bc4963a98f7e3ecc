"""Fast-dLLM v2 (arXiv:2509.26328; Efficient-Large-Model/Fast_dLLM_v2_7B, Fast_dLLM_1.5B): a block-diffusion Qwen2.5, text only.

Logits speak of the next token, as those of the model it was made of, so a finished block also names the first token of the
next. Blocks of 32 are decoded in parts of 8.
"""

from __future__ import annotations

from typing import Any

from vlm.checkpoints.keymap import Weight, backbone_weights, llama_names
from vlm.decoding.blocks import Blocks
from vlm.families.diffusionvl import SYSTEM
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings

#: `|<MASK>|`, which the released code names in its source and not in config.json.
MASK = 151665


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(rope_scaling=None)
    backbone = qwen_backbone(settings, logit_shift=1, mask_token_id=settings.number("mask_token_id", default=MASK))
    return ModelConfig(backbone, raw=settings.data, blocks=Blocks(settings.number("bd_size", default=32)))


def _weights(config: ModelConfig) -> list[Weight]:
    return backbone_weights(config.backbone, llama_names())


def fast_preset(threshold: float) -> tuple[str, dict[str, Any]]:
    """Everything above the threshold, at least one cell a step; the first cell of a block from what stands before it."""
    return "block-dynamic", {"block_length": 32, "steps_per_block": 32, "part": 8, "threshold": threshold, "first_cell": True}


#: The chat program of the release, and the defaults of its `generate` (one cell a step).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {"fast-dllm": fast_preset(0.9), "fast-dllm-one": fast_preset(1.0)}

FAMILY = Family(
    name="fast-dllm",
    model_types=("Fast_dLLM_Qwen",),
    architectures=("Fast_dLLM_QwenForCausalLM",),
    configure=_configure,
    weights=_weights,
    template=chatml_template("fast-dllm", system=SYSTEM),
    ignored=(r"lm_head\.weight", r".*rotary.*inv_freq"),
    attention="block-causal",
    stop=("<|im_end|>", "<|endoftext|>"),
    presets=PRESETS,
    default_preset="fast-dllm",
    proven="shifted blocks, their cache and the free first token against one pass and an independent loop on tiny random weights; not compared with "
    "numbers of the published code; prompt format and real weights not checked",
)
