"""A model that says what it is told to: real loop, real streams, real pages, and answers that a test knows beforehand.

The engine is pocket's over tiny random weights; only the logits are replaced. A few cells become sure with each step, and
their pointers go to the first visual entries, so that fields have boxes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint import load_pocket
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Prediction
from vlm.engine import PocketEngine
from vlm.model import DiffusionVLM

SURE, UNSURE = 14.0, 2.0  # logits of the scripted token
PACE = 3  # cells of a canvas that become sure in each step


class ScriptedDenoiser:
    """Wraps the real denoiser for its places; says `target` [L]. With a gate it waits after two steps until that is set."""

    def __init__(self, inner: Any, target: list[int], gate: threading.Event | None) -> None:
        self.inner, self.target, self.gate = inner, torch.tensor(target), gate
        self.places, self.vocab_size = inner.places, inner.vocab_size
        self.pointed: dict[tuple[int, int], list[tuple[int, float]]] | None = None  # as of the real one

    def __call__(self, canvas: Canvas, cells: torch.Tensor) -> Prediction:
        """Logits of the asked cells."""
        if self.gate is not None and int(canvas.step.max()) >= 2:
            self.gate.wait(120)
        row, column = cells.nonzero(as_tuple=True)
        logits = torch.zeros(len(row), self.vocab_size)
        rank = (canvas.masked & canvas.valid).cumsum(1)[row, column]  # the leftmost open cells come first
        strength = torch.where(rank <= PACE, SURE, UNSURE)
        logits[torch.arange(len(row)), self.target[column]] = strength
        shown = [i for i, picture in enumerate(self.places[0].picture) if picture == 0] or [0]
        if self.pointed is not None:
            first = (canvas.slot_index == 1).nonzero().tolist()
            self.pointed.update({(r, c): [(shown[0], 0.6), (shown[-1], 0.3)] for r, c in first})
        source = torch.tensor([shown[int(c) % len(shown)] for c in column], dtype=torch.long)
        return Prediction(logits, source, torch.ones(len(row)))


class ScriptedEngine(PocketEngine):
    """Answers free text with `answer`, and slots by the last name of their pointer with `values`; null where nothing is told."""

    def __init__(self, folder: Path, answer: str, values: Mapping[str, str]) -> None:
        model, tokenizer, _ = load_pocket(folder)
        super().__init__(model, tokenizer)
        self.answer, self.values = answer, dict(values)
        self.gate: threading.Event | None = None

    def denoiser(self, prompts: Any, pictures: Any, answer_cells: int, plan: Any = None, scaffold: Any = None) -> Any:
        """The scripted one around the real one."""
        inner = super().denoiser(prompts, pictures, answer_cells, plan, scaffold)
        if scaffold is None:
            ids = self.tokenizer.encode(self.answer)[:answer_cells]
            ids += [self.stop_ids[0]] * (answer_cells - len(ids))
        else:
            told = {slot.pointer: self.values.get(slot.pointer.rsplit("/", 1)[-1]) for slot in scaffold.slots}
            ids = scaffold.fill(told)
        return ScriptedDenoiser(inner, ids, self.gate)


def scripted(folder: Path, answer: str = "two red shapes", values: Mapping[str, str] | None = None) -> DiffusionVLM:
    """A model that answers as told."""
    known = {"name": "Ada Byron", "total": "12.50", "action": "click", "target": "button", "first_name": "Edith"}
    return DiffusionVLM(ScriptedEngine(folder, answer, known if values is None else values), "scripted")
