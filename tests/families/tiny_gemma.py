"""A tiny random DiffusionGemma, written as its authors publish it, with a SentencePiece-like tokenizer of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CONTROL = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|channel>", "<channel|>", "<|tool_response>",
)  # fmt: skip
CANVAS = 16
VOCAB = 416  # rows of the embedding: more than there are tokens


def control_id(name: str) -> int:
    """Id of a control token."""
    return CONTROL.index(name)


def config(**changes: Any) -> dict[str, Any]:
    """config.json."""
    text = {
        "model_type": "diffusion_gemma_text", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "max_position_embeddings": 512, "sliding_window": 24, "num_experts": 4,
        "top_k_experts": 2, "moe_intermediate_size": 16, "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": 2, "per_layer_config": {"1": {"head_dim": 8, "num_key_value_heads": 1}}, "use_bidirectional_attention": "vision",
    }  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 3, "position_embedding_size": 256,
    }  # fmt: skip
    return {
        "model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"], "text_config": text, "vision_config": vision,
        "boi_token_id": control_id("<|image>"), "eoi_token_id": control_id("<image|>"), "image_token_id": control_id("<|image|>"),
        "canvas_length": CANVAS, "tie_word_embeddings": True, **changes,
    }  # fmt: skip


def tokenizer() -> dict[str, Any]:
    """tokenizer.json: control tokens, a byte fallback, printable ASCII and a merge."""
    vocab = {name: i for i, name in enumerate(CONTROL)}
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *(chr(c) for c in range(33, 127)), "▁t"]
    vocab.update({piece: len(CONTROL) + i for i, piece in enumerate(pieces)})
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return {
        "version": "1.0", "added_tokens": [{"id": i, "content": name, **plain} for i, name in enumerate(CONTROL)], "normalizer": blank,
        "pre_tokenizer": None, "post_processor": None, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, "vocab": vocab, "merges": [["▁", "t"]],
        },
    }  # fmt: skip


def write_gemma(folder: Path, **changes: Any) -> Path:
    """The checkpoint folder; `changes` are keys of config.json."""
    from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig
    from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    module = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_dict(config(**changes))).eval()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if "layer_scalar" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1 and tensor.is_floating_point():
                tensor.normal_(std=0.3)
    module.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config(**changes)), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps({"patch_size": 4, "pooling_kernel_size": 3, "max_soft_tokens": 70}), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()), encoding="utf-8")
    return folder
