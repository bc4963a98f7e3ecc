"""LLaDA-V (arXiv:2505.16933; GSAI-ML/LLaDA-V): LLaDA-8B under Llama's key names behind SigLIP 2, full attention, no pooling."""

from __future__ import annotations

from typing import Any

from vlm.checkpoints.keymap import Weight, llama_names
from vlm.families.dream import qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.llada import llada_template
from vlm.families.llava import SYSTEM, LlavaModel, complete, llava_vision, llava_weights, special_id, tower_ignored

#: What the released sampler never lets out; the first was never learned as padding (its micro-batches had one row).
BANNED = ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
STOP = ("<|eot_id|>",)
#: Control tokens that its training learned wherever they stood.
EVERYWHERE = ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
#: Published evaluation: multiple choice; charts; documents (32 cells in 16 steps); the demo.
_FREE: dict[str, Any] = {"banned": BANNED, "stop_at": STOP}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llada-v": ("llada", {**_FREE, "block_length": 32, "step_ratio": 0.5}),
    "llada-v-published": ("llada", {**_FREE, "block_length": 128, "step_ratio": 1.0}),
    "llada-v-choice": ("llada", {**_FREE, "block_length": 2, "steps_per_block": 2}),
    "llada-v-chart": ("llada", {**_FREE, "block_length": 16, "steps_per_block": 16}),
    "llada-v-document": ("llada", {**_FREE, "block_length": 32, "steps_per_block": 16}),
    "llada-v-math": ("llada", {**_FREE, "block_length": 96, "steps_per_block": 48}),
}


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(rope_scaling=None, attention_bias=False, use_mrope=False)
    mask = settings.get("mask_token_id", default=None)
    mask = special_id(settings, "<|mdm_mask|>", 126336) if mask is None else int(mask)
    backbone = qwen_backbone(settings, logit_shift=0, qkv_bias=False, mask_token_id=mask)
    # padding is banned, because the model never learned it: what is left of a slot is filled with what ends its turns
    return ModelConfig(backbone, llava_vision(settings, pooled=False), settings.data, fill_token=STOP[0])


def _weights(config: ModelConfig) -> list[Weight]:
    return llava_weights(config, llama_names())


FAMILY = Family(
    name="llada-v",
    model_types=("llava_llada", "llada"),
    architectures=("LlavaLLaDAModelLM", "LLaDAModelLM"),
    keys=("mm_vision_tower", "hidden_size"),
    configure=_configure,
    weights=_weights,
    build=LlavaModel,
    complete=complete,
    template=llada_template("llada-v", system=SYSTEM, image_gap=" ", after_images="\n"),
    ignored=(r".*rotary_emb.*", *tower_ignored()),
    attention="full",
    stop=STOP,
    presets=PRESETS,
    default_preset="llada-v",
    lost_after_media=True,
    proven="views, features, prompts, logits, whole generations with stops, guidance and suffix, and training losses against the published code on "
    "tiny random weights; real weights not run",
)
