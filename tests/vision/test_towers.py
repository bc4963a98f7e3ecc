"""Towers by themselves: batches, gradients, memory, dtypes, published sizes, and what they refuse."""

import sys

import pytest
import torch

from vision.errors import DependencyError, VisionConfigError
from vision.towers import KINDS, VisionTower, build_tower
from vision.towers.qwen_layout import positions, segments, window_order
from vision.towers.timm_vit import import_timm

TOLERANCE = 1e-5
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 46, "patch_size": 14,
    "num_patches": 49, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
QWEN = {
    "qwen2_vl": {"depth": 3, "embed_dim": 32, "hidden_size": 24, "num_heads": 4, "mlp_ratio": 3, "hidden_act": "quick_gelu"},
    "qwen2_5_vl": {
        "depth": 4, "hidden_size": 32, "intermediate_size": 44, "num_heads": 4, "window_size": 56, "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 24, "hidden_act": "silu",
    },
    "qwen3_vl": {
        "depth": 4, "hidden_size": 32, "intermediate_size": 44, "num_heads": 4, "out_hidden_size": 24, "patch_size": 16,
        "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2],
    },
}  # fmt: skip



def shaken(module, seed=0):
    """Every parameter away from its initial value, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            plain = parameter.ndim < 2
            parameter.copy_((1.0 if plain and name.endswith("weight") else 0.0) + noise * (0.3 if plain else parameter[0].numel() ** -0.5 * 1.5))
    return module.eval()


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))


def test_naflex_rows_do_not_touch_each_other():
    tower = shaken(build_tower("siglip2_naflex", SIGLIP))
    pixels, shapes = torch.randn(2, 40, 588), torch.tensor([[4, 6], [5, 8]])
    with torch.no_grad():
        both = tower(pixels, shapes)
        alone = tower(pixels[:1, :24], shapes[:1])
    assert error(both[:1, :24], alone) <= TOLERANCE


@pytest.mark.parametrize("kind", list(QWEN))
def test_pictures_in_one_call_do_not_touch_each_other(kind):
    tower = shaken(build_tower(kind, QWEN[kind]))
    grids = [(1, 6, 10), (1, 4, 4), (1, 6, 10)]
    sizes = [h * w for _, h, w in grids]
    pixels = torch.randn(sum(sizes), 6 * tower.config.patch**2)
    with torch.no_grad():
        together = tower(pixels, torch.tensor(grids)).split([n // 4 for n in sizes])
        alone = [tower(p, torch.tensor([g])) for p, g in zip(pixels.split(sizes), grids, strict=True)]
    assert max(error(a, b) for a, b in zip(together, alone, strict=True)) <= TOLERANCE


@pytest.mark.parametrize("kind", list(QWEN))
def test_gradients_reach_every_parameter(kind):
    tower = shaken(build_tower(kind, QWEN[kind]))
    out = tower.encode(torch.randn(24, 6 * tower.config.patch**2), torch.tensor([[1, 4, 6]]))
    (out.merged.square().sum() + sum(d.square().sum() for d in out.deepstack)).backward()
    idle = {name for name, p in tower.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == set()


@pytest.mark.parametrize("kind", list(QWEN))
def test_a_grid_seen_in_inference_mode_can_be_trained_on(kind):
    tower = shaken(build_tower(kind, QWEN[kind]))
    pixels, grid = torch.randn(2 * 40, 6 * tower.config.patch**2), torch.tensor([[2, 4, 10]])
    with torch.inference_mode():
        before = tower(pixels, grid).clone()
    out = tower(pixels, grid)
    out.sum().backward()
    assert error(out.detach(), before) <= TOLERANCE and tower.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("kind", ["siglip", "siglip2_naflex", *QWEN])
def test_towers_are_built_without_memory_and_run_in_bf16(kind):
    config = {**SIGLIP, **QWEN.get(kind, {})} if kind in QWEN else SIGLIP
    with torch.device("meta"):
        empty = build_tower(kind, config)
    assert all(p.is_meta for p in empty.parameters())
    tower = shaken(build_tower(kind, config))
    half = build_tower(kind, config).to(torch.bfloat16).eval()
    half.load_state_dict(tower.state_dict())
    if kind == "siglip":
        inputs = (torch.randn(2, 3, 46, 46), None)
    elif kind == "siglip2_naflex":
        inputs = (torch.randn(1, 24, 588), torch.tensor([[4, 6]]))
    else:
        inputs = (torch.randn(24, 6 * tower.config.patch**2), torch.tensor([[1, 4, 6]]))
    with torch.no_grad():
        exact, rough = tower(*inputs), half(*inputs)
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).norm() / exact.norm()) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", ["siglip", *QWEN])
def test_gpu_agrees_with_cpu(kind):
    tower = shaken(build_tower(kind, QWEN.get(kind, SIGLIP)))
    if kind == "siglip":
        inputs = (torch.randn(2, 3, 46, 46), None)
    else:
        inputs = (torch.randn(60, 6 * tower.config.patch**2), torch.tensor([[1, 6, 10]]))
    with torch.no_grad():
        cpu = tower(*inputs)
        gpu = tower.cuda()(*(x if x is None else x.cuda() for x in inputs)).cpu()
    assert error(gpu, cpu) <= 1e-3  # TF32 aside, the same sums in another order


def test_merge_order_and_windows():
    place = positions(((1, 4, 4),), 2).tolist()
    assert place[:8] == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    order = window_order(((2, 6, 10), (1, 4, 4)), 2, 2)
    assert sorted(order.index.tolist()) == list(range(2 * 15 + 4))
    assert order.index[:4].tolist() == [0, 1, 5, 6] and order.index[8:10].tolist() == [4, 9]
    assert order.lengths == (16, 16, 8, 8, 8, 4) * 2 + (16,)
    runs = segments((3, 5, 3))
    assert [g.tolist() for g in runs.groups] == [[[0, 1, 2], [8, 9, 10]], [[3, 4, 5, 6, 7]]] and not runs.whole
    assert segments((4, 4)).whole


def test_published_sizes():
    """The real sizes build (without memory) and have the number of parameters the checkpoints have."""
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14}
    with torch.device("meta"):
        siglip = build_tower("siglip", so400m, select_layer=-2)
        qwen2 = build_tower("qwen2_vl", {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584, "in_chans": 3})
        qwen25 = build_tower("qwen2_5_vl", {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584})
    assert siglip.side == 27 and len(siglip.encoder.layers) == 26
    assert siglip.ignored[-1] == r"encoder\.layers\.(26)\..*"
    assert (qwen2.width, qwen2.config.hidden, len(qwen2.blocks)) == (3584, 5120, 32)
    assert (qwen25.config.window, qwen25.config.full_blocks) == (4, (7, 15, 23, 31))
    assert tuple(qwen25.state_dict()["patch_embed.proj.weight"].shape) == (1280, 3, 2, 14, 14)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("siglip", {"hidden_act": "swish7"}), ("siglip", {"num_attention_heads": 5}), ("siglip", {"hidden_size": "32"}), ("siglip", {"patch_size": 0}),
        ("siglip2_naflex", {"num_patches": 50}), ("qwen2_5_vl", {"fullatt_block_indexes": [4]}), ("qwen2_5_vl", {"window_size": 14}),
        ("qwen3_vl", {"num_position_embeddings": 24}), ("qwen2_vl", {"num_heads": 3}), ("clip", {}),
    ],
)  # fmt: skip
def test_configs_that_make_no_sense(kind, change):
    with pytest.raises(VisionConfigError) as caught:
        build_tower(kind, {**QWEN.get(kind, SIGLIP), **change})
    assert caught.value.remedy


def test_select_layer_is_checked():
    with pytest.raises(VisionConfigError):
        build_tower("siglip", SIGLIP, select_layer=5)
    with pytest.raises(VisionConfigError):
        build_tower("qwen2_vl", QWEN["qwen2_vl"], select_layer=-2)


def test_inputs_that_do_not_fit():
    siglip, naflex, qwen = build_tower("siglip", SIGLIP), build_tower("siglip2_naflex", SIGLIP), build_tower("qwen2_vl", QWEN["qwen2_vl"])
    size = 6 * 14 * 14
    for call in (
        lambda: siglip(torch.zeros(1, 3, 48, 46)),
        lambda: siglip(torch.zeros(1, 3, 46, 46), torch.tensor([[1, 1]])),
        lambda: naflex(torch.zeros(1, 24, 588)),
        lambda: naflex(torch.zeros(1, 24, 588), torch.tensor([[5, 5]])),
        lambda: qwen(torch.zeros(16, size)),
        lambda: qwen(torch.zeros(16, size), torch.tensor([[1, 4, 6]])),
        lambda: qwen(torch.zeros(15, size), torch.tensor([[1, 3, 5]])),
        lambda: qwen(torch.zeros(16, size - 1), torch.tensor([[1, 4, 4]])),
    ):
        with pytest.raises(VisionConfigError):
            call()


def timm_missing():
    try:
        import_timm()
    except DependencyError as caught:
        return str(caught)
    return ""


@pytest.mark.skipif(bool(timm_missing()), reason=timm_missing() or "timm is there")
@pytest.mark.parametrize("layer", [None, -1, -2])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_timm(name, layer):
    tower = build_tower("timm", {"model_name": name, "image_size": 112}, select_layer=layer).eval()
    model = tower.model
    pixels = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        ours = tower(pixels)
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels))))
        for block in list(model.blocks)[: len(model.blocks) + 1 + (-1 if layer is None else layer)]:
            x = block(x)
        theirs = (model.norm(x) if layer is None else x)[:, model.num_prefix_tokens :]
    assert ours.shape == (2, tower.side**2, tower.width) and error(ours, theirs) <= TOLERANCE
    assert isinstance(tower, VisionTower)


def test_timm_missing_is_a_typed_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DependencyError, match="extra"):
        build_tower("timm", {"model_name": "vit_tiny_patch16_224"})
    assert "timm" in KINDS
