"""Stop rules: what need not be decoded any more."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlm.decoding.canvas import Canvas
from vlm.decoding.windows import AlignedBlocks


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
class StopAt:
    """Nothing is decoded from the first stop on; the cells there stay masked for the model's eyes (LLaDA-V).

    What lies left of the stop is still decoded, and may hold an earlier stop.

    Args:
        runs: runs of ids that mean a stop. Given cells may be part of one.
    """

    runs: tuple[tuple[int, ...], ...]

    def __call__(self, canvas: Canvas) -> None:
        """Freeze each row from its first stop on."""
        length = canvas.ids.shape[1]
        known = ~canvas.masked & canvas.valid
        first = torch.full((canvas.ids.shape[0],), length)
        for run in self.runs:
            if not 0 < len(run) <= length:
                continue
            windows = canvas.ids.unfold(1, len(run), 1)  # [B,L-n+1,n]
            hit = (windows == torch.tensor(run)).all(-1) & known.unfold(1, len(run), 1).all(-1)
            where = torch.where(hit.any(1), hit.int().argmax(1), length)
            first = torch.minimum(first, where)
        canvas.frozen |= torch.arange(length) >= first.unsqueeze(1)


@dataclass(frozen=True)
class EndOfBlock:
    """As the released samplers of block diffusion stop: after a whole block that holds an end token; what is left stays masked.

    Args:
        ids: end tokens. blocks: of the run (:meth:`vlm.decoding.blocks.AlignedBlocks`).
    """

    ids: tuple[int, ...]
    blocks: AlignedBlocks

    def __call__(self, canvas: Canvas) -> None:
        """Freeze the rows that are done."""
        before = self.blocks.blocks(canvas.ids.shape[1]) < self.blocks.number(canvas).unsqueeze(1)
        ended = torch.isin(canvas.ids, torch.tensor(self.ids)) & (canvas.committed_at >= 0) & before
        canvas.frozen |= ended.any(dim=1, keepdim=True)


@dataclass(frozen=True)
class Never:
    """Only a full canvas ends the run."""

    def __call__(self, canvas: Canvas) -> None:
        """Nothing to close."""
