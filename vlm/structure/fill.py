"""Filling scaffolds stage by stage: selectors before what they govern, bounds before what they bound, then everything else.

Each stage is one run of the decoding loop, in which the cells that have to wait are held: they are masked and closed. A
schema without selectors and bounds is one run. Between runs rows may get new layouts; what was committed is carried over.
Rows go through their stages side by side and independently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser
from vlm.decoding.loop import Frame, Recipe, decode
from vlm.structure.fields import StringField, UnionField
from vlm.structure.scaffold import Scaffold, Slot
from vlm.structure.slot_engine import SlotEngine

#: Stages after which something is wrong: selectors nest at most this deep.
MAX_STAGES = 256
#: Cells of a slot that grew.
GROWTH_LIMIT = 192


@dataclass
class Filled:
    """Rows that are filled, or being filled.

    Attributes:
        canvas: [B, L]; rows are padded to the longest.
        scaffolds: the layout of each row.
        valid: for each row, probability that the model's own choice at the first look would have been valid, by slot pointer.
    """

    canvas: Canvas
    scaffolds: list[Scaffold]
    valid: list[dict[str, float]]

    @classmethod
    def start(cls, scaffolds: Sequence[Scaffold]) -> Filled:
        """Nothing known yet."""
        return cls(blank(scaffolds), list(scaffolds), [{} for _ in scaffolds])


def fill(denoiser: Denoiser, scaffolds: Sequence[Scaffold], recipe: Recipe, *, seed: int = 0, growth: int = 0, shrink: bool = False) -> Filled:
    """Fill one scaffold for each row of the denoiser.

    Args:
        denoiser: behind B prompts; when layouts change its ``lay_out(scaffolds)`` is called, if it has one.
        scaffolds: B of them.
        recipe: how; its proposer's temperature counts for slots too.
        seed: of all draws, the same for each row.
        growth: cells to add, again and again, to slots of free text that came out full; 0 for none.
        shrink: close the cells behind the end of a value at once, which no draw can change any more.
    """
    filled = Filled.start(scaffolds)
    for _ in filling(filled, denoiser, recipe, seed=seed, growth=growth, shrink=shrink):
        pass
    return filled


def filling(filled: Filled, denoiser: Denoiser, recipe: Recipe, *, seed: int = 0, growth: int = 0, shrink: bool = False) -> Iterator[Frame]:
    """Like :func:`fill`, in place and yielding a frame per step; between stages `filled` gets new layouts and a new canvas."""
    for stage in range(MAX_STAGES):
        canvas, rows, valid = filled.canvas, filled.scaffolds, filled.valid
        held = waiting(rows, canvas)
        canvas.frozen |= held
        temperature = float(getattr(recipe.proposer, "temperature", 0.0))
        engine = SlotEngine(rows, temperature=temperature, seed=seed + stage)
        parts: dict[str, Any] = {"joint": engine}
        if shrink:
            parts["reviser"] = PadFiller(engine)
        yield from decode(denoiser, canvas, recipe.with_parts(**parts), seed=seed + stage)
        canvas.frozen &= ~held
        for row, found in enumerate(engine.valid):
            valid[row] = {**found, **valid[row]}
        new = [_next(scaffold, canvas, row, growth) for row, scaffold in enumerate(rows)]
        if all(a is b for a, b in zip(new, rows, strict=True)):
            return
        filled.canvas, filled.scaffolds = carried(canvas, rows, new), new
        if hasattr(denoiser, "lay_out"):
            denoiser.lay_out(new)


def blank(scaffolds: Sequence[Scaffold]) -> Canvas:
    """The canvas that rows with these scaffolds start from."""
    cells, index = [], []
    for scaffold in scaffolds:
        row = scaffold.to_canvas_rows()
        cells.append([None if masked else token for token, masked in zip(row.ids, row.masked, strict=True)])
        index.append(row.slot_index)
    symbols = scaffolds[0].symbols
    return Canvas.from_rows(cells, mask_id=symbols.mask, pad_id=symbols.pad, slot_index=index)


def waiting(scaffolds: Sequence[Scaffold], canvas: Canvas) -> Tensor:
    """[B, L] masked cells that may not be decoded yet."""
    held = torch.zeros_like(canvas.masked)
    for row, scaffold in enumerate(scaffolds):
        first = bool(scaffold.open)
        for slot in scaffold.slots:
            if (first and not slot.selector) or slot.after:
                held[row, slot.start : slot.start + slot.budget] = True
    return held & canvas.masked


def _next(scaffold: Scaffold, canvas: Canvas, row: int, growth: int) -> Scaffold:
    """The layout of a row after a stage; itself when the row is done."""
    ids, sure = canvas.ids[row].tolist(), canvas.commit_confidence[row].tolist()
    if scaffold.open or any(slot.after for slot in scaffold.slots):
        return scaffold.resolved(ids, sure)
    full = {s.pointer: min(s.budget + growth, GROWTH_LIMIT) for s in scaffold.slots if growth and _is_full(s, ids)}
    return scaffold.resolved(ids, sure, budgets=full) if full else scaffold


def _is_full(slot: Slot, ids: Sequence[int]) -> bool:
    """Whether a slot of free text has no pad left and could say more."""
    free = isinstance(slot.field, StringField | UnionField)
    longest = slot.field.max_length if isinstance(slot.field, StringField) else None
    if not free or slot.budget >= GROWTH_LIMIT or slot.selector or (longest is not None and slot.budget >= longest):
        return False
    return ids[slot.start + slot.budget - 1] != slot.symbols.pad


def carried(canvas: Canvas, old: Sequence[Scaffold], new: Sequence[Scaffold]) -> Canvas:
    """A canvas for new layouts, with what is known of the slots that both have; a slot that grew keeps its cells."""
    out = blank(new)
    out.step, out.forwards = canvas.step.clone(), canvas.forwards.clone()
    for row, (before, after) in enumerate(zip(old, new, strict=True)):
        was = {slot.pointer: slot for slot in before.slots if not slot.selector}
        for slot in after.slots:
            source = was.get(slot.pointer)
            if slot.selector or source is None:
                continue
            length = min(slot.budget, source.budget)
            here, there = slice(slot.start, slot.start + length), slice(source.start, source.start + length)
            for name in ("ids", "masked", "committed_at", "commit_confidence", "source", "source_weight"):
                getattr(out, name)[row, here] = getattr(canvas, name)[row, there]
    return out


@dataclass
class PadFiller:
    """Closes the masked cells of a slot behind a committed pad: nothing but pads can come there."""

    engine: SlotEngine

    def __call__(self, canvas: Canvas) -> None:
        for row, scaffold in enumerate(self.engine.rows(canvas.ids.shape[0])):
            ids, masked = canvas.ids[row].tolist(), canvas.masked[row].tolist()
            ended = torch.zeros(canvas.ids.shape[1], dtype=torch.bool)
            for slot in scaffold.slots:
                known = [c for c in slot.cells if not masked[c]]
                end = next((c for c in known if ids[c] in (slot.symbols.pad, slot.symbols.null)), None)
                if end is not None:
                    ended[end : slot.start + slot.budget] = True
            ended &= canvas.open[row]
            if bool(ended.any()):
                cells = torch.zeros_like(canvas.masked)
                cells[row] = ended
                pads = torch.full((int(ended.sum()),), scaffold.symbols.pad)
                canvas.commit(cells, pads, torch.ones(len(pads)))
