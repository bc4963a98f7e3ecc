"""What happens to a canvas before the loop."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser


def commit_first_cell(denoiser: Denoiser, canvas: Canvas, banned: tuple[int, ...] = ()) -> None:
    """Fill the first cell of every row with its best token, as LaViDa-Dream does after encoding the prompt.

    With shifted logits and an exact prefix cache, what the model says about that cell rests on the prompt alone and
    cannot change any more. Costs one forward.
    """
    first = torch.zeros_like(canvas.open)
    first[:, 0] = canvas.open[:, 0]
    if not bool(first.any()):
        return
    prediction = denoiser(canvas, first)
    canvas.forwards += first[:, 0]
    _commit_best(canvas, first, prediction.logits, banned)


class Foreseeing(Protocol):
    """A denoiser that knows some cells without a forward (:class:`vlm.decoding.blocks.BlockDenoiser`)."""

    def ahead(self, canvas: Canvas, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(those of the asked cells [B, L] that are known, their logits [N, V])."""
        ...


def commit_known(denoiser: Foreseeing, canvas: Canvas, cells: Tensor, banned: tuple[int, ...] = ()) -> bool:
    """Fill the asked cells that are known before their block is begun, as Fast-dLLM v2 does; whether there were any."""
    known, logits = denoiser.ahead(canvas, cells)
    if not bool(known.any()):
        return False
    _commit_best(canvas, known, logits, banned)
    return True


def _commit_best(canvas: Canvas, cells: Tensor, logits: Tensor, banned: tuple[int, ...]) -> None:
    logits = logits.index_fill(1, torch.tensor(sorted({canvas.mask_id, *banned})), float("-inf"))
    best = torch.softmax(logits, dim=-1).max(dim=-1)
    canvas.commit(cells, best.indices, best.values)
