"""The training loop: one for every model and stage. Read it from top to bottom.

A step draws `accumulate` micro-batches, adds up their gradients, clips, updates, and moves the average. Whatever
decides the next step (weights, average, optimisers, counters, random states, position in the data) is in the
checkpoint, so that a run that was stopped and resumed goes on as if nothing had happened.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlm.errors import CheckpointError, ConfigError
from vlm.training.log import TrainingLog
from vlm.training.optim import EMA, Optimisers, warmup_stable_decay

T = TypeVar("T")


class Batches(Protocol):
    """An endless source of batches that can say where it is; states are of plain types."""

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Objective(Protocol):
    """What is minimised."""

    def totals(self, batch: Any) -> dict[str, float]:
        """Divisors of the loss's terms; they add up over micro-batches and need no forward pass."""
        ...

    def __call__(self, batch: Any, totals: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, its terms divided by `totals`, and statistics to log."""
        ...


@dataclass(frozen=True)
class TrainerConfig:
    """How to train.

    Attributes:
        steps, minutes: length of the schedule, exactly one of them. Minutes are counted over interruptions.
        accumulate: micro-batches per step.
        device, precision: 'cpu', 'cuda', ...; 'bf16' (autocast, weights stay float32) or 'fp32'.
        muon_lr, adam_lr, weight_decay, clip: see :class:`vlm.training.optim.Optimisers`.
        warmup, decay: shares of the schedule with rising and with falling rate.
        ema: weight of the past in the average.
        log_every: steps per row of the log. save_seconds: time between checkpoints, each followed by an evaluation.
    """

    steps: int | None = None
    minutes: float | None = None
    accumulate: int = 1
    device: str = "cpu"
    precision: str = "bf16"
    muon_lr: float = 0.02
    adam_lr: float = 1.5e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.02
    decay: float = 0.3
    ema: float = 0.995
    log_every: int = 50
    save_seconds: float = 180.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError("the schedule needs a length", remedy="give exactly one of steps and minutes")
        if self.accumulate < 1:
            raise ConfigError(f"accumulate is {self.accumulate}", remedy="use 1 or more micro-batches per step")
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f"unknown precision {self.precision!r}", remedy="use 'bf16' or 'fp32'")


class Trainer:
    """Trains what requires a gradient in `model`.

    Args:
        model: saved whole. Moved to the device.
        objective: the loss.
        data: batches, on CPU; the trainer moves them.
        config: how.
        out: checkpoint file; resumed from if it exists and `fresh` is False.
        averaged: the part of the model whose average is kept; default all of it.
        evaluate: called with the averaged state dict after each checkpoint; its numbers are logged as 'held'.
        fresh: start from the weights as they are, whatever `out` holds.
        new_schedule: begin a schedule with the resumed weights although the last one was not finished.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, data: Batches, config: TrainerConfig, out: Path, *,
        averaged: nn.Module | None = None, evaluate: Callable[[dict[str, Tensor]], dict[str, float]] | None = None, fresh: bool = False,
        new_schedule: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.objective, self.data, self.out, self.evaluate = config, objective, data, out, evaluate
        self.device = torch.device(config.device)
        self.model = model.to(self.device)
        self.averaged = averaged or model
        self.optim = Optimisers(model, config.muon_lr, config.adam_lr, config.weight_decay, config.clip)
        self.ema = EMA(self.averaged, config.ema)
        self.step = self.first_step = 0
        self.seconds = 0.0  # spent in this schedule before the clock was started
        torch.manual_seed(config.seed)
        if out.exists() and not fresh:
            self._load(new_schedule)

    def run(self) -> bool:
        """Train to the end of the schedule. False when stopped early by Ctrl-C or SIGTERM; saved either way."""
        log = TrainingLog(self.out)
        self.model.train()
        recent: dict[str, list[float]] = {}
        self._started = last_save = time.monotonic()
        with _stoppable() as stop, tqdm(initial=self.step, disable=None) as bar:
            while (done := self.progress()) < 1 and not stop:
                for name, value in self.train_step(done).items():
                    recent.setdefault(name, []).append(value)
                bar.update()
                if self.step % self.config.log_every == 0:
                    means = {k: float(np.mean(v)) for k, v in sorted(recent.items())}
                    log.row(self.step, {"minutes": self._elapsed() / 60, **means})
                    recent = {}
                if time.monotonic() - last_save > self.config.save_seconds:
                    self._checkpoint(log)
                    last_save = time.monotonic()
            finished = done >= 1
        self._checkpoint(log)
        log.close()
        return finished

    def train_step(self, done: float) -> dict[str, float]:
        """One update at the fraction `done` of the schedule; returns statistics."""
        micro = [move(next(self.data), self.device) for _ in range(self.config.accumulate)]
        totals = add([self.objective.totals(batch) for batch in micro])
        rows: list[dict[str, float]] = []
        loss = 0.0
        for batch in micro:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                part, stats = self.objective(batch, totals)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
            rows.append(stats)
        norm = self.optim.step(warmup_stable_decay(done, self.config.warmup, self.config.decay))
        self.ema.update(self.averaged)
        self.step += 1
        names = sorted(set().union(*rows))
        return {"loss": loss, "norm": norm, **{k: float(np.mean([r[k] for r in rows if k in r])) for k in names}}

    def progress(self) -> float:
        """Fraction of the schedule that is done."""
        if self.config.steps is not None:
            return (self.step - self.first_step) / self.config.steps
        assert self.config.minutes is not None
        return self._elapsed() / (60 * self.config.minutes)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how training goes on."""
        random = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(), "ema": self.ema.state_dict(), "optim": self.optim.state_dict(), "step": self.step,
            "schedule": {"first_step": self.first_step, "seconds": self._elapsed(), "finished": self.progress() >= 1},
            "random": random, "data": self.data.state_dict(),
        }  # fmt: skip

    def _elapsed(self) -> float:
        started = getattr(self, "_started", None)
        return self.seconds + (0.0 if started is None else time.monotonic() - started)

    def _load(self, new_schedule: bool) -> None:
        saved = torch.load(self.out, weights_only=True, map_location="cpu")
        missing = {"model", "ema", "optim", "step"} - set(saved)
        if missing:
            raise CheckpointError(f"{self.out} is no training checkpoint: it lacks {', '.join(sorted(missing))}", remedy="give another file, or start afresh")
        self.model.load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        self.optim.load_state_dict(saved["optim"])
        self.step = self.first_step = saved["step"]
        schedule = saved.get("schedule")
        if schedule is not None and not schedule["finished"] and not new_schedule:  # else a new schedule begins with the trained weights
            self.first_step, self.seconds = schedule["first_step"], schedule["seconds"]
        if "random" in saved:
            torch.set_rng_state(saved["random"]["torch"])
            if self.device.type == "cuda" and "cuda" in saved["random"]:
                torch.cuda.set_rng_state(saved["random"]["cuda"], self.device)
        else:  # written before random states were kept: at least do not repeat the first draws
            torch.manual_seed(self.config.seed + self.step)
        if "data" in saved:
            self.data.load_state_dict(saved["data"])

    def _checkpoint(self, log: TrainingLog) -> None:
        save_atomically(self.state_dict(), self.out)
        if self.evaluate is not None:
            log.row(self.step, self.evaluate(self.ema.state_dict()), group="held")


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all, also when the machine stops in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def move(value: T, device: torch.device) -> T:
    """The same structure (dicts, lists, tuples, dataclasses) with its tensors on the device."""
    if device.type == "cpu":
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {k: move(v, device) for k, v in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return type(value)(move(v, device) for v in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: move(getattr(value, f.name), device) for f in fields(value)})
    return value


def add(rows: list[dict[str, float]]) -> dict[str, float]:
    """Sum of each entry."""
    return {k: sum(r[k] for r in rows) for k in rows[0]}


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of raising, so that a step is never cut in two; a second one raises."""
    caught: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
