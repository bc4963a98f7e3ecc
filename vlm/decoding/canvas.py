"""The Canvas: the cells an answer is written into, and what is known about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vlm.errors import DecodingError

#: States of a cell in a frame. REMASKED: open again since this step.
GIVEN, MASK, NEW, KEPT, REMASKED = range(5)


@dataclass
class Canvas:
    """B rows of L cells. What may change is said by boolean tensors, never derived from ids.

    Attributes:
        ids: [B, L] token ids; masked cells hold the mask id for the model's eyes.
        masked: [B, L] cells without a token yet.
        frozen: [B, L] cells that must never change (scaffold, pinned text, fill after the end).
        valid: [B, L] False on the padding of shorter rows.
        slot_index: [B, L] 1 + place of a cell in its slot, 0 on literals.
        step, forwards: [B] commit rounds and model calls so far.
        committed_at: [B, L] step of the commit, -1 before it; commit_confidence: [B, L] score at the commit.
        source: [B, L] prefix entry a cell was copied from, -1 if none; source_weight: [B, L] its attention.
    """

    ids: Tensor
    masked: Tensor
    frozen: Tensor
    valid: Tensor
    slot_index: Tensor
    step: Tensor
    forwards: Tensor
    committed_at: Tensor
    commit_confidence: Tensor
    source: Tensor
    source_weight: Tensor
    mask_id: int
    pad_id: int

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[int | None]], *, mask_id: int, pad_id: int, slot_index: Sequence[Sequence[int]] | None = None
    ) -> Canvas:
        """Rows of ids; None is a cell to be filled, everything else is frozen. Shorter rows are padded.

        Raises:
            DecodingError: no rows, or a row without cells.
        """
        if not rows or any(not len(r) for r in rows):
            raise DecodingError("a canvas needs at least one cell in every row", remedy="give a length or a scaffold")
        batch, length = len(rows), max(len(r) for r in rows)
        ids = torch.full((batch, length), pad_id, dtype=torch.long)
        masked = torch.zeros(batch, length, dtype=torch.bool)
        valid = torch.zeros(batch, length, dtype=torch.bool)
        slots = torch.zeros(batch, length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor([mask_id if t is None else t for t in row])
            masked[i, : len(row)] = torch.tensor([t is None for t in row])
            valid[i, : len(row)] = True
            if slot_index is not None:
                slots[i, : len(row)] = torch.tensor(list(slot_index[i]))
            elif all(t is None for t in row):
                slots[i, : len(row)] = torch.arange(1, len(row) + 1)
        zeros = torch.zeros(batch, dtype=torch.long)
        nothing = torch.full((batch, length), -1, dtype=torch.long)
        return cls(
            ids, masked, ~masked, valid, slots, zeros, zeros.clone(), nothing, torch.zeros(batch, length), nothing.clone(),
            torch.zeros(batch, length), mask_id, pad_id,
        )  # fmt: skip

    @classmethod
    def blank(cls, batch: int, length: int, *, mask_id: int, pad_id: int) -> Canvas:
        """All cells open."""
        return cls.from_rows([[None] * length] * batch, mask_id=mask_id, pad_id=pad_id)

    @property
    def open(self) -> Tensor:
        """[B, L] cells that still want a token."""
        return self.masked & ~self.frozen & self.valid

    def commit(self, cells: Tensor, ids: Tensor, confidence: Tensor, source: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Write tokens into `cells` [B, L] (row-major order of the True cells).

        Raises:
            DecodingError: a cell is not open, or an id is the mask id; both are bugs of a part.
        """
        if bool((cells & ~self.open).any()):
            raise DecodingError("a part tried to change a cell that is given or filled already")
        if bool((ids == self.mask_id).any()):
            raise DecodingError("a part proposed the mask token as output", remedy="add the mask id to the banned ids")
        self.ids[cells] = ids
        self.masked &= ~cells
        self.committed_at[cells] = self.step.unsqueeze(1).expand_as(self.ids)[cells]
        self.commit_confidence[cells] = confidence.to(self.commit_confidence.dtype)
        if source is not None and weight is not None:
            self.source[cells] = source
            self.source_weight[cells] = weight.to(self.source_weight.dtype)

    def fill(self, cells: Tensor, token: int) -> None:
        """Close `cells` with a filler token that no model proposed (after the end of an answer)."""
        cells = cells & self.open
        self.ids[cells] = token
        self.masked &= ~cells
        self.frozen |= cells

    def pooled(self) -> Canvas:
        """All rows as one; the [B, L] tensors are views, those of [B] are the first row's."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: t.view(1, -1) if t.ndim == 2 else t[:1] for name, t in tensors.items()})

    def states(self, before: Tensor) -> Tensor:
        """[B, L] uint8 state of each cell, `before` being ``masked`` as it was before this step."""
        state = torch.full(self.ids.shape, KEPT, dtype=torch.uint8)
        state[self.committed_at < 0] = GIVEN
        state[before & ~self.masked] = NEW
        state[self.masked] = MASK
        state[self.masked & ~before] = REMASKED
        return state
