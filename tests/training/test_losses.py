"""Losses against sums written out; what masks cover."""

from __future__ import annotations

import pytest
import torch

from vlm.errors import ConfigError
from vlm.training.losses import NOWHERE, UNKNOWN, cell_weights, masked_cross_entropy, pointer_loss
from vlm.training.masking import bernoulli_mask, complementary_pair, from_the_end, hybrid_views, sample_ratio, views


def answers(rows: int = 40, length: int = 12) -> torch.Tensor:
    answer = torch.rand(rows, length, generator=torch.Generator().manual_seed(0)) < 0.6
    answer[0] = False
    answer[1] = torch.arange(length) == 3
    return answer


def test_complementary_pair_gives_each_answer_cell_one_gradient():
    answer = answers()
    ratio = torch.rand(len(answer), generator=torch.Generator().manual_seed(1))
    masks = torch.stack(complementary_pair(answer, ratio, torch.Generator().manual_seed(2)), dim=1)  # [N, 2, L]
    assert torch.equal(masks.sum(1), answer.long())
    logits = torch.randn(*masks.shape, 7, generator=torch.Generator().manual_seed(3), requires_grad=True)
    target = torch.randint(0, 7, answer.shape, generator=torch.Generator().manual_seed(4)).unsqueeze(1).expand_as(masks)
    weight, total = cell_weights(masks, answer)
    assert total == answer.sum()
    masked_cross_entropy(logits[masks], target[masks], weight[masks], total).backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert torch.equal(touched, masks)
    want = (torch.softmax(logits.detach(), -1) - torch.nn.functional.one_hot(target, 7)) / total
    torch.testing.assert_close(logits.grad, want * masks.unsqueeze(-1))


def test_first_view_of_a_pair_is_never_empty_and_follows_the_ratio():
    answer = torch.ones(400, 50, dtype=torch.bool)
    first, _ = complementary_pair(answer, torch.full((400,), 0.3), torch.Generator().manual_seed(0))
    assert 0.27 < first.float().mean() < 0.33
    first, second = complementary_pair(answer, torch.zeros(400), torch.Generator().manual_seed(0))
    assert bool((first.sum(1) == 1).all()) and bool((second.sum(1) == 49).all())


def test_views_hide_answers_only_and_all_of_them_at_the_given_chance():
    answer = answers(2000)
    masks = views(answer, all_masked=0.5, generator=torch.Generator().manual_seed(5))
    assert not bool((masks & ~answer.unsqueeze(1)).any())
    long = answer.sum(1) > 3
    whole = (masks[long, 0] == answer[long]).all(-1)
    assert 0.4 < whole.float().mean() < 0.65
    pair = ~whole
    assert torch.equal(masks[long][pair].sum(1), answer[long][pair].long())


def test_bernoulli_mask_has_the_ratio():
    mask = bernoulli_mask(torch.ones(50, 400, dtype=torch.bool), torch.linspace(0.1, 0.9, 50), torch.Generator().manual_seed(0))
    torch.testing.assert_close(mask.float().mean(1), torch.linspace(0.1, 0.9, 50), atol=0.09, rtol=0)


@pytest.mark.parametrize(("policy", "mean"), [("uniform", 0.5), ("logit_normal", 0.5), ("mode", 0.5)])
def test_ratios_lie_in_their_range(policy, mean):
    ratio = sample_ratio(20000, policy, generator=torch.Generator().manual_seed(0))
    assert ratio.min() >= 1e-3 and ratio.max() <= 1
    assert ratio.mean().item() == pytest.approx(mean, abs=0.02)
    shifted = sample_ratio(20000, "logit_normal", mean=1.0, generator=torch.Generator().manual_seed(0))
    assert shifted.mean() > 0.65


@pytest.mark.parametrize("scheme", ["plain", "llada", "realised", "answer"])
def test_weighted_loss_equals_its_formula(scheme):
    answer = answers(6)[1:]
    ratio = torch.rand(len(answer), 2, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    masks = torch.stack([bernoulli_mask(answer, ratio[:, i], torch.Generator().manual_seed(i)) for i in range(2)], dim=1)
    logits = torch.randn(*masks.shape, 5, generator=torch.Generator().manual_seed(3))
    target = torch.randint(0, 5, answer.shape, generator=torch.Generator().manual_seed(4))
    weight, total = cell_weights(masks, answer, ratio, scheme)
    got = masked_cross_entropy(logits[masks], target.unsqueeze(1).expand_as(masks)[masks], weight[masks], total)
    loss, cells, per_view = 0.0, 0, []
    for n in range(len(answer)):
        for v in range(2):
            ce = [-torch.log_softmax(logits[n, v, c], -1)[target[n, c]].item() for c in masks[n, v].nonzero()[:, 0]]
            size, t = int(answer[n].sum()), ratio[n, v].item()
            cells += len(ce)
            per_view.append({"llada": sum(ce) / t / size, "realised": sum(ce) / max(len(ce), 1)}.get(scheme, 0.0))
            loss += sum(ce) / t if scheme == "answer" else sum(ce)
    want = {"plain": loss / cells, "answer": loss / (2 * int(answer.sum()))}.get(scheme, sum(per_view) / len(per_view))
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_1_over_t_is_unbiased():
    """The expectation of LLaDA's weighted loss over masks does not depend on t when losses do not."""
    answer = torch.ones(4000, 20, dtype=torch.bool)
    for t in (0.2, 0.7):
        ratio = torch.full((4000, 1), t)
        masks = bernoulli_mask(answer, ratio[:, 0], torch.Generator().manual_seed(0)).unsqueeze(1)
        weight, total = cell_weights(masks, answer, ratio, "llada")
        assert weight.sum().item() / total == pytest.approx(1.0, abs=0.02)


def test_weights_refuse_what_they_cannot_do():
    masks = torch.ones(1, 1, 3, dtype=torch.bool)
    with pytest.raises(ConfigError, match="unknown loss weighting 'elbo'"):
        cell_weights(masks, masks[:, 0], scheme="elbo")
    with pytest.raises(ConfigError, match="needs the masking ratio"):
        cell_weights(masks, masks[:, 0], scheme="llada")
    with pytest.raises(ConfigError, match="unknown ratio policy"):
        sample_ratio(3, "cosine")


def test_pointer_loss_equals_its_formula():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pointer = torch.tensor([2, NOWHERE, UNKNOWN, 0, NOWHERE])
    log = torch.log_softmax(scores.detach(), -1)
    want = -(log[0, 2] + 0.3 * log[1, 3] + log[3, 0] + 0.3 * log[4, 3])
    loss = pointer_loss(scores, pointer)
    assert loss.item() == pytest.approx(want.item() / 4, rel=1e-5)
    assert pointer_loss(scores, pointer, total=10).item() == pytest.approx(want.item() / 10, rel=1e-5)
    loss.backward()
    assert not scores.grad[2].any() and bool(scores.grad[[0, 1, 3, 4]].any(dim=1).all())


def test_hybrid_views_hide_extents_and_show_their_anchors():
    answer = answers(200)
    extent = answer & (torch.arange(12) >= 8)
    masks = hybrid_views(answer, extent, generator=torch.Generator().manual_seed(6))
    assert masks.shape == (200, 3, 12) and torch.equal(masks[:, 2], extent)
    assert torch.equal(masks[:, :2], views(answer, generator=torch.Generator().manual_seed(6)))
    assert torch.equal(hybrid_views(answer, torch.ones_like(answer))[:, 2], answer)


def test_noise_from_the_end_hides_the_end_of_a_text_first():
    lengths = torch.tensor([10, 4])
    noise = from_the_end(lengths, 12, generator=torch.Generator().manual_seed(0))
    assert noise.shape == (2, 12) and float(noise.min()) >= 0 and float(noise.max()) <= 1
    assert bool((noise[:, :-1] - noise[:, 1:] > -0.16).all())  # lower and lower, up to the jitter
    assert bool((noise[1, 5:] == 0).all())  # behind the text: hidden first
    answer = torch.ones(2, 12, dtype=torch.bool)
    for mask in views(answer, all_masked=0.0, generator=torch.Generator().manual_seed(1), noise=from_the_end(lengths, 12, jitter=0.0)):
        hidden, shown = mask
        assert bool((hidden ^ shown).all())
        cut = int((~hidden).sum())
        assert bool(hidden[cut:].all()) and not bool(hidden[:cut].any())
