"""Filling the slots of a scaffold: a batch of canvases from open to read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vlm.calibration import Calibration
from vlm.decoding.contracts import Denoiser
from vlm.decoding.loop import Frame
from vlm.decoding.stops import Never
from vlm.engine import Engine, Plan
from vlm.live import Partial, SlotView, text_so_far
from vlm.processor.prompt import Prompt
from vlm.results import Box, FieldInfo, Result, Usage
from vlm.structure.fill import Filled, filling
from vlm.structure.reading import read_slot
from vlm.structure.scaffold import Scaffold, Slot


class Filling:
    """B rows that fill scaffolds behind B encoded prompts.

    Args:
        engine: encodes and denoises. prompts, pictures: B prompts, and what ``engine.see`` gave for the images of each.
        scaffold: to be filled. plan: how. growth: see :func:`vlm.structure.fill.fill`.
        by_first_cell: a slot's box is where its first cell points, not the union over its cells.
        denoiser: behind the prompts already; None encodes them. calibration: of the confidences of fields.

    Raises:
        ContextLengthError: a prompt does not fit.
    """

    def __init__(
        self, engine: Engine, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Any]], scaffold: Scaffold, plan: Plan, *, growth: int = 0,
        by_first_cell: bool = False, denoiser: Denoiser | None = None, calibration: Calibration | None = None,
    ) -> None:  # fmt: skip
        self._start = time.perf_counter()
        self.engine, self.plan, self.growth, self.by_first_cell, self.calibration = engine, plan, growth, by_first_cell, calibration
        self.denoiser: Any = engine.denoiser(prompts, pictures, len(scaffold), plan, scaffold) if denoiser is None else denoiser
        self._scaffold, self.rows = scaffold, len(prompts)
        self.filled = Filled.start([scaffold] * self.rows)

    def frames(self) -> Iterator[Frame]:
        """Decode, a frame per step."""
        recipe = self.plan.recipe.with_parts(banned=self.engine.banned(self.plan, self._scaffold), stop=Never())
        yield from filling(self.filled, self.denoiser, recipe, seed=self.plan.seed, growth=self.growth)

    def results(self) -> list[Result]:
        """Decode to the end; one result a row."""
        for _ in self.frames():
            pass
        return self._results()

    def stream(self, finish: Callable[[Result, int], Result]) -> Iterator[Partial]:
        """Decode, a Partial per step; the last one carries the results as `finish(result, row)` gives them."""
        for frame in self.frames():
            yield self._partial(frame)
        canvas = self.filled.canvas
        last = Frame.of(canvas, int(canvas.step.max()), canvas.masked)
        part = self._partial(last)
        part.result = [finish(result, row) for row, result in enumerate(self._results())]
        yield part

    def _results(self) -> list[Result]:
        ms = (time.perf_counter() - self._start) * 1000 / self.rows
        return [self._result(row, ms) for row in range(self.rows)]

    def text(self, row: int) -> str:
        """The whole canvas of a row as text, literals included; open cells as dots."""
        canvas = self.filled.canvas
        states = canvas.states(canvas.masked)
        return text_so_far(self.engine.tokenizer, canvas.ids[row].tolist(), states[row].tolist())

    def _partial(self, frame: Frame) -> Partial:
        scaffold = self.filled.scaffolds[0]
        owners = [scaffold.slots[number].pointer if number >= 0 else "" for number in scaffold.slot_of]
        owners += [""] * (frame.ids.shape[1] - len(owners))
        return Partial(frame, [self.text(row) for row in range(self.rows)], slots=[self._views(row) for row in range(self.rows)], owners=owners)

    def _views(self, row: int) -> list[SlotView]:
        canvas = self.filled.canvas
        masked = canvas.masked[row].tolist()
        ids = canvas.ids[row].tolist()
        filled = [canvas.pad_id if open_ else token for token, open_ in zip(ids, masked, strict=True)]
        sure = canvas.commit_confidence[row].tolist()
        state = canvas.states(canvas.masked)[row].tolist()
        locate = self._locate(row)
        found = []
        for slot in self.filled.scaffolds[row].slots:
            if slot.selector:
                continue
            cells = slice(slot.start, slot.start + slot.budget)
            text = text_so_far(self.engine.tokenizer, ids[cells], state[cells])
            info = None
            if _decided(slot, ids[cells], masked[cells]):
                reading = read_slot(slot, filled, sure)
                box = locate(reading.cells) if locate is not None and reading.cells else None
                info = FieldInfo(reading.value, reading.confidence, box, reading.forced, slot.pointer)
                info = info if self.calibration is None else self.calibration(info)
            found.append(SlotView(slot.pointer, text, info))
        return found

    def _locate(self, row: int) -> Callable[[list[int]], Box | None] | None:
        every = self.engine.locator(self.denoiser, self.filled.canvas, row)
        return (lambda cells: every(cells[:1])) if self.by_first_cell and every is not None else every

    def _result(self, row: int, ms: float) -> Result:
        canvas, scaffold, valid = self.filled.canvas, self.filled.scaffolds[row], self.filled.valid[row]
        data, fields = scaffold.read(canvas.ids[row].tolist(), canvas.commit_confidence[row].tolist(), locate=self._locate(row), valid=valid)
        if self.calibration is not None:
            fields = {pointer: self.calibration(info) for pointer, info in fields.items()}
        status = "forced" if any(f.forced for f in fields.values()) else "ok"
        sure = min((f.confidence for f in fields.values()), default=1.0)
        written = int((canvas.committed_at[row] >= 0).sum())
        usage = Usage(int(canvas.step[row]), int(canvas.forwards[row]), written, ms)
        return Result(json.dumps(data, ensure_ascii=False), data, confidence=sure, fields=fields, status=status, warnings=scaffold.warnings(data), usage=usage)


def _decided(slot: Slot, ids: Sequence[int], masked: Sequence[bool]) -> bool:
    """Whether the value of a slot is known: no open cell before the pad that ends it."""
    for place, (token, open_) in enumerate(zip(ids, masked, strict=True)):
        if open_:
            return False
        if token == slot.symbols.pad or (place == 0 and token == slot.symbols.null):
            return True
    return True
