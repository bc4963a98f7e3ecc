"""Stops, step ratios and the first cell."""

import pytest
import torch

from tests.decoding.oracle import ToyDenoiser
from vlm.decoding.canvas import Canvas
from vlm.decoding.loop import decode, run
from vlm.decoding.presets import preset
from vlm.decoding.stops import StopAt
from vlm.errors import OptionError

VOCAB = 12
MASK = VOCAB - 1


def blank(rows=2, length=8):
    return Canvas.blank(rows, length, mask_id=MASK, pad_id=0)


def test_nothing_is_decoded_from_the_first_stop_on():
    canvas = blank()
    for row, cell, token in ((0, 5, 3), (0, 2, 3), (1, 6, 4), (1, 7, 5)):
        cells = torch.zeros_like(canvas.masked)
        cells[row, cell] = True
        canvas.commit(cells, torch.tensor([token]), torch.ones(1))
    StopAt(((3,), (4, 5)))(canvas)
    assert canvas.open.tolist() == [[True, True, *[False] * 6], [*[True] * 6, False, False]]
    assert bool(canvas.masked[0, 3]) and int(canvas.ids[0, 3]) == MASK  # still a mask for the model's eyes


def test_a_stop_needs_all_of_its_run():
    canvas = blank(1)
    cells = torch.zeros_like(canvas.masked)
    cells[0, 1] = True
    canvas.commit(cells, torch.tensor([4]), torch.ones(1))
    StopAt(((4, MASK), (4, 5), ()))(canvas)  # a masked cell is no part of a stop, whatever id it shows
    assert int(canvas.open.sum()) == 7


def test_rows_end_at_their_stops():
    for seed in range(4):
        free = run(ToyDenoiser(VOCAB, seed), blank(), preset("llada", block_length=4, steps_per_block=4))
        stop = int(free.ids[0, 3])
        ended = run(ToyDenoiser(VOCAB, seed), blank(), preset("llada", block_length=4, steps_per_block=4, stop_at=(stop,)))
        assert not bool(ended.open.any())
        for row in range(2):
            ids, masked = ended.ids[row].tolist(), ended.masked[row].tolist()
            first = ids.index(stop) if stop in ids else len(ids)
            assert not any(masked[:first])


@pytest.mark.parametrize(("ratio", "steps"), [(1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_step_ratio(ratio, steps):
    for name, more in (("lavida", {"block_length": None}), ("dream-entropy", {"steps": None}), ("dream-topk-margin", {"shape": "cosine"})):
        frames = list(decode(ToyDenoiser(VOCAB), blank(), preset(name, step_ratio=ratio, **more)))
        assert len(frames) == steps and MASK not in frames[-1].ids
    blocks = list(decode(ToyDenoiser(VOCAB), blank(), preset("lavida", step_ratio=0.5, block_length=4)))
    assert len(blocks) == 4
    with pytest.raises(OptionError, match="step_ratio"):
        preset("lavida", step_ratio=1.5)


def test_the_first_cell_comes_before_the_loop():
    canvas = blank()
    frames = list(decode(ToyDenoiser(VOCAB), canvas, preset("dream-entropy", steps=None, first_cell=True, banned=(0, 1, 2))))
    assert canvas.committed_at[:, 0].tolist() == [0, 0] and not set(canvas.ids[:, 0].tolist()) & {0, 1, 2, MASK}
    assert frames[-1].forwards.tolist() == [len(frames) + 1] * 2
