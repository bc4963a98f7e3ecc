"""The loop: what is interrupted goes on as if nothing had happened; micro-batches are one batch."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from examples.pocket.train_backbone import LessonObjective, collate
from tests.training.support import random_pages, tiny_model
from vlm.errors import CheckpointError, ConfigError
from vlm.families.pocket import PackedPocket
from vlm.training.trainer import Trainer, TrainerConfig, move, save_atomically


class Numbers:
    """Batch n is drawn from seed n; one batch may send Ctrl-C."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.n, self.interrupt_at = 0, interrupt_at

    def __next__(self):
        if self.n == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(self.n))
        self.n += 1
        return {"x": x, "y": x.sum(-1, keepdim=True)}

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


class Regression:
    """Squared error under dropout, so that the random state matters."""

    def __init__(self, model: nn.Module, dropout: float = 0.2) -> None:
        self.model, self.dropout = model, dropout

    def totals(self, batch):
        return {"rows": float(len(batch["x"]))}

    def __call__(self, batch, totals):
        error = self.model(nn.functional.dropout(batch["x"], self.dropout)) - batch["y"]
        return error.square().sum() / totals["rows"], {"worst": float(error.detach().abs().max())}


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def trainer(out, *, data=None, evaluate=None, fresh=False, new_schedule=False, **settings):
    model = network()
    config = TrainerConfig(**{"steps": 8, "precision": "fp32", "log_every": 2, **settings})
    return Trainer(model, Regression(model), data or Numbers(), config, out, evaluate=evaluate, fresh=fresh, new_schedule=new_schedule)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("accumulate", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, accumulate):
    assert trainer(tmp_path / "whole.pt", accumulate=accumulate).run()
    assert not trainer(tmp_path / "parts.pt", data=Numbers(interrupt_at=3 * accumulate), accumulate=accumulate).run()
    torch.rand(100)  # the process goes on and draws other numbers
    resumed = trainer(tmp_path / "parts.pt", accumulate=accumulate)
    assert resumed.step == 4  # the step that Ctrl-C fell into was finished
    assert resumed.run()
    whole, parts = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    for state in (whole, parts):
        assert state["schedule"].pop("seconds") > 0
    assert whole["step"] == 8 and whole["data"] == {"n": 8 * accumulate}
    for key in whole:
        assert equal(whole[key], parts[key]), key


def test_a_finished_run_begins_a_new_schedule_with_its_weights(tmp_path):
    trainer(tmp_path / "x.pt", steps=4).run()
    again = trainer(tmp_path / "x.pt", steps=4)
    assert (again.step, again.progress()) == (4, 0.0)
    again.run()
    assert again.step == 8
    assert trainer(tmp_path / "x.pt", fresh=True).step == 0


def test_an_interrupted_schedule_can_be_replaced(tmp_path):
    trainer(tmp_path / "x.pt", data=Numbers(interrupt_at=3)).run()
    assert trainer(tmp_path / "x.pt").progress() == pytest.approx(0.5)
    assert trainer(tmp_path / "x.pt", new_schedule=True).progress() == 0.0


def test_checkpoints_of_the_first_scripts_resume(tmp_path):
    """They held model, ema, optim and step only."""
    first = trainer(tmp_path / "x.pt", steps=3)
    first.run()
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    torch.save({k: saved[k] for k in ("model", "ema", "optim", "step")}, tmp_path / "x.pt")
    resumed = trainer(tmp_path / "x.pt", steps=3)
    assert (resumed.step, resumed.progress()) == (3, 0.0)
    assert equal(resumed.model.state_dict(), first.model.state_dict()) and equal(resumed.optim.state_dict(), first.optim.state_dict())
    assert resumed.run() and resumed.step == 6


def test_minutes_count_over_interruptions(tmp_path):
    run = trainer(tmp_path / "x.pt", steps=None, minutes=2.0, data=Numbers(interrupt_at=1))
    run.seconds = 90.0
    run.run()
    assert 0.75 <= trainer(tmp_path / "x.pt", steps=None, minutes=2.0).progress() < 0.9


def test_micro_batches_equal_one_big_batch(tmp_path):
    """Of unequal size, under the real objective, over two updates: same weights."""
    results = []
    for accumulate in (1, 3):
        model = tiny_model()
        parts = [collate([page], model.config.reader.width) for page in random_pages(2)]
        whole = collate(random_pages(2), model.config.reader.width)
        at = 0
        for i, part in enumerate(parts):
            n, length = part.ids.shape
            part.masks = torch.zeros_like(part.masks)
            part.masks[:, 0] = part.answer & (torch.rand(n, length, generator=torch.Generator().manual_seed(i)) < 0.5)
            part.masks[:, 1] = part.answer & ~part.masks[:, 0]
            whole.masks[at : at + n] = False
            whole.masks[at : at + n, :, :length] = part.masks
            at += n
        feed = parts * 2 if accumulate == 3 else [whole] * 2
        config = TrainerConfig(steps=2, precision="fp32", accumulate=accumulate, muon_lr=1e-3, adam_lr=1e-3)
        run = Trainer(model, LessonObjective(PackedPocket(model)), iter(feed), config, tmp_path / f"{accumulate}.pt")
        stats = [run.train_step(0.5) for _ in range(2)]
        results.append((stats, model.state_dict()))
    (one, weights), (three, others) = results
    for a, b in zip(one, three, strict=True):
        assert (a["loss"], a["norm"]) == pytest.approx((b["loss"], b["norm"]), rel=2e-3)
    assert one[0]["loss"] == pytest.approx(three[0]["loss"], rel=1e-5) and one[0]["norm"] == pytest.approx(three[0]["norm"], rel=1e-4)
    for name, value in weights.items():  # Muon rounds to bf16: the rates bound the difference
        torch.testing.assert_close(value, others[name], atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_bf16_autocast_trains_float32_weights(tmp_path):
    seen = []
    model = network()
    objective = Regression(model)
    model[0].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    run = Trainer(model, objective, Numbers(), TrainerConfig(steps=2, precision="bf16"), tmp_path / "x.pt")
    run.run()
    assert set(seen) == {torch.bfloat16} and model[0].weight.dtype == torch.float32


def test_logs_are_json_lines_and_event_files(tmp_path):
    held = []
    trainer(tmp_path / "x.pt", evaluate=lambda weights: (held.append(set(weights)), {"right": 0.5})[1]).run()
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [2, 4, 6, 8, 8]
    assert rows[0].keys() == {"step", "minutes", "loss", "norm", "worst"} and rows[-1] == {"step": 8, "held": {"right": 0.5}}
    assert held == [set(network().state_dict())]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    events = accumulator.EventAccumulator(str(tmp_path / "x.events")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4, 6, 8] and events.Scalars("held/right")[0].value == 0.5


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path):
    save_atomically({"step": 1}, tmp_path / "x.pt")
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"step": 2, "no": lambda: None}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == {"step": 1}


def test_bad_settings_are_refused(tmp_path):
    for settings in ({}, {"steps": 1, "minutes": 1.0}, {"steps": 1, "accumulate": 0}, {"steps": 1, "precision": "fp16"}):
        with pytest.raises(ConfigError):
            TrainerConfig(**settings)
    save_atomically({"weights": {}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        trainer(tmp_path / "x.pt")


@dataclass
class Pair:
    a: torch.Tensor
    names: list[str]


def test_move_reaches_tensors_in_any_structure():
    value = {"p": Pair(torch.ones(2), ["x"]), "t": (torch.ones(1), [torch.zeros(3)])}
    moved = move(value, torch.device("meta"))
    assert moved["p"].a.device.type == moved["t"][0].device.type == moved["t"][1][0].device.type == "meta"
    assert moved["p"].names == ["x"] and move(value, torch.device("cpu")) is value
