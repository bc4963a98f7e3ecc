"""The packed forward equals the padded one, and its loss the sum written out cell by cell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from examples.pocket.train_backbone import FRAME, FREE_WEIGHT, LessonObjective, collate
from kernels.ragged_attention import _padded, ragged_attention, ragged_attention_reference
from tests.training.support import random_pages, tiny_model
from vision.adapter import OF_WORDS
from vlm.families.pocket import PackedPocket, Words
from vlm.training.losses import NOWHERE, UNKNOWN
from vlm.training.trainer import add


def brute_force(model, batch, pad_weight=0.3):
    """Every view of every canvas by itself through the padded path; the three losses written out."""
    config = model.config.backbone
    total = weights = points = begins = 0.0
    pointed = begun = 0
    packed = batch.visual.packed()
    starts = [0, *batch.visual.valid.sum(1).cumsum(0).tolist()]
    for n in range(len(batch.tasks)):
        r = int(batch.row[n])
        size, length = int(batch.prompt_valid[r].sum()), int(batch.valid[n].sum())
        entries = {k: v if k in OF_WORDS else v[starts[r] : starts[r + 1]].unsqueeze(0) for k, v in vars(packed).items()}
        prefix = model.prefix(
            batch.prompt[r : r + 1, :size], batch.prompt_valid[r : r + 1, :size], batch.media[r : r + 1, :size],
            Words(batch.words.rows, batch.words.word[r : r + 1, :size]), type(packed)(**entries),
        )  # fmt: skip
        slots = replace(batch.slots, index=batch.slots.index[n : n + 1, :length], slot=batch.slots.slot[n : n + 1, :length])
        for mask in batch.masks[n, :, :length]:
            ids = batch.ids[n : n + 1, :length]
            hidden, pointing = model.canvas(ids.masked_fill(mask, config.mask_token_id), batch.valid[n : n + 1, :length], slots, prefix)
            logits = model.cell_logits(hidden[0], pointing.copied[0])
            for cell in mask.nonzero()[:, 0].tolist():
                target, pointer = int(ids[0, cell]), int(batch.pointer[n, cell])
                behind_value = cell > 0 and int(ids[0, cell - 1]) != config.pad_token_id
                solid = 1.0 if bool((slots.slot > 0).any()) else FREE_WEIGHT
                weight = pad_weight if target == config.pad_token_id and not behind_value else solid
                total = total - weight * torch.log_softmax(logits[cell], -1)[target]
                weights += weight
                if pointer != UNKNOWN:
                    aim = pointing.scores.shape[-1] - 1 if pointer == NOWHERE else pointer + len(FRAME[0])
                    points = points - (0.3 if pointer == NOWHERE else 1.0) * torch.log_softmax(pointing.scores[0, cell], -1)[aim]
                    pointed += 1
                    if slots.index[0, cell] == 1:
                        begins = begins - pointing.start[0, cell, aim]
                        begun += 1
    return total / weights + points / pointed + 0.5 * begins / begun


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_packed_loss_and_gradients_equal_brute_force(kv_heads):
    model = tiny_model(kv_heads=kv_heads)
    batch = collate(random_pages(), model.config.reader.width)
    parameters = {name: p for name, p in model.named_parameters() if not name.startswith("tower")}
    want = brute_force(model, batch)
    expected = torch.autograd.grad(want, list(parameters.values()))
    objective = LessonObjective(PackedPocket(model))
    loss, stats = objective(batch, objective.totals(batch))
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert stats["text"] + stats["points"] + 0.5 * stats["starts"] == pytest.approx(loss.item(), rel=1e-5)
    got = torch.autograd.grad(loss, list(parameters.values()))
    for name, ours, theirs in zip(parameters, got, expected, strict=True):
        ties = name == "match.weight"  # equal words match equally well: which of them is the best is a matter of rounding
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-4 if ties else 2e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_only_masked_cells_reach_the_head(monkeypatch):
    model = tiny_model()
    batch = collate(random_pages(1), model.config.reader.width)
    rows = []
    inner = model.backbone.logits
    monkeypatch.setattr(model.backbone, "logits", lambda hidden: (rows.append(hidden.shape), inner(hidden))[1])
    objective = LessonObjective(PackedPocket(model))
    objective(batch, objective.totals(batch))
    assert rows == [(int(batch.masks.sum()), 32)]


SPANS = [((0, 3), (0, 3), (0, 5)), ((3, 4), (3, 8), (0, 5)), ((4, 10), (8, 14), (5, 6)), ((10, 12), (14, 16), (6, 6))]


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("way", [ragged_attention, _padded])
def test_ragged_attention_equals_reference_with_gradients(way, past):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 12, 8), torch.randn(2, 16, 8), torch.randn(2, 16, 8)
    old = (torch.randn(2, 6, 8), torch.randn(2, 6, 8)) if past else None
    spans = SPANS if past else [(a, b, (0, 0)) for a, b, _ in SPANS]
    inputs = [t.requires_grad_() for t in (q, k, v, *(old or ()))]
    out, want = way(q, k, v, spans, old), ragged_attention_reference(q, k, v, spans, old)
    torch.testing.assert_close(out, want)
    seed = torch.randn_like(want)
    for ours, theirs in zip(torch.autograd.grad(out, inputs, seed), torch.autograd.grad(want, inputs, seed), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_ragged_attention_rows_do_not_see_each_other():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 12, 8), torch.randn(2, 16, 8), torch.randn(2, 16, 8)
    spans = [(a, b, (0, 0)) for a, b, _ in SPANS]
    before = ragged_attention(q, k, v, spans)
    changed = v.clone()
    changed[:, 8:14] += 1
    after = ragged_attention(q, k, changed, spans)
    assert torch.equal(before[:, :4], after[:, :4]) and torch.equal(before[:, 10:], after[:, 10:])
    assert not torch.allclose(before[:, 4:10], after[:, 4:10])


def test_tensors_are_made_on_the_device_of_the_inputs():
    """With another default device, a tensor made without naming one would meet the inputs and raise."""
    model = tiny_model()
    batch = collate(random_pages(1), model.config.reader.width)
    objective = LessonObjective(PackedPocket(model))
    want = objective(batch, objective.totals(batch))[0]
    with torch.device("meta"):
        loss = objective(batch, objective.totals(batch))[0]
        loss.backward()
    assert loss.item() == want.item()


def test_padding_of_the_batch_changes_nothing():
    """Micro-batches of one page each, under the totals of the batch, add up to the loss of the batch."""
    model = tiny_model()
    objective = LessonObjective(PackedPocket(model))
    parts = [collate([page], model.config.reader.width) for page in random_pages(2)]
    whole = collate(random_pages(2), model.config.reader.width)
    at = 0
    for part in parts:  # the same views in both
        n, length = part.ids.shape
        whole.masks[at : at + n] = False
        whole.masks[at : at + n, :, :length] = part.masks
        at += n
    totals = add([objective.totals(part) for part in parts])
    assert totals == pytest.approx(objective.totals(whole))
    alone = sum(objective(part, totals)[0].item() for part in parts)
    assert alone == pytest.approx(objective(whole, totals)[0].item(), rel=1e-5)
