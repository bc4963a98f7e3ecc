"""Data of the training scripts: order depends on seed and place only, so a resumed run sees what it would have seen."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from examples.pocket.page import families
from examples.pocket.reader_data import render_mosaic
from examples.pocket.train_backbone import LessonBatches, Settings
from examples.pocket.train_reader import EMPTY_CHAR, HeldOut, ReaderObjective, ShardBatches, as_pixels
from vision.reader import ReaderConfig, ReaderTower
from vlm.training.trainer import add


@pytest.fixture(scope="module", autouse=True)
def fonts():
    if shutil.which("fc-list") is None:
        pytest.skip("fc-list is not installed")
    if not families(False):
        pytest.skip("no fonts for drawing pages")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of three small pages, one with things."""
    folder = tmp_path_factory.mktemp("shards")
    for n in range(2):
        pages = [render_mosaic(10 * n + i) for i in range(3)]
        pages = [(pixels[:80, :96], *(t[..., :10, :12] for t in targets)) for pixels, *targets in pages]
        rows = {k: np.stack([p[i] for p in pages]) for i, k in enumerate(("pixels", "classes", "boxes", "blanks"))}
        if n:
            things = np.zeros((3, 10, 12), np.uint8)
            things[:, 2, 3], things[:, 5, 5] = 7, 255
            rows |= {"things": things, "colors": np.where(things == 7, 4, 0).astype(np.uint8), "thing_boxes": np.full((3, 4, 10, 12), 0.3, np.float16)}
        np.savez(folder / f"shard-{n:05d}.npz", **rows)
    return folder


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert torch.equal(a[k], b[k]), k


def test_shard_batches_go_on_where_they_were(shards):
    whole = ShardBatches(shards, 2, seed=1)
    for _ in range(3):
        next(whole)
    state = whole.state_dict()
    resumed = ShardBatches(shards, 2, seed=1)
    resumed.load_state_dict(state)
    drawn = [next(whole) for _ in range(4)]
    for batch in drawn:
        same(batch, next(resumed))
    assert not all(torch.equal(drawn[0]["pixels"], b["pixels"]) for b in drawn[1:])


def test_new_shards_are_taken_up(shards, tmp_path):
    shutil.copy(shards / "shard-00000.npz", tmp_path)
    data = ShardBatches(tmp_path, 2, seed=0)
    next(data)
    shutil.copy(shards / "shard-00001.npz", tmp_path)
    kinds = {"things" in next(data) for _ in range(80)}
    assert kinds == {False, True}


def test_reader_loss_of_parts_under_common_totals_is_the_loss_of_the_whole(shards):
    torch.manual_seed(0)
    model = ReaderTower(ReaderConfig(stem=(4, 8), width=12, stem_blocks=1, blocks=1)).eval()
    objective = ReaderObjective(model)
    rows = {k: torch.from_numpy(v) for k, v in np.load(shards / "shard-00001.npz").items()}
    rows["pixels"] = as_pixels(rows["pixels"])
    parts = [{k: v[i : i + 1] for k, v in rows.items()} for i in range(3)]
    totals = add([objective.totals(p) for p in parts])
    assert totals == pytest.approx(objective.totals(rows))
    loss, stats = objective(rows, totals)
    assert sum(objective(p, totals)[0].item() for p in parts) == pytest.approx(loss.item(), rel=1e-5)
    assert {"chars", "place", "things", "right"} <= stats.keys()
    unlabelled = {**rows, "things": rows["things"].clone()}
    unlabelled["things"][:, 5, 5] = 0  # 255 is 'not labelled': making it 'nothing' changes the loss
    assert objective.totals(unlabelled)["things"] > totals["things"]


def test_reader_loss_equals_its_formula_on_text(shards):
    torch.manual_seed(0)
    model = ReaderTower(ReaderConfig(stem=(4, 8), width=12, stem_blocks=1, blocks=1)).eval()
    rows = {k: torch.from_numpy(v[:1]) for k, v in np.load(shards / "shard-00000.npz").items()}
    rows["pixels"] = as_pixels(rows["pixels"])
    objective = ReaderObjective(model)
    loss, _ = objective(rows, objective.totals(rows))
    with torch.no_grad():
        out = model(rows["pixels"])
    sums = dict.fromkeys(("chars", "weight", "place", "ink", "gaps", "told", "things", "cells"), 0.0)
    for y in range(10):
        for x in range(12):
            sums["things"] -= float(torch.log_softmax(out.things[0, :, y, x], 0)[0])
            sums["cells"] += 1
            for side in range(2):
                c = int(rows["classes"][0, side, y, x])
                w = 1.0 if c else EMPTY_CHAR
                sums["chars"] -= w * float(torch.log_softmax(out.chars[0, side, :, y, x], 0)[c])
                sums["weight"] += w
                if c:
                    d = (out.char_boxes[0, side, :, y, x] - rows["boxes"][0, side, :, y, x].float()).abs()
                    sums["place"] += float(torch.where(d < 0.1, d * d / 0.2, d - 0.05).mean())
                    sums["ink"] += 1
                    b = int(rows["blanks"][0, side, y, x])
                    if b < 2:
                        p = torch.sigmoid(out.blanks[0, side, y, x])
                        sums["gaps"] -= float(torch.log(p if b else 1 - p))
                        sums["told"] += 1
    s = sums
    want = s["chars"] / s["weight"] + s["place"] / s["ink"] + 0.3 * s["gaps"] / s["told"] + s["things"] / s["cells"]
    assert loss.item() == pytest.approx(want, rel=1e-4)


def test_held_out_figures_are_means_over_batches(shards):
    torch.manual_seed(0)
    figures = HeldOut(shards, "cpu", size=2)(ReaderTower(ReaderConfig()).state_dict())
    assert 0 <= figures["right"] <= 1 and 0 <= figures["false_ink"] <= 1 and "things" in figures


def lesson_batches(**settings):
    return LessonBatches(Settings("none", 3, 1.0, "first"), 12, budget=900, pool=4, **{"workers": 0, **settings})


def test_lesson_batches_go_on_where_they_were():
    whole = lesson_batches()
    for _ in range(2):
        whole.group()
    state = whole.state_dict()
    resumed = lesson_batches()
    resumed.load_state_dict(state)
    for _ in range(3):
        ours, theirs = whole.group(), resumed.group()
        assert [len(a[0]) for a in ours] == [len(b[0]) for b in theirs]
        for (_, _, a), (_, _, b) in zip(ours, theirs, strict=True):
            assert all((x.ids == y.ids).all() and (x.pointer == y.pointer).all() for x, y in zip(a, b, strict=True))


def test_workers_make_the_same_items_in_the_same_order():
    alone, helped = lesson_batches(), lesson_batches(workers=2)
    for _ in range(3):
        for (a, _, x), (b, _, y) in zip(alone.group(), helped.group(), strict=True):
            assert (a.classes == b.classes).all() and len(x) == len(y)
    assert all(worker.is_alive() for worker in helped._items.workers)


def test_groups_stay_under_the_budget():
    data = lesson_batches()
    for _ in range(4):
        batch = next(data)
        n, length = batch.ids.shape
        assert batch.visual.valid.shape[0] >= 1
        assert batch.row.tolist() == sorted(batch.row.tolist())
        pages = len({tuple(r.tolist()) for r in batch.visual.kind})
        assert pages == 1 or pages * batch.visual.valid.shape[1] + 2 * n * length <= 900
        assert not bool((batch.masks & ~batch.answer.unsqueeze(1)).any()) and bool((batch.answer <= batch.valid).all())
