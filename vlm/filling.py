"""Filling the slots of a scaffold: a batch of canvases from open to read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from vlm.decoding.canvas import Canvas
from vlm.decoding.loop import Frame, decode
from vlm.decoding.stops import Never
from vlm.engine import Engine, Plan
from vlm.live import Partial, SlotView, text_so_far
from vlm.processor.prompt import Prompt
from vlm.results import Box, FieldInfo, Result, Usage
from vlm.structure.reading import read_slot
from vlm.structure.scaffold import Scaffold, Slot
from vlm.structure.slot_engine import SlotEngine


class Filling:
    """B rows that fill the same scaffold behind B encoded prompts.

    Args:
        engine: encodes and denoises. prompts, pictures: B prompts, and what ``engine.see`` gave for the images of each.
        scaffold: to be filled. plan: how.
        by_first_cell: a slot's box is where its first cell points, not the union over its cells.

    Raises:
        ContextLengthError: a prompt does not fit.
    """

    def __init__(
        self, engine: Engine, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Any]], scaffold: Scaffold, plan: Plan, *, by_first_cell: bool = False
    ) -> None:
        self._start = time.perf_counter()
        self.engine, self.scaffold, self.plan, self.by_first_cell = engine, scaffold, plan, by_first_cell
        self.denoiser = engine.denoiser(prompts, pictures, len(scaffold), plan, scaffold)
        rows = scaffold.to_canvas_rows()
        cells = [None if masked else token for token, masked in zip(rows.ids, rows.masked, strict=True)]
        symbols, count = engine.symbols, len(prompts)
        self.canvas = Canvas.from_rows([cells] * count, mask_id=symbols.mask, pad_id=symbols.pad, slot_index=[rows.slot_index] * count)
        self.rows = count
        self.owners = [scaffold.slots[number].pointer if number >= 0 else "" for number in scaffold.slot_of]

    def frames(self) -> Iterator[Frame]:
        """Decode, a frame per step."""
        recipe, seed = self.plan.recipe, self.plan.seed
        temperature = float(getattr(recipe.proposer, "temperature", 0.0))
        slots = SlotEngine(self.scaffold, temperature=temperature, generator=torch.Generator().manual_seed(seed) if temperature else None)
        banned = self.engine.banned(self.plan, self.scaffold)
        yield from decode(self.denoiser, self.canvas, recipe.with_parts(joint=slots, banned=banned, stop=Never()), seed=seed)

    def results(self) -> list[Result]:
        """Decode what is still open; one result a row."""
        for _ in self.frames():
            pass
        ms = (time.perf_counter() - self._start) * 1000 / self.rows
        return [self._result(row, ms) for row in range(self.rows)]

    def stream(self, finish: Callable[[Result, int], Result]) -> Iterator[Partial]:
        """Decode, a Partial per step; the last one carries the results as `finish(result, row)` gives them."""
        for frame in self.frames():
            yield self._partial(frame)
        results = [finish(result, row) for row, result in enumerate(self.results())]
        canvas = self.canvas
        last = Frame(int(canvas.step.max()), canvas.ids.clone(), canvas.states(canvas.masked), canvas.commit_confidence.clone(), canvas.forwards.clone())
        part = self._partial(last)
        part.result = results
        yield part

    def text(self, row: int) -> str:
        """The whole canvas of a row as text, literals included; open cells as dots."""
        states = self.canvas.states(self.canvas.masked)
        return text_so_far(self.engine.tokenizer, self.canvas.ids[row].tolist(), states[row].tolist())

    def _partial(self, frame: Frame) -> Partial:
        return Partial(frame, [self.text(row) for row in range(self.rows)], slots=[self._views(row) for row in range(self.rows)], owners=self.owners)

    def _views(self, row: int) -> list[SlotView]:
        masked = self.canvas.masked[row].tolist()
        ids = self.canvas.ids[row].tolist()
        filled = [self.canvas.pad_id if open_ else token for token, open_ in zip(ids, masked, strict=True)]
        sure = self.canvas.commit_confidence[row].tolist()
        state = self.canvas.states(self.canvas.masked)[row].tolist()
        locate = self._locate(row)
        found = []
        for slot in self.scaffold.slots:
            cells = slice(slot.start, slot.start + slot.budget)
            text = text_so_far(self.engine.tokenizer, ids[cells], state[cells])
            info = None
            if _decided(slot, ids[cells], masked[cells]):
                reading = read_slot(slot, filled, sure)
                box = locate(reading.cells) if locate is not None and reading.cells else None
                info = FieldInfo(reading.value, reading.confidence, box, reading.forced, slot.pointer)
            found.append(SlotView(slot.pointer, text, info))
        return found

    def _locate(self, row: int) -> Callable[[list[int]], Box | None] | None:
        every = self.engine.locator(self.denoiser, self.canvas, row)
        return (lambda cells: every(cells[:1])) if self.by_first_cell and every is not None else every

    def _result(self, row: int, ms: float) -> Result:
        canvas, scaffold = self.canvas, self.scaffold
        data, fields = scaffold.read(canvas.ids[row].tolist(), canvas.commit_confidence[row].tolist(), locate=self._locate(row))
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
