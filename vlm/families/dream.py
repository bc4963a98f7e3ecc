"""Dream-7B, Base and Instruct (arXiv:2508.15487; Dream-org/Dream-v0-*): Qwen2.5-7B's layout, decoded in any order.

Grouped queries with biases, rotary positions in the working precision, logits that speak of the next token (shift).
"""

from __future__ import annotations

from typing import Any

from vlm.backbone.config import BackboneConfig
from vlm.checkpoints.keymap import Weight, backbone_weights, llama_names
from vlm.families.family import Family, ModelConfig, Settings
from vlm.processor.template import Frame, Special, Template


def qwen_backbone(settings: Settings, *, logit_shift: int, qkv_bias: bool = True, qk_norm: bool = False, mask_token_id: int | None = None) -> BackboneConfig:
    """The backbone of a config.json with the keys of Llama and Qwen (`hidden_size`, `num_attention_heads`, ...).

    Args:
        logit_shift, qkv_bias, qk_norm: of the family. mask_token_id: for families whose config.json does not say.
    """
    settings.expect(hidden_act="silu", use_sliding_window=False)
    heads = settings.number("num_attention_heads")
    eos = settings.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) else eos
    return BackboneConfig(
        vocab_size=settings.number("vocab_size"), hidden_size=settings.number("hidden_size"), num_layers=settings.number("num_hidden_layers"),
        num_heads=heads, num_kv_heads=settings.number("num_key_value_heads", default=heads), intermediate_size=settings.number("intermediate_size"),
        head_dim=settings.get("head_dim", default=None), mask_token_id=settings.number("mask_token_id") if mask_token_id is None else mask_token_id,
        pad_token_id=settings.number("pad_token_id", default=eos), eos_token_id=eos, rms_norm_eps=settings.real("rms_norm_eps", default=1e-6),
        rope_theta=settings.real("rope_theta", default=10000.0), rope_fp32=False, qkv_bias=qkv_bias, qk_norm=qk_norm,
        tie_embeddings=bool(settings.get("tie_word_embeddings", default=False)), logit_shift=logit_shift,
        max_position_embeddings=settings.number("max_position_embeddings", default=4096),
    )  # fmt: skip


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(rope_scaling=None, use_mrope=False)
    return ModelConfig(qwen_backbone(settings, logit_shift=1), raw=settings.data)


def _weights(config: ModelConfig) -> list[Weight]:
    return backbone_weights(config.backbone, llama_names())


def chatml_template(
    name: str, *, system: str | None = "You are a helpful assistant.", media_token: str = "<|image_pad|>", image: Frame | None = None,
    image_gap: str = "", after_images: str = "",
) -> Template:  # fmt: skip
    """The ChatML format of the Qwen tokenizers.

    Args:
        system: text used when the caller gives no system turn. image: what frames each picture.
        image_gap, after_images: see :class:`Template`.
    """

    def frame(role: str) -> Frame:
        return Frame((Special("<|im_start|>"), f"{role}\n"), (Special("<|im_end|>"), "\n"))

    return Template(
        name=name, roles={role: frame(role) for role in ("system", "user", "assistant")}, answer=frame("assistant").before,
        default_system=system, media_token=media_token, image=image or Frame(), image_gap=image_gap, after_images=after_images,
    )  # fmt: skip


#: README of the published model; chat demo.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "dream": ("dream-entropy", {"steps": 512, "temperature": 0.2, "top_p": 0.95}),
    "dream-chat": ("dream-entropy", {"steps": 512, "temperature": 0.4, "top_p": 0.95, "alg_temp": 0.1}),
}

FAMILY = Family(
    name="dream",
    model_types=("Dream",),
    architectures=("DreamModel",),
    configure=_configure,
    weights=_weights,
    template=chatml_template("dream"),
    ignored=(r"lm_head\.weight", r".*rotary_emb.*"),
    stop=("<|endoftext|>", "<|im_end|>"),
    presets=PRESETS,
    proven="forward, padding and whole generations against the published code on tiny random weights; real weights not run",
)
