"""Families of the LLaVA kind: who claims a config.json, key maps both ways, ids that config.json does not have."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.families.tiny_vlm import SIDE, configs, control_id, write_vlm
from vision.preprocess.anyres import Views
from vlm.checkpoints.load import inspect, load
from vlm.checkpoints.write import save_published
from vlm.errors import CheckpointError
from vlm.families.registry import find_family


def test_claims():
    for name, config in configs().items():
        assert find_family(config).name == name
        assert find_family({**config, "architectures": None}).name == name
    both = {**configs()["lavida-llada"], "hidden_size": 32}
    assert find_family(both).name == "lavida-llada"
    text = {k: v for k, v in configs()["llada-v"].items() if k != "mm_vision_tower"}
    with pytest.raises(CheckpointError, match="no family"):
        find_family({**text, "architectures": ["Other"], "model_type": "llava_llada"})


@pytest.mark.parametrize("name", sorted(configs()))
def test_written_back_bit_for_bit(name, tmp_path):
    folder = write_vlm(tmp_path / "model", name)
    loaded = load(folder)
    save_published(loaded.model, loaded.family, loaded.config, tmp_path / "again", source=folder)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_mask_token_of_llada_v(tmp_path):
    folder = write_vlm(tmp_path / "model", "llada-v")
    assert inspect(folder).config.backbone.mask_token_id == control_id("llada", "<|mdm_mask|>")
    decoder = {"77": {"content": "<|mdm_mask|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert inspect(folder).config.backbone.mask_token_id == 77
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert inspect(folder).config.backbone.mask_token_id == 126336


@pytest.mark.parametrize("change", [{"mm_resampler_type": "perceiver"}, {"mm_projector_type": "mlp2x_silu"}, {"image_aspect_ratio": "highres"}])
def test_what_is_not_supported_is_refused(change, tmp_path):
    from vision.errors import VLMError

    folder = write_vlm(tmp_path / "model", "lavida-llada")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(VLMError, match=next(iter(change.values()))):
        inspect(folder)


def test_views_become_one_sequence(tmp_path):
    """Base view first, then the rows of the stitched tiles, each behind it a newline."""
    model = load(write_vlm(tmp_path / "model", "llada-v")).model
    views = Views(torch.rand(5, 3, SIDE, SIDE), (2 * SIDE, 2 * SIDE), (2, 2))
    with torch.no_grad():
        features = model.encode(views)
        projected = model.projector(model.tower(views.pixels))
    side = model.tower.side
    assert len(features) == side**2 + 2 * side * (2 * side + 1)
    assert torch.allclose(features[: side**2], projected[0], atol=1e-6)
    grid = features[side**2 :].view(2 * side, 2 * side + 1, -1)
    assert torch.equal(grid[:, -1], model.newline.detach().expand(2 * side, -1))
    assert torch.allclose(grid[:side, :side].flatten(0, 1), projected[1], atol=1e-6)
    assert torch.allclose(grid[side:, side : 2 * side].flatten(0, 1), projected[4], atol=1e-6)
