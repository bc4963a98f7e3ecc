"""Checkpoint folders: what is written is read back; what is damaged is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_model
from vlm.checkpoint import POCKET, load_pocket, save_pocket
from vlm.errors import CheckpointError, ConfigError


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def test_round_trip(tmp_path):
    model = tiny_model(3)
    save_pocket(model, POCKET / "tokenizer.json", tmp_path, torch.float32)
    loaded, tokenizer, name = load_pocket(tmp_path)
    assert name == tmp_path.name and tokenizer.vocab_size == 416 and not loaded.training
    assert loaded.config == model.config
    for (key, a), (other, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert key == other
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    torch.testing.assert_close(loaded.adapter.waves, model.adapter.waves)


def test_bf16_keeps_vectors_exact(tmp_path):
    model = tiny_model(3)
    save_pocket(model, POCKET / "tokenizer.json", tmp_path)
    stored, loaded = load_file(tmp_path / "model.safetensors"), load_pocket(tmp_path)[0].state_dict()
    for key, value in model.state_dict().items():
        vector = value.ndim < 2 or not value.is_floating_point()
        assert stored[key].dtype == (value.dtype if vector else torch.bfloat16)
        torch.testing.assert_close(loaded[key], value if vector else value.bfloat16().float(), rtol=0, atol=0)


def change_config(folder, change):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def retensor(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def shrink_tokenizer(folder):
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"][1]["content"], data["added_tokens"][2]["content"] = "<|bos|>", "<|mask|>"
    (folder / "tokenizer.json").write_text(json.dumps(data))


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "does not hold an object"),
    "other family": (lambda f: change_config(f, lambda d: d.update(model_type="llama")), "'llama' is not supported"),
    "config key missing": (lambda f: change_config(f, lambda d: d.pop("reader")), "reader"),
    "reader no object": (lambda f: change_config(f, lambda d: d.update(reader=3)), "does not describe"),
    "size no number": (lambda f: change_config(f, lambda d: d["backbone"].update(hidden_size="big")), "does not describe"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors"),
    "weights cut": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]), "model.safetensors"),
    "tensor missing": (lambda f: retensor(f, lambda s: s.pop("backbone.norm.weight")), "missing keys: backbone.norm.weight"),
    "tensor too many": (lambda f: retensor(f, lambda s: s.update(extra=torch.zeros(1))), "unexpected keys: extra"),
    "tensor of other shape": (lambda f: retensor(f, lambda s: s.update({"backbone.norm.weight": torch.zeros(7)})), "backbone.norm.weight has shape"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer of another model": (shrink_tokenizer, "is another id"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(folder, name):
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_pocket(folder)
    assert str(folder) in str(caught.value)


def test_unknown_key_in_the_backbone(folder):
    change_config(folder, lambda d: d["backbone"].update(flash=True))
    with pytest.raises(ConfigError, match="flash"):
        load_pocket(folder)
