"""Tiny checkpoints of the text families, written as their authors publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlm.checkpoints.keymap import Weight
from vlm.families.family import Settings
from vlm.families.registry import families

CONFIGS: dict[str, dict[str, Any]] = {
    "llada": {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 24,
        "vocab_size": 20, "embedding_size": 20, "mask_token_id": 19, "eos_token_id": 18, "pad_token_id": 18, "rope_theta": 500000.0, "block_type": "llama",
        "activation_type": "silu", "layer_norm_type": "rms", "weight_tying": False, "include_bias": False, "rope": True, "max_sequence_length": 64,
    },
    "dream": {
        "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 20, "mask_token_id": 19, "eos_token_id": 18, "pad_token_id": 18,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "rope_scaling": None,
    },
}  # fmt: skip


def key_map(name: str, config: dict[str, Any] | None = None) -> list[Weight]:
    """The family's key map for a config.json."""
    family = families()[name]
    return family.weights(family.configure(Settings(config or CONFIGS[name])))


def tensors(name: str, config: dict[str, Any] | None = None, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Random tensors under the published keys."""
    generator = torch.Generator().manual_seed(0)
    return {part.key: torch.randn(part.shape, generator=generator).to(dtype) for weight in key_map(name, config) for part in weight.parts}


def write(folder: Path, name: str, *, config: dict[str, Any] | None = None, state: dict[str, Tensor] | None = None, shards: int = 1) -> Path:
    """A checkpoint folder; with several shards, keys are dealt out in turn, so that fused parts lie in different files."""
    folder.mkdir(parents=True, exist_ok=True)
    state = tensors(name, config) if state is None else state
    (folder / "config.json").write_text(json.dumps(config or CONFIGS[name]), encoding="utf-8")
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    for i, file in enumerate(names):
        save_file({key: tensor for j, (key, tensor) in enumerate(state.items()) if j % shards == i}, folder / file)
    weight_map = {key: names[j % shards] for j, key in enumerate(state)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return folder
