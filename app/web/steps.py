"""What a run leaves behind for the eye: a snapshot of every step, to be scrubbed through afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from vlm.live import Cell, Partial, SlotView
from vlm.results import Result


@dataclass(frozen=True)
class Snapshot:
    """The canvas after a step.

    Attributes:
        step, forwards: so far. ms: since the start of the run. cells: of the canvas. text: as it stands, open cells as dots.
        slots: of structured tasks. result: with the last snapshot of a run.
    """

    step: int
    forwards: int
    ms: float
    cells: tuple[Cell, ...] = ()
    text: str = ""
    slots: tuple[SlotView, ...] = ()
    result: Result | None = None

    @property
    def written(self) -> int:
        """Cells the model has written and not taken back."""
        return sum(cell.state in ("new", "kept") for cell in self.cells)

    @property
    def open(self) -> int:
        """Cells that still want a token."""
        return sum(cell.state in ("mask", "remasked") for cell in self.cells)


@dataclass
class Trace:
    """The snapshots of a run in order, and what it was about (a picture, usually)."""

    steps: list[Snapshot] = field(default_factory=list)
    about: Any = None

    def record(self, model: Any, parts: Iterator[Partial], start: float | None = None) -> Iterator[Snapshot]:
        """Keep and pass on a snapshot of every part of a stream; `start` in the seconds of ``time.perf_counter``."""
        began = time.perf_counter() if start is None else start
        for part in parts:
            result = part.result[0] if part.result is not None else None
            ms = (time.perf_counter() - began) * 1000
            if result is not None and self.steps and part.frame.step == self.steps[-1].step:
                snapshot = replace(self.steps.pop(), result=result, ms=ms)  # a stream ends with its last step again
            else:
                slots = tuple(part.slots[0]) if part.slots else ()
                snapshot = Snapshot(part.frame.step, int(part.frame.forwards[0]), ms, tuple(model.cells(part)), part.text[0], slots, result)
            self.steps.append(snapshot)
            yield snapshot

    def keep(self, result: Result, ms: float) -> Snapshot:
        """The only snapshot of a task without steps."""
        self.steps.append(Snapshot(result.usage.steps, result.usage.forwards, ms, text=result.text, result=result))
        return self.steps[-1]

    def at(self, place: float) -> Snapshot | None:
        """The snapshot at a place of the scrubber, from 1; None when nothing was recorded."""
        if not self.steps:
            return None
        return self.steps[min(max(int(place), 1), len(self.steps)) - 1]
