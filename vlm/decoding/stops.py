"""Stop rules: what need not be decoded any more."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlm.decoding.canvas import Canvas


@dataclass(frozen=True)
class EndOfText:
    """A row ends when everything left of its first committed end token is filled; what lies right becomes padding.

    Args:
        ids: end tokens. Given cells never count as an end.
    """

    ids: tuple[int, ...]

    def __call__(self, canvas: Canvas) -> None:
        """Close the tails of rows that are done."""
        if not self.ids:
            return
        ends = torch.isin(canvas.ids, torch.tensor(self.ids)) & (canvas.committed_at >= 0)
        after = ends.int().cumsum(dim=1) > 0
        done = ends.any(dim=1) & ~(canvas.open & ~after).any(dim=1)
        first = ends & (ends.int().cumsum(dim=1) == 1)
        tail = after & ~first & done.unsqueeze(1)
        canvas.fill(tail, canvas.pad_id)


@dataclass(frozen=True)
class Never:
    """Only a full canvas ends the run."""

    def __call__(self, canvas: Canvas) -> None:
        """Nothing to close."""
