"""The backbone: padding, batches, prefix caches, attention rules and positions, in both published layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels.attention
from vlm.backbone.config import BackboneConfig
from vlm.backbone.model import DiffusionBackbone
from vlm.errors import ConfigError

LLADA = BackboneConfig(
    vocab_size=40, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=4, intermediate_size=48, mask_token_id=39, pad_token_id=0, eos_token_id=0
)
DREAM = replace(LLADA, num_kv_heads=2, qkv_bias=True, logit_shift=1, rope_fp32=False, rope_theta=1e6, head_dim=16)
QWEN3 = replace(LLADA, num_kv_heads=1, qk_norm=True, tie_embeddings=True)
LAYOUTS = {"llada": LLADA, "dream": DREAM, "qwen3": QWEN3}


@pytest.fixture(params=LAYOUTS, ids=str)
def backbone(request: pytest.FixtureRequest) -> DiffusionBackbone:
    torch.manual_seed(0)
    model = DiffusionBackbone(LAYOUTS[request.param]).eval()
    for parameter in model.parameters():  # norms and biases that are not trivial
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def _ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 39, (rows, length), generator=torch.Generator().manual_seed(seed))


def _positions(valid: Tensor) -> Tensor:
    return (valid.long().cumsum(1) - 1).clamp_min(0)


@torch.no_grad()
def _hidden(model: DiffusionBackbone, ids: Tensor, valid: Tensor | None = None, **options: Any) -> Tensor:
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    return model(model.embed(ids), _positions(valid), valid, **options)


def _same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(backbone: DiffusionBackbone, side: str) -> None:
    lengths, width = [9, 5, 1], 9
    rows = [_ids(1, n, seed=n) for n in lengths]
    ids, valid = torch.full((3, width), 7), torch.zeros(3, width, dtype=torch.bool)
    spans = [slice(width - n, width) if side == "left" else slice(0, n) for n in lengths]
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        ids[i, span], valid[i, span] = row[0], True
    together = _hidden(backbone, ids, valid)
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        _same(together[i, span], _hidden(backbone, row)[0])
    assert bool(together.isfinite().all())


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefix_cache_is_exact(backbone: DiffusionBackbone, side: str) -> None:
    """Cached prompts of different lengths and canvases of different lengths against the same rule in one pass, row by row."""
    prompts, canvases, width = [7, 3], [4, 6], 7
    ids, valid = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.bool)
    canvas, there = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, dtype=torch.bool)
    whole = []
    for i, (n, m) in enumerate(zip(prompts, canvases, strict=True)):
        row = _ids(1, n + m, seed=n)
        span = slice(width - n, width) if side == "left" else slice(0, n)
        ids[i, span], valid[i, span] = row[0, :n], True
        canvas[i, :m], there[i, :m] = row[0, n:], True
        whole.append(_hidden(backbone, row, prefix_lengths=torch.tensor([n]))[0])
    with torch.no_grad():
        cache = backbone.prefill(backbone.embed(ids), _positions(valid), valid)
        positions = valid.sum(1, keepdim=True) + torch.arange(6)
        cached = backbone(backbone.embed(canvas), positions, there, cache=cache)
        picked = backbone(backbone.embed(canvas[1:]), positions[1:], there[1:], cache=cache.select(torch.tensor([1])))
        doubled = backbone(backbone.embed(canvas[:1]).repeat(2, 1, 1), positions[:1], there[:1].repeat(2, 1), cache=cache.select(torch.tensor([0])).repeat_interleave(2))
    for i, (n, m) in enumerate(zip(prompts, canvases, strict=True)):
        _same(cached[i, :m], whole[i][n:])
        _same(cache.hidden[i][valid[i]], whole[i][:n])
    _same(picked[0], cached[1])
    _same(doubled[1], cached[0])


def test_the_prefix_does_not_see_the_canvas_and_the_canvas_sees_both(backbone: DiffusionBackbone) -> None:
    ids = _ids(1, 8)
    other, earlier = ids.clone(), ids.clone()
    other[0, 7], earlier[0, 0] = (ids[0, 7] + 1) % 39, (ids[0, 0] + 1) % 39
    rule = {"prefix_lengths": torch.tensor([5])}
    base = _hidden(backbone, ids, **rule)
    assert torch.equal(base[0, :5], _hidden(backbone, other, **rule)[0, :5])
    assert bool((base[0, 5:] - _hidden(backbone, other, **rule)[0, 5:]).abs().amax(dim=-1).gt(1e-4).all())
    assert bool((base - _hidden(backbone, earlier, **rule)).abs().amax(dim=-1).gt(1e-4).all())


def test_blocks_appended_to_a_cache_equal_one_block_causal_pass(backbone: DiffusionBackbone) -> None:
    ids, size = _ids(2, 10), 4
    block = torch.arange(10) // size
    rule = (block.unsqueeze(1) >= block).unsqueeze(0)
    whole = _hidden(backbone, ids, rule=rule)
    valid = torch.ones(2, 10, dtype=torch.bool)
    positions = _positions(valid)
    with torch.no_grad():
        embeds = backbone.embed(ids)
        cache = backbone.prefill(embeds[:, :8], positions[:, :8], valid[:, :8], rule[:, :8, :8])
        _same(cache.hidden, whole[:, :8])
        _same(backbone(embeds[:, 8:], positions[:, 8:], valid[:, 8:], cache=cache), whole[:, 8:])
        grown = backbone.prefill(embeds[:, :4], positions[:, :4], valid[:, :4])
        for start in (4, 8):
            grown = backbone.extend(grown, embeds[:, start : start + 4], positions[:, start : start + 4], valid[:, start : start + 4])
    _same(grown.hidden, whole)
    assert grown.keys[0].shape[2] == 10


def test_long_sequences_go_through_the_fused_kernel_with_the_same_result(backbone: DiffusionBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = _ids(2, 12)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, 8:] = False
    written_out = _hidden(backbone, ids, valid)
    monkeypatch.setattr(kernels.attention, "PLAIN_LIMIT", 0)
    _same(_hidden(backbone, ids, valid)[valid], written_out[valid])


def test_three_equal_positions_are_one_position() -> None:
    torch.manual_seed(0)
    plain = DiffusionBackbone(DREAM).eval()
    ids = _ids(1, 6)
    base = _hidden(plain, ids)
    for interleaved in (False, True):
        model = DiffusionBackbone(replace(DREAM, mrope_sections=(2, 3, 3), mrope_interleaved=interleaved)).eval()
        model.load_state_dict(plain.state_dict())
        valid = torch.ones_like(ids, dtype=torch.bool)
        triple = _positions(valid).unsqueeze(-1).expand(-1, -1, 3)
        with torch.no_grad():
            _same(model(model.embed(ids), triple, valid), base)
            moved = triple.clone()
            moved[..., 2] += torch.arange(6) ** 2
            assert not torch.allclose(model(model.embed(ids), moved, valid), base, atol=1e-3), "the width position matters"


def test_positions_are_relative(backbone: DiffusionBackbone) -> None:
    ids = _ids(1, 6)
    valid = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        moved = backbone(backbone.embed(ids), _positions(valid) + 11, valid)
    torch.testing.assert_close(moved, _hidden(backbone, ids), rtol=1e-3, atol=1e-3)


def test_a_head_may_have_more_rows_than_the_embedding() -> None:
    model = DiffusionBackbone(replace(LLADA, vocab_size=36, head_size=40, mask_token_id=35))
    assert model.logits(torch.zeros(1, 32)).shape == (1, 40)
    assert model.token_embed.weight.shape == (36, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_heads": 5}, "not a multiple of num_heads"),
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads"),
        ({"logit_shift": 2}, "logit_shift is 2"),
        ({"mrope_sections": (1, 1, 1)}, "do not fill half a head"),
        ({"tie_embeddings": True, "head_size": 41}, "cannot differ"),
    ],
)
def test_impossible_configurations(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(LLADA, **change)


def test_configurations_survive_json() -> None:
    config = replace(DREAM, mrope_sections=(2, 3, 3))
    assert BackboneConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="unknown keys in backbone config: colour"):
        BackboneConfig.from_dict({**config.to_dict(), "colour": 1})
