"""What happens to a canvas before the loop."""

from __future__ import annotations

import torch

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
    logits = prediction.logits.index_fill(1, torch.tensor(sorted({canvas.mask_id, *banned})), float("-inf"))
    best = torch.softmax(logits, dim=-1).max(dim=-1)
    canvas.forwards += first[:, 0]
    canvas.commit(first, best.indices, best.values)
