"""Tiny random checkpoints of the LLaVA kind, written as their authors publish them, with a byte-level tokenizer of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vision.towers import build_tower
from vlm.families.family import Settings
from vlm.families.llava import TOWER
from vlm.families.registry import families

SIDE = 28
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 7}
MEDIA: dict[str, Any] = {
    "mm_vision_tower": "base", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 16, "mm_vision_select_layer": -2, "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]], "mm_spatial_pool_mode": "bilinear",
}  # fmt: skip
CONTROL = {
    "llada": (
        "<|startoftext|>", "<|endoftext|>", "<|reserved_token_0|>", "<|reserved_token_1|>", "<|reserved_token_2|>", "<|mdm_mask|>", "<|start_header_id|>",
        "<|end_header_id|>", "<|eot_id|>",
    ),
    "dream": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|mask|>"),
}  # fmt: skip
ROWS = 288  # rows of embedding and head: more than there are tokens


def control_id(kind: str, name: str) -> int:
    """Id of a control token."""
    return 256 + CONTROL[kind].index(name)


def configs() -> dict[str, dict[str, Any]]:
    """config.json of each family."""
    eos, mask = control_id("llada", "<|endoftext|>"), control_id("llada", "<|mdm_mask|>")
    llama = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "hidden_act": "silu", "vocab_size": ROWS,
        "tie_word_embeddings": False, "rope_scaling": None, "max_position_embeddings": 1024, "rope_theta": 100.0,
    }  # fmt: skip
    return {
        "lavida-llada": {
            **MEDIA, "model_type": "llava_llada", "architectures": ["LlavaLladaForMaskedDiffusion"], "d_model": 32, "n_layers": 2, "n_heads": 4,
            "n_kv_heads": 4, "mlp_hidden_size": 48, "vocab_size": ROWS, "embedding_size": ROWS, "mask_token_id": mask, "eos_token_id": eos,
            "pad_token_id": eos, "rope_theta": 100.0, "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "weight_tying": False,
            "include_bias": False, "rope": True, "max_sequence_length": 1024,
        },
        "lavida-dream": {
            **MEDIA, **llama, "model_type": "llava_dream", "architectures": ["LlavaDreamForMaskedDiffusion"], "num_key_value_heads": 2,
            "mask_token_id": control_id("dream", "<|mask|>"), "eos_token_id": 256, "pad_token_id": 256, "rms_norm_eps": 1e-6,
        },
        "llada-v": {
            **MEDIA, **llama, "model_type": "llava_llada", "architectures": ["LlavaLLaDAModelLM"], "num_key_value_heads": 4, "eos_token_id": eos,
            "attention_bias": False, "image_aspect_ratio": "anyres_max_4", "rms_norm_eps": 1e-5,
        },
    }  # fmt: skip


def write_tokenizer(folder: Path, kind: str) -> None:
    """One token per byte, and the control tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    added = [
        {"id": control_id(kind, name), "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for name in CONTROL[kind]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": [["t", "h"]]},
    }  # fmt: skip
    vocab["th"] = 256 + len(added)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")


def random_state(name: str, folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Random tensors under the published keys."""
    family = families()[name]
    weights = family.weights(family.configure(Settings(config, str(folder / "config.json"))))
    generator = torch.Generator().manual_seed(0)
    found = {}
    for part in (part for weight in weights for part in weight.parts):
        matrix = torch.randn(part.shape, generator=generator)
        found[part.key] = matrix * (0.5 if len(part.shape) > 1 else 0.1) + (1.0 if "norm" in part.key and part.key.endswith("weight") else 0.0)
    return found


def write_vlm(folder: Path, name: str, *, tower: bool = True, **changes: Any) -> Path:
    """A checkpoint with its base tower in the sub-folder ``base``; `tower`: whether the shards hold the tuned one."""
    config = {**configs()[name], **changes}
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text(json.dumps({"vision_config": VISION}), encoding="utf-8")
    torch.manual_seed(1)
    save_file({f"vision_model.{k}": v for k, v in build_tower("siglip", VISION).state_dict().items()}, folder / "base" / "model.safetensors")
    write_tokenizer(folder, "dream" if name == "lavida-dream" else "llada")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = random_state(name, folder, config)
    save_file({k: v for k, v in state.items() if tower or not k.startswith(TOWER)}, folder / "model.safetensors")
    return folder
