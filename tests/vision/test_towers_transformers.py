"""Towers against transformers' own modules on tiny random configurations, in float32."""

import importlib
import re

import pytest
import torch

from tests.vision.test_towers import QWEN, SIGLIP, TOLERANCE, error, shaken
from vision.towers import VisionTower, build_tower

transformers = pytest.importorskip("transformers", reason="transformers is not installed, there is nothing to compare with")

GRIDS = [[(1, 4, 6)], [(1, 2, 2)], [(1, 10, 14), (1, 6, 4), (1, 8, 8)], [(3, 6, 10), (1, 4, 6), (2, 4, 4)]]


def twin(tower, module):
    """The tower with the weights of the published module; keys must be the same, but for those the tower ignores."""
    state = {k.removeprefix("vision_model."): v for k, v in module.state_dict().items()}
    wanted = set(tower.state_dict())
    extra = {k for k in state if k not in wanted}
    assert wanted <= set(state)
    assert all(any(re.fullmatch(p, k) for p in tower.ignored) for k in extra), extra
    assert not any(re.fullmatch(p, k) for p in tower.ignored for k in wanted)
    tower.load_state_dict({k: v for k, v in state.items() if k in wanted})
    return tower.eval()


@pytest.mark.parametrize("layer", [None, -1, -2, -4, 0, 2])
def test_siglip(layer):
    module = shaken(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**{k: v for k, v in SIGLIP.items() if k != "num_patches"})))
    tower = twin(build_tower("siglip", SIGLIP, select_layer=layer), module)
    pixels = torch.randn(3, 3, 46, 46)
    with torch.no_grad():
        out = module(pixels, output_hidden_states=True)
        ours = tower(pixels)
    theirs = out.last_hidden_state if layer is None else out.hidden_states[layer]
    assert error(ours, theirs) <= TOLERANCE
    assert ours.shape == (3, tower.side**2, tower.width) and tower.layout == "views" and isinstance(tower, VisionTower)


@pytest.mark.parametrize("layer", [None, -2])
def test_siglip2_naflex(layer):
    config = transformers.Siglip2VisionConfig(**{k: v for k, v in SIGLIP.items() if k != "image_size"})
    module = shaken(transformers.Siglip2VisionModel(config))
    tower = twin(build_tower("siglip2_naflex", SIGLIP, select_layer=layer), module)
    shapes = torch.tensor([[4, 6], [7, 7], [2, 9], [12, 2], [1, 1]])
    pixels = torch.randn(5, 50, 14 * 14 * 3)
    valid = torch.arange(50) < shapes.prod(1, keepdim=True)
    with torch.no_grad():
        out = module(pixels, valid.long(), shapes, output_hidden_states=True)
        ours = tower(pixels, shapes)
    theirs = out.last_hidden_state if layer is None else out.hidden_states[layer]
    assert error(ours[valid], theirs[valid]) <= TOLERANCE
    assert not ours[~valid].any() and tower.layout == "padded"


def published(kind):
    """transformers' module with the sizes of QWEN[kind]."""
    whole, part = {
        "qwen2_vl": ("Qwen2VLConfig", "Qwen2VisionTransformerPretrainedModel"),
        "qwen2_5_vl": ("Qwen2_5_VLConfig", "Qwen2_5_VisionTransformerPretrainedModel"),
        "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLVisionModel"),
    }[kind]
    modeling = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    return getattr(modeling, part)._from_config(getattr(transformers, whole)(vision_config=dict(QWEN[kind])).vision_config)


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("kind", list(QWEN))
def test_qwen(kind, grids):
    module = shaken(published(kind))
    tower = twin(build_tower(kind, QWEN[kind]), module)
    grid = torch.tensor(grids)
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * tower.config.patch**2)
    with torch.no_grad():
        out = module(pixels, grid)
        ours = tower.encode(pixels, grid)
        assert torch.equal(tower(pixels, grid), ours.merged)
    assert error(ours.hidden, out.last_hidden_state) <= TOLERANCE
    assert error(ours.merged, out.pooler_output) <= TOLERANCE
    assert len(ours.deepstack) == len(tower.config.deepstack)
    for mine, yours in zip(ours.deepstack, out.deepstack_features if ours.deepstack else (), strict=True):
        assert error(mine, yours) <= TOLERANCE
    assert ours.merged.shape == (len(pixels) // 4, tower.width) and isinstance(tower, VisionTower)
