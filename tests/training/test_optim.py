"""Muon, the schedule, the average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlm.errors import CheckpointError
from vlm.training.optim import EMA, Muon, Optimisers, orthogonalise, warmup_stable_decay


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_orthogonalise_keeps_directions_and_evens_out_lengths(shape):
    torch.manual_seed(0)
    update = torch.randn(shape)
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    out = orthogonalise(update)
    assert out.shape == update.shape and out.dtype == update.dtype
    inner = u.T @ out @ v.T  # in the basis of the update: diagonal, entries about 1
    strong = s > 0.2 * s.max()  # the smallest directions of a square matrix need more than five iterations
    assert inner.diagonal()[strong].min() > 0.6 and inner.diagonal().max() < 1.3
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 0.1


def test_muon_takes_convolutions_as_matrices_and_scales_tall_ones():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(32, 2, 2, 2))
    weight.grad = torch.randn_like(weight)
    Muon([weight], lr=0.1).step()
    lengths = torch.linalg.svdvals(weight.detach().flatten(1)) / (0.1 * (32 / 8) ** 0.5)
    assert lengths.min() > 0.6 and lengths.max() < 1.3


def test_embeddings_heads_and_vectors_go_to_adam():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "lin": nn.Linear(3, 3), "head": nn.Linear(3, 4)})
    muon, adam = Optimisers(model).optimisers
    assert [p is model["lin"].weight for p in muon.param_groups[0]["params"]] == [True]
    assert len(adam.param_groups[0]["params"]) == 4


def test_step_clips_the_whole_gradient_and_follows_the_factor():
    model = nn.Linear(3, 1)
    optim = Optimisers(model, adam_lr=0.5, is_matrix=lambda name, p: False, clip=1.0)
    for p in model.parameters():
        p.grad = torch.full_like(p, 10.0)
    before = model.bias.detach().clone()
    assert optim.step(0.2) == pytest.approx(20.0)
    assert (before - model.bias.detach()).item() == pytest.approx(0.1, rel=1e-3)  # Adam's first step is the rate
    assert model.bias.grad is None


def test_schedule_rises_stays_and_falls():
    values = [warmup_stable_decay(x, warmup=0.1, decay=0.4) for x in (0, 0.05, 0.1, 0.5, 0.6, 0.8, 1.0)]
    assert values == pytest.approx([1e-3, 0.5, 1, 1, 1, 0.5, 0])


def test_average_follows_its_formula_and_copies_counters():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.9)
    want = model.weight.detach().clone()
    for i in range(3):
        with torch.no_grad():
            model.weight.fill_(i + 2.0)
        model.num_batches_tracked += 1
        ema.update(model)
        want = 0.9 * want + 0.1 * (i + 2.0)
    torch.testing.assert_close(ema.state_dict()["weight"], want)
    assert int(ema.state_dict()["num_batches_tracked"]) == 3
    other = EMA(nn.BatchNorm1d(2), decay=0.9)
    other.load_state_dict(ema.state_dict())
    torch.testing.assert_close(other.average["weight"], want)
    with pytest.raises(CheckpointError, match="does not fit"):
        EMA(nn.Linear(2, 2)).load_state_dict(ema.state_dict())
