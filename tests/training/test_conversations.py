"""Training rows of conversations: targets, merged pictures, losses."""

import pytest
import torch

from tests.families.tiny_vlm import write_vlm
from vlm.checkpoints.load import load
from vlm.families.llada_v import EVERYWHERE
from vlm.processor.messages import ImagePart, Message, TextPart
from vlm.processor.prompt import IdsPart
from vlm.processor.tokenizer import Tokenizer
from vlm.training.conversations import IGNORE, MEDIA, bound_loss, complementary_loss, merge, training_row
from vlm.training.losses import masked_cross_entropy

TURNS = [
    Message("user", (ImagePart("picture"), TextPart("what?"))), Message("assistant", (TextPart("that"),)),
    Message("user", (TextPart("sure?"),)), Message("assistant", (TextPart("yes"),)),
]  # fmt: skip


@pytest.fixture(scope="module", params=["lavida-llada", "lavida-dream", "llada-v"])
def loaded(request, tmp_path_factory):
    folder = write_vlm(tmp_path_factory.mktemp(request.param) / "model", request.param)
    return load(folder), Tokenizer.from_file(folder)


def row_of(loaded, turns=TURNS, **options):
    model, tokenizer = loaded
    return training_row(model.family.template, tokenizer, turns, **options)


def ids_of(row):
    return [token for part in row.prompt.parts for token in (part.ids if isinstance(part, IdsPart) else (MEDIA,))]


def test_answers_and_their_ends_are_targets(loaded):
    row, tokenizer = row_of(loaded), loaded[1]
    ids = ids_of(row)
    assert len(ids) == len(row.labels) == len(row.rounds)
    assert all(label in (IGNORE, token) for label, token in zip(row.labels, ids, strict=True))
    learned = tokenizer.decode([token for token in row.labels if token != IGNORE], specials=True)
    end = "<|im_end|>\n" if "<|im_end|>" in tokenizer.special else "<|eot_id|>"
    assert learned == f"that{end}yes{end}"
    assert set(row.rounds) == {0, 1} and list(row.rounds) == sorted(row.rounds)


def test_headers_and_tokens_learned_everywhere(loaded):
    if "<|eot_id|>" not in loaded[1].special:
        pytest.skip("a format without these tokens")
    row = row_of(loaded, TURNS[:2], header=True, everywhere=EVERYWHERE)
    learned = loaded[1].decode([token for token in row.labels if token != IGNORE], specials=True)
    opening = "<|start_header_id|><|end_header_id|>"
    assert learned == f"<|startoftext|>{opening}<|eot_id|>{opening}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nthat<|eot_id|>"


def test_a_batch_learns_what_its_rows_learn_alone(loaded):
    """Nothing sees the filler of shorter rows; under the quirk everything does."""
    backbone = loaded[0].model.backbone
    rows = [row_of(loaded), row_of(loaded, TURNS[:2])]
    features = [[torch.randn(7, 32)], [torch.randn(3, 32)]]
    together = merge(backbone, rows, features)
    assert together.embeds.shape[:2] == together.ids.shape and int((together.ids == MEDIA).sum()) == 10
    noise = torch.rand(together.ids.shape)
    ratio = torch.tensor([0.3, 0.6])
    whole = complementary_loss(backbone, together, ratio, noise=noise)
    total, count = 0.0, 0
    for i in range(2):
        alone = merge(backbone, rows[i : i + 1], features[i : i + 1])
        n = alone.ids.shape[1]
        assert torch.equal(alone.labels[0], together.labels[i, :n])
        loss = complementary_loss(backbone, alone, ratio[i : i + 1], noise=noise[i : i + 1, :n])
        total += loss.value.item() * int(loss.masks.sum())
        count += int(loss.masks.sum())
    assert int(whole.masks.sum()) == count == int((together.labels != IGNORE).sum())
    assert whole.value.item() == pytest.approx(total / count, rel=1e-5)
    quirk = merge(backbone, rows, features, reference_quirks=True)
    assert bool(quirk.valid.all()) and not bool(together.valid.all())
    assert complementary_loss(backbone, quirk, ratio, noise=noise).value.item() != pytest.approx(whole.value.item(), rel=1e-6)


def test_pictures_learn_too_and_markers_are_never_hidden(loaded):
    backbone, feature = loaded[0].model.backbone, torch.randn(5, 32, requires_grad=True)
    batch = merge(backbone, [row_of(loaded, TURNS[:2])], [[feature]])
    marker = int(batch.labels[0][batch.labels[0] != IGNORE][0])
    loss = complementary_loss(backbone, batch, torch.tensor([0.5]), never=[marker])
    loss.value.backward()
    assert feature.grad is not None and float(feature.grad.abs().sum()) > 0
    assert not bool((loss.masks & (batch.ids == marker).repeat(2, 1)).any())


def test_bound(loaded):
    """Cross-entropy over ratio and answer length, by hand; with causal rounds the first answer ignores the second round."""
    backbone = loaded[0].model.backbone
    rows, features = [row_of(loaded)], [[torch.randn(4, 32)]]
    batch = merge(backbone, rows, features)
    noise, ratio = torch.rand(batch.ids.shape), torch.tensor([0.7])
    loss = bound_loss(backbone, batch, ratio, noise=noise)
    target = batch.labels[loss.masks]
    by_hand = masked_cross_entropy(loss.logits, target, torch.full((len(target),), 1 / 0.7), int((batch.labels != IGNORE).sum()))
    assert loss.value.item() == pytest.approx(float(by_hand), rel=1e-5)
    changed = merge(backbone, rows, features)
    changed.embeds = torch.where((changed.rounds == 1).unsqueeze(-1), changed.embeds + 1, changed.embeds)
    early = (batch.rounds == 0)[loss.masks]
    for causal in (True, False):
        a, b = (bound_loss(backbone, x, ratio, noise=noise, rounds_are_causal=causal).logits[early] for x in (batch, changed))
        assert torch.allclose(a, b, atol=1e-5) == causal


