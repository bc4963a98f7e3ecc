"""Denoisers over a real (tiny) backbone: cache, padding, shift, guidance, batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlm.backbone.config import BackboneConfig
from vlm.backbone.model import DiffusionBackbone
from vlm.decoding.canvas import Canvas
from vlm.decoding.denoiser import BackboneDenoiser, GuidedDenoiser
from vlm.decoding.initializers import commit_first_cell
from vlm.decoding.loop import run
from vlm.decoding.presets import preset
from vlm.errors import OptionError

CONFIG = BackboneConfig(
    vocab_size=40, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, mask_token_id=39, pad_token_id=0, eos_token_id=1, qkv_bias=True
)


@pytest.fixture(params=[0, 1], ids=["aligned", "shifted"])
def backbone(request: pytest.FixtureRequest) -> DiffusionBackbone:
    torch.manual_seed(3)
    return DiffusionBackbone(replace(CONFIG, logit_shift=request.param)).eval()


def _canvas(lengths: list[int]) -> Canvas:
    return Canvas.from_rows([[None] * n for n in lengths], mask_id=39, pad_id=0)


PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15]]


def _batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, valid = torch.full((3, 6), 3), torch.zeros(3, 6, dtype=torch.bool)
    for i, prompt in enumerate(PROMPTS):
        span = slice(6 - len(prompt), 6) if side == "left" else slice(0, len(prompt))
        ids[i, span], valid[i, span] = torch.tensor(prompt), True
    return ids, valid


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rule", ["prefix", "full"])
def test_batches_of_ragged_prompts_equal_single_prompts(backbone: DiffusionBackbone, rule: str, side: str) -> None:
    lengths = [4, 7, 2]
    together = run(BackboneDenoiser(backbone, *_batch(side), rule=rule), _canvas(lengths), preset("dimple"))
    for i, (prompt, n) in enumerate(zip(PROMPTS, lengths, strict=True)):
        alone = run(BackboneDenoiser(backbone, torch.tensor([prompt]), rule=rule), _canvas([n]), preset("dimple"))
        assert together.ids[i, :n].tolist() == alone.ids[0].tolist()
        assert int(together.forwards[i]) == int(alone.forwards[0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rule", ["prefix", "full"])
def test_only_rows_that_ask_are_computed_and_nothing_changes(backbone: DiffusionBackbone, rule: str, side: str) -> None:
    denoiser = BackboneDenoiser(backbone, *_batch(side), rule=rule)
    canvas = _canvas([4, 4, 4])
    everything = torch.ones_like(canvas.open)
    some = everything.clone()
    some[1] = False
    all_rows = denoiser(canvas, everything).logits.view(3, 4, -1)
    torch.testing.assert_close(denoiser(canvas, some).logits.view(2, 4, -1), all_rows[[0, 2]], rtol=1e-5, atol=1e-5)


def test_embeddings_and_positions_instead_of_ids(backbone: DiffusionBackbone) -> None:
    ids, valid = _batch("left")
    canvas = _canvas([3, 3, 3])
    cells = torch.ones_like(canvas.open)
    base = BackboneDenoiser(backbone, ids, valid)(canvas, cells).logits
    positions = (valid.long().cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        embeds = backbone.embed(ids)
    again = BackboneDenoiser(backbone, embeds, valid, positions=positions, start=valid.sum(1))(canvas, cells).logits
    assert torch.equal(base, again)
    moved = BackboneDenoiser(backbone, embeds, valid, positions=positions, start=valid.sum(1) + 5)(canvas, cells).logits
    assert not torch.allclose(base, moved, atol=1e-3)


def test_guidance_of_scale_zero_is_none(backbone: DiffusionBackbone) -> None:
    prompt = torch.tensor([PROMPTS[0]])
    yes, no = BackboneDenoiser(backbone, prompt), BackboneDenoiser(backbone, torch.full_like(prompt, 39))
    canvas = _canvas([4])
    torch.testing.assert_close(GuidedDenoiser(yes, no, 0.0)(canvas, canvas.open).logits, yes(canvas, canvas.open).logits)
    strong = GuidedDenoiser(yes, no, 2.0)(canvas, canvas.open).logits
    torch.testing.assert_close(strong - no(canvas, canvas.open).logits, 3 * (yes(canvas, canvas.open).logits - no(canvas, canvas.open).logits))


def test_first_cell_rests_on_the_prompt_alone() -> None:
    torch.manual_seed(3)
    backbone = DiffusionBackbone(replace(CONFIG, logit_shift=1)).eval()
    denoiser = BackboneDenoiser(backbone, torch.tensor([PROMPTS[0]]))
    canvas = _canvas([5])
    commit_first_cell(denoiser, canvas)
    assert canvas.masked.tolist() == [[False, True, True, True, True]]
    assert canvas.forwards.tolist() == [1]
    with torch.no_grad():
        cache = backbone.prefill(backbone.embed(torch.tensor([PROMPTS[0]])), torch.arange(6).unsqueeze(0), torch.ones(1, 6, dtype=torch.bool))
        logits = backbone.logits(cache.hidden[:, -1])
    logits[:, 39] = float("-inf")
    assert int(canvas.ids[0, 0]) == int(logits.argmax())


def test_unknown_rule() -> None:
    with pytest.raises(OptionError, match="unknown attention rule 'sideways'"):
        BackboneDenoiser(DiffusionBackbone(CONFIG), torch.tensor([[1]]), rule="sideways")
