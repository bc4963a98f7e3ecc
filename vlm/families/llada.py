"""LLaDA-8B, Base and Instruct (arXiv:2502.09992; GSAI-ML/LLaDA-8B-*): official key names.

Rotary positions in float32, as many key as query heads, no biases, an output head of its own, no logit shift.
"""

from __future__ import annotations

from typing import Any

from vlm.backbone.config import BackboneConfig
from vlm.checkpoints.keymap import LLADA, Weight, backbone_weights
from vlm.families.family import Family, ModelConfig, Settings
from vlm.processor.template import Frame, Special, Template


def llada_backbone(settings: Settings) -> BackboneConfig:
    """The backbone of a config.json with LLaDA's own keys (`d_model`, `n_heads`, ...)."""
    settings.expect(
        activation_type="silu", block_type="llama", block_group_size=1, layer_norm_type="rms", rope=True, alibi=False, include_bias=False,
        attention_layer_norm=False, bias_for_layer_norm=False, layer_norm_with_affine=True, scale_logits=False, input_emb_norm=False,
    )  # fmt: skip
    width, heads = settings.number("d_model"), settings.number("n_heads")
    return BackboneConfig(
        vocab_size=settings.number("embedding_size", "vocab_size"), hidden_size=width, num_layers=settings.number("n_layers"), num_heads=heads,
        num_kv_heads=settings.number("n_kv_heads", default=1 if settings.get("multi_query_attention", default=False) else heads),
        intermediate_size=settings.number("mlp_hidden_size", default=settings.number("mlp_ratio", default=4) * width),
        mask_token_id=settings.number("mask_token_id"), pad_token_id=settings.number("pad_token_id", "eos_token_id"),
        eos_token_id=settings.number("eos_token_id"), rms_norm_eps=settings.real("rms_norm_eps", default=1e-5),
        rope_theta=settings.real("rope_theta", default=10000.0), rope_fp32=bool(settings.get("rope_full_precision", default=True)),
        qkv_bias=bool(settings.get("include_qkv_bias", default=False)), tie_embeddings=bool(settings.get("weight_tying", default=False)),
        logit_shift=0, max_position_embeddings=settings.number("max_sequence_length", default=4096),
    )  # fmt: skip


def _configure(settings: Settings) -> ModelConfig:
    return ModelConfig(llada_backbone(settings), raw=settings.data)


def _weights(config: ModelConfig) -> list[Weight]:
    return backbone_weights(config.backbone, LLADA)


def llada_template(
    name: str, *, system: str | None = None, media_token: str = "<|reserved_token_0|>", image_gap: str = "", after_images: str = ""
) -> Template:
    """The chat format of the LLaDA tokenizers, which always open the answer; see :class:`Template` for the rest."""

    def frame(role: str) -> Frame:
        return Frame((Special("<|start_header_id|>"), role, Special("<|end_header_id|>"), "\n\n"), (Special("<|eot_id|>"),))

    return Template(
        name=name, begin=(Special("<|startoftext|>"),), roles={role: frame(role) for role in ("system", "user", "assistant")},
        answer=frame("assistant").before, default_system=system, media_token=media_token, strip_text=True,
        image_gap=image_gap, after_images=after_images,
    )  # fmt: skip


#: Settings of the published Instruct evaluation; one block as long as the answer, one token per step.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llada": ("llada", {"steps_per_block": 32, "block_length": 32}),
    "llada-published": ("llada", {"steps_per_block": 128, "block_length": 128}),
    "llada-gsm8k": ("llada", {"steps_per_block": 512, "block_length": 512, "ignore_confidence_of": ("<|endoftext|>", "<|eot_id|>")}),
    "llada-humaneval": ("llada", {"steps_per_block": 512, "block_length": 512, "banned": ("<|endoftext|>",)}),
}

FAMILY = Family(
    name="llada",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    configure=_configure,
    weights=_weights,
    template=llada_template("llada"),
    ignored=(r"model\.transformer\.ff_out\.weight", r".*rotary_emb.*"),
    stop=("<|eot_id|>", "<|endoftext|>"),
    presets=PRESETS,
    proven="forward, guidance, padding and whole generations against the published code on tiny random weights; real weights not run",
)
