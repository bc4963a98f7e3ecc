"""The packed denoiser against the padded forward of the same model, and what it leaves out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_model
from vlm.decoding.canvas import Canvas
from vlm.engine import SHORT_SLOT, PocketEngine, spare_pads
from vlm.families.pocket import PocketModel
from vlm.processor.messages import ImagePart, Message, TextPart
from vlm.processor.template import POCKET
from vlm.processor.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("exact")
MASK, PAD = 1, 0


@pytest.fixture(scope="module", params=[1, 2])
def engine(request):
    """With the copy head after the last block, and before it."""
    config = tiny_model().config
    torch.manual_seed(0)
    return PocketEngine(PocketModel(replace(config, backbone=replace(config.backbone, num_layers=request.param))), Tokenizer.pocket())


def behind(engine, texts, cells):
    """A denoiser of one row for each text; a row without a picture where the text is empty."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    reading = engine.see(Image.fromarray(pixels))
    parts = [(ImagePart("p"), TextPart(t)) if t else (TextPart("hello"),) for t in texts]
    prompts = [POCKET.build([Message("user", p)], engine.tokenizer) for p in parts]
    return engine.denoiser(prompts, [[reading] if t else [] for t in texts], cells)


def test_packed_rows_equal_the_padded_forward(engine):
    texts, cells = ["read", "", "what is it?"], 24
    denoiser = behind(engine, texts, cells)
    canvas = Canvas.blank(len(texts), cells, mask_id=MASK, pad_id=PAD)
    canvas.commit(torch.arange(cells).expand(3, cells) % 5 == 2, torch.full((15,), 300), torch.ones(15))
    asked = canvas.open.clone()
    asked[2, 7:] = False
    found = denoiser(canvas, asked)
    slots = replace(denoiser._slots, index=canvas.slot_index, slot=denoiser._slot.expand_as(canvas.ids))
    with torch.inference_mode():
        hidden, pointing = engine.model.canvas(canvas.ids, canvas.valid, slots, denoiser.prefix)
        logits = engine.model.cell_logits(hidden[asked], pointing.copied[asked])
    torch.testing.assert_close(found.logits, logits, atol=2e-4, rtol=2e-4)
    weight, source = torch.softmax(pointing.scores[asked], -1).max(-1)
    torch.testing.assert_close(found.source_weight, weight, atol=1e-4, rtol=1e-4)
    clear = weight > 0.02  # ties may fall either way
    source[source == pointing.scores.shape[-1] - 1] = -1
    assert (found.source == source)[clear].all()


def test_rows_that_ask_nothing_are_left_out(engine):
    denoiser = behind(engine, ["a", "b"], 8)
    canvas = Canvas.blank(2, 8, mask_id=MASK, pad_id=PAD)
    asked = canvas.open.clone()
    asked[0] = False
    both = denoiser(canvas, canvas.open)
    torch.testing.assert_close(denoiser(canvas, asked).logits, both.logits[8:], atol=2e-4, rtol=2e-4)


def slot_canvas(place_of_pads, length=20):
    """One literal, one slot whose named places hold known pads."""
    row = [7] + [PAD if p in place_of_pads else None for p in range(1, length + 1)]
    return Canvas.from_rows([row], mask_id=MASK, pad_id=PAD, slot_index=[[0, *range(1, length + 1)]])


def test_known_pads_far_in_a_slot_are_spare():
    canvas = slot_canvas(range(5, 21))
    assert spare_pads(canvas)[0].nonzero().flatten().tolist() == list(range(SHORT_SLOT + 1, 21))


def test_a_pad_after_an_open_cell_stays():
    canvas = slot_canvas([15, 17, 18])
    assert spare_pads(canvas)[0].nonzero().flatten().tolist() == [18]


def test_open_cells_that_look_like_pads_and_free_text_stay():
    canvas = slot_canvas([])
    canvas.ids[:] = PAD
    assert not spare_pads(canvas).any()
    free = Canvas.blank(1, 30, mask_id=MASK, pad_id=PAD)
    free.fill(torch.arange(30)[None] > 3, PAD)
    assert not spare_pads(free).any()


def test_spare_pads_do_not_change_which_cells_are_answered(engine):
    denoiser = behind(engine, ["x"], 21)
    canvas = slot_canvas(range(4, 21))
    short = slot_canvas(range(4, SHORT_SLOT + 1), SHORT_SLOT)
    long = denoiser(canvas, canvas.open)
    assert long.logits.shape[0] == 3
    other = behind(engine, ["x"], SHORT_SLOT + 1)
    torch.testing.assert_close(long.logits, other(short, short.open).logits, atol=2e-4, rtol=2e-4)  # the canvas of a smaller budget
