"""Families with Qwen towers and block-diffusion families: tiny random checkpoints through the public API."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.parity.cases import root
from vlm import DiffusionVLM
from vlm.checkpoints.keymap import to_published
from vlm.checkpoints.load import load
from vlm.checkpoints.shards import Shards, read_tensor
from vlm.errors import CheckpointError, OptionError
from vlm.families.family import Settings
from vlm.families.qwen_vl import mrope_positions
from vlm.families.registry import families, find_family
from vlm.processor.messages import ImagePart, Message, TextPart
from vlm.processor.prompt import MediaSpan
from vlm.processor.tokenizer import Tokenizer

NAMES = ("dream-vl", "dimple", "diffusionvl", "sdar-vl", "bard-vl")
FOLDERS = {name: root() / name for name in NAMES}
needs_fixtures = pytest.mark.skipif(not all(f.is_dir() for f in FOLDERS.values()), reason="needs ../shared/parity")
LOADED: dict[str, DiffusionVLM] = {}


def model(name: str) -> DiffusionVLM:
    if name not in LOADED:
        LOADED[name] = DiffusionVLM.from_pretrained(FOLDERS[name])
    return LOADED[name]


def picture(width: int = 90, height: int = 60) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def test_three_axes_share_a_start_and_text_goes_on_behind_the_longest_side() -> None:
    positions, start = mrope_positions(9, [MediaSpan(0, 2, 6)], [(2, 3)])
    assert positions[:2].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert positions[2:8].tolist() == [[2, 2 + r, 2 + c] for r in range(2) for c in range(3)]
    assert positions[8].tolist() == [5, 5, 5]
    assert start == 6


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_answers_through_the_public_api(name: str) -> None:
    vlm = model(name)
    assert vlm.info()["family"] == name
    answer = vlm.ask(picture(), "What is this?", max_new_tokens=8)
    assert answer.usage.forwards > 0
    again = vlm.ask([picture(), picture(60, 60)], "What is this?", max_new_tokens=8)
    assert again[0].text == answer.text  # a batch of two prompts of different lengths equals its rows alone


@needs_fixtures
@pytest.mark.parametrize("name", ["dimple", "sdar-vl", "bard-vl"])
def test_extraction_gives_valid_data(name: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
    assert 0 <= model(name).extract(picture(), schema).data["n"] <= 99


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_keys_go_back_bit_for_bit(name: str) -> None:
    loaded = load(FOLDERS[name])
    back = to_published(loaded.family.weights(loaded.config), loaded.model.state_dict())
    stored = Shards.open(FOLDERS[name]).tensors
    needed = {key for key in stored if "post_layernorm" not in key}
    assert set(back) == needed
    assert all(torch.equal(back[key].view(torch.uint8), read_tensor(stored[key]).view(torch.uint8)) for key in needed)


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_config_finds_its_family_and_presets_build(name: str) -> None:
    config = load(FOLDERS[name]).config.raw
    family, tokenizer = find_family(config), Tokenizer.from_file(FOLDERS[name])
    assert family.name == name
    for preset in (None, *family.presets):
        banned = set(family.recipe(tokenizer, tokenizer.vocab_size, preset).banned)
        assert tokenizer.control_ids - set(family.stop_ids(tokenizer)) <= banned


@needs_fixtures
def test_unsupported_settings_are_named() -> None:
    config = dict(load(FOLDERS["dimple"]).config.raw)
    with pytest.raises(CheckpointError, match="full_attn_mask is False"):
        families()["dimple"].configure(Settings({**config, "full_attn_mask": False}))
    with pytest.raises(OptionError, match="works in blocks"):
        model("bard-vl").ask(picture(), "?", max_new_tokens=4, guidance=1.0)


@needs_fixtures
def test_missing_keys_stop_loading(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "broken"
    shutil.copytree(FOLDERS["dimple"], folder, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("expected*", "inputs*"))
    stored = Shards.open(FOLDERS["dimple"]).tensors
    (folder / "model.safetensors").unlink()
    save_file({key: read_tensor(t) for key, t in stored.items() if key != "img_projector.linear_1.bias"}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"img_projector\.linear_1\.bias"):
        load(folder)


@needs_fixtures
def test_newlines_of_the_sdar_template() -> None:
    family, tokenizer = families()["sdar-vl"], Tokenizer.from_file(FOLDERS["sdar-vl"])

    def text(*parts: Any) -> str:
        prompt = family.template.build([Message("user", parts)], tokenizer)
        return tokenizer.decode(prompt.lay_out([1] * len(prompt.images)).ids, specials=True)

    assert "user\n\nhello\n<|im_end|>" in text(TextPart("hello"))
    assert "user\n<|image_pad|>hello\n<|im_end|>" in text(ImagePart("a.png"), TextPart("hello"))


@needs_fixtures
def test_pictures_of_diffusionvl_stand_on_lines_of_their_own() -> None:
    template, tokenizer = families()["diffusionvl"].template, Tokenizer.from_file(FOLDERS["diffusionvl"])
    prompt = template.build([Message("user", (TextPart("hello"), ImagePart("a.png"), ImagePart("b.png")))], tokenizer)
    assert "user\n<|image_pad|> <|image_pad|>\nhello<|im_end|>" in tokenizer.decode(prompt.lay_out([1, 1]).ids, specials=True)


@needs_fixtures
@pytest.mark.parametrize("before", ["", "vision_tower.", "model.vision_tower.vision_tower."])
def test_tower_and_merger_in_files_of_their_own(tmp_path: Path, before: str) -> None:
    """DiffusionVL's converter writes vision_tower.safetensors and projector.safetensors."""
    whole, tower, merger = load_file(FOLDERS["diffusionvl"] / "model.safetensors"), "model.vision_tower.vision_tower.", "model.mm_projector.merger."
    shutil.copytree(FOLDERS["diffusionvl"], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
    parts = {
        "model": {k: v for k, v in whole.items() if not k.startswith((tower, merger))},
        "vision_tower": {before + k.removeprefix(tower): v for k, v in whole.items() if k.startswith(tower)},
        "projector": {("merger." if before else "") + k.removeprefix(merger): v for k, v in whole.items() if k.startswith(merger)},
    }  # fmt: skip
    for file, tensors in parts.items():
        save_file(tensors, tmp_path / "model" / f"{file}.safetensors")
    ours, theirs = load(tmp_path / "model").model.state_dict(), load(FOLDERS["diffusionvl"]).model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    (tmp_path / "model" / "projector.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing keys: model.mm_projector.merger"):
        load(tmp_path / "model")
