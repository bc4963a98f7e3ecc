"""Key maps of towers, and towers filled from the repository of their base model."""

import pytest
import torch
from safetensors.torch import save_file

from vision.towers import PUBLISHED, build_tower
from vlm.checkpoints.keymap import from_published, to_published
from vlm.errors import CheckpointError
from vlm.families.towers import load_base_tower, module_weights

SIGLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QWEN = {"depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 12, "fullatt_block_indexes": [1]}


def stored(tower, prefix):
    return {prefix + k: v for k, v in tower.state_dict().items()}


def meta(kind, config, **options):
    with torch.device("meta"):
        return build_tower(kind, config, **options)


@pytest.mark.parametrize(("kind", "config", "prefix"), [("siglip", SIGLIP, "vision_model."), ("qwen2_5_vl", QWEN, "visual."), ("qwen2_5_vl", QWEN, "")])
def test_base_tower(tmp_path, kind, config, prefix):
    base = build_tower(kind, config)
    others = {"text_model.embeddings.weight": torch.zeros(3), "logit_scale": torch.zeros(1), "lm_head.weight": torch.zeros(2, 2)}
    save_file({**stored(base, prefix), **others}, tmp_path / "model.safetensors")
    tower = meta(kind, config)
    load_base_tower(tower, tmp_path)
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in tower.state_dict().items())
    half = meta(kind, config)
    load_base_tower(half, tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_layers_behind_the_chosen_one_are_passed_over(tmp_path):
    base = build_tower("siglip", SIGLIP)
    save_file(stored(base, "vision_model."), tmp_path / "model.safetensors")
    tower = meta("siglip", SIGLIP, select_layer=-2)
    load_base_tower(tower, tmp_path)
    assert len(tower.encoder.layers) == 2 and not any(p.is_meta for p in tower.parameters())


def test_a_base_of_another_kind_is_refused(tmp_path):
    state = stored(build_tower("siglip", SIGLIP), "vision_model.")
    save_file({k: v for k, v in state.items() if "layers.1.mlp.fc1" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"vision_model\.encoder\.layers\.1\.mlp\.fc1"):
        load_base_tower(meta("siglip", SIGLIP), tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="shape"):
        load_base_tower(meta("siglip", {**SIGLIP, "intermediate_size": 32}), tmp_path)


def test_key_map_round_trip():
    tower = build_tower("siglip", SIGLIP)
    weights = module_weights(tower, "tower.", "model.vision_tower.vision_tower.vision_model.")
    state = {"tower." + k: v for k, v in tower.state_dict().items()}
    theirs = to_published(weights, state)
    assert set(theirs) == {"model.vision_tower.vision_tower.vision_model." + k for k in tower.state_dict()}
    back = from_published(weights, theirs, {k: tuple(v.shape) for k, v in state.items()})
    assert all(torch.equal(back[k], v) for k, v in state.items())


def test_published_names_have_sizes():
    for config in PUBLISHED.values():
        assert meta("siglip", config, select_layer=-2).side == 27
