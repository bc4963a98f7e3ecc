"""SDAR, Fast-dLLM v2 and Fast-dVLM: tiny random checkpoints, written as their authors publish them, through the public API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.families.tiny_vlm import random_state
from vlm import DiffusionVLM, user
from vlm.checkpoints.load import inspect
from vlm.errors import CheckpointError, PromptError
from vlm.families.registry import families, find_family

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|MASK|>")
ROWS = 256 + len(CONTROL)
EOS, MASK = 256, ROWS - 1
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "hidden_act": "silu",
    "vocab_size": ROWS, "eos_token_id": EOS, "rms_norm_eps": 1e-6, "rope_theta": 100.0, "max_position_embeddings": 1024, "mask_token_id": MASK,
    "head_dim": 8, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [1], "in_channels": 3, "hidden_act": "silu",
}  # fmt: skip
ROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
CONFIGS: dict[str, dict[str, Any]] = {
    "sdar": {**TEXT, "model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": 4},
    "fast-dllm": {**TEXT, "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8},
    "fast-dvlm": {**TEXT, **ROPE, "model_type": "fast_dvlm", "architectures": ["Fast_dLLM_Qwen2_5_VLForConditionalGeneration"], "vision_config": VISION, "bd_size": 8},
}
#: Blocks as in these checkpoints; the presets have those of the published ones.
OPTIONS: dict[str, dict[str, Any]] = {"sdar": {}, "fast-dllm": {"block_length": 8, "part": 4}, "fast-dvlm": {"block_length": 8, "part": 4}}


def write(folder: Path, name: str, config: dict[str, Any] | None = None) -> Path:
    from tokenizers.pre_tokenizers import ByteLevel

    config = config or CONFIGS[name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {
        "version": "1.0", "added_tokens": [{"id": 256 + i, "content": token, **plain} for i, token in enumerate(CONTROL)], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    save_file(random_state(name, folder, config), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DiffusionVLM]:
    return {name: DiffusionVLM.from_pretrained(write(tmp_path_factory.mktemp(name) / "model", name)) for name in CONFIGS}


@pytest.fixture(params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def picture(width: int = 60) -> Image.Image:
    return Image.linear_gradient("L").resize((width, 60)).convert("RGB")


def test_a_conversation_is_answered(models: dict[str, DiffusionVLM], name: str) -> None:
    model = models[name]
    assert model.info()["family"] == name
    messages = [user("what?"), {"role": "assistant", "content": "that"}, {"role": "user", "content": "and now?"}]
    *frames, last = list(model.stream(messages, max_new_tokens=13, **OPTIONS[name]))
    assert last.result is not None and len(frames) == last.result[0].usage.steps >= 1
    assert model.generate(messages, max_new_tokens=13, **OPTIONS[name]).text == last.result[0].text


def test_every_preset_runs(models: dict[str, DiffusionVLM], name: str) -> None:
    for preset in families()[name].presets:
        result = models[name].generate("hello", max_new_tokens=9, preset=preset, **OPTIONS[name])
        assert result.status == "ok" and not set(CONTROL) & {result.text}


def test_text_models_take_no_pictures(models: dict[str, DiffusionVLM]) -> None:
    for text in ("sdar", "fast-dllm"):
        with pytest.raises(PromptError, match="image"):
            models[text].ask(picture(), "what?", on_error="raise")


def test_pictures_of_a_batch_and_alone(models: dict[str, DiffusionVLM]) -> None:
    model, options = models["fast-dvlm"], OPTIONS["fast-dvlm"]
    together = model.ask([picture(), picture(120)], "what?", max_new_tokens=12, **options)
    for image, result in zip((picture(), picture(120)), together, strict=True):
        alone = model.ask(image, "what?", max_new_tokens=12, **options)
        assert (alone.text, alone.usage.steps, alone.usage.forwards) == (result.text, result.usage.steps, result.usage.forwards)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
    assert 0 <= model.extract(picture(), schema, **options).data["n"] <= 99


def test_both_ages_of_the_layout(tmp_path: Path) -> None:
    """Language part under `text_config`, and keys as newer transformers write them."""
    old = CONFIGS["fast-dvlm"]
    text = {**TEXT, **ROPE}
    new = {**{k: v for k, v in old.items() if k not in text}, "text_config": text}
    folder = write(tmp_path / "new", "fast-dvlm", new)
    found = inspect(folder)
    assert found.diff.fits and "model.language_model.layers.0.mlp.up_proj.weight" in found.shards.tensors and "model.visual.merger.ln_q.weight" in found.shards.tensors
    assert found.config.blocks is not None and found.config.blocks.length == 8


def test_defaults_and_what_is_not_claimed() -> None:
    config = {k: v for k, v in CONFIGS["fast-dllm"].items() if k not in ("mask_token_id", "bd_size")}
    from vlm.families.family import Settings

    made = families()["fast-dllm"].configure(Settings(config))
    assert made.blocks is not None and (made.backbone.mask_token_id, made.blocks.length, made.backbone.logit_shift) == (151665, 32, 1)
    with pytest.raises(CheckpointError, match="no family"):
        find_family({"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"]})
