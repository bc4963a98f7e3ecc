"""Decoding from uniform noise on a toy model: what is given holds, rows do not depend on each other, slots come out valid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.decoding.oracle import ToyDenoiser
from vlm.decoding.canvas import MASK, Canvas
from vlm.decoding.loop import Recipe, decode, run
from vlm.decoding.presets import UNIFORM, preset
from vlm.decoding.stops import EndOfText
from vlm.decoding.uniform import Cooling, EntropyBound, Settled, entropies
from vlm.errors import DecodingError, OptionError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.lift import Symbols
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema
from vlm.structure.slot_engine import SlotEngine

VOCAB, SIZE, END, PAD = 12, 6, 10, 11


class Noisy:
    """Logits from a row's own canvas, its self-conditioning and the canvases before; batches change nothing.

    Attributes:
        seen: (rows, ids, guess or None) of every step. kept: finished canvases by row.
    """

    def __init__(self, vocab: int = VOCAB, size: int = SIZE, scale: float = 2.0, prompts: tuple[int, ...] = (0, 1, 2)) -> None:
        generator = torch.Generator().manual_seed(3)
        self.vocab_size, self.canvas_length, self.prompts = vocab, size, prompts
        self.table = scale * torch.randn(8, size, vocab, generator=generator, dtype=torch.float64)
        self.mix = scale * 0.3 * torch.randn(vocab, size, vocab, generator=generator, dtype=torch.float64)
        self.seen: list[tuple[list[int], Tensor, Tensor | None]] = []
        self.kept: dict[int, list[Tensor]] = {}

    def step(self, ids: Tensor, guess: Tensor | None, rows: Tensor) -> Tensor:
        self.seen.append((rows.tolist(), ids.clone(), None if guess is None else guess.clone()))
        out = []
        for i, row in enumerate(rows.tolist()):
            before = len(self.kept.get(row, []))
            logits = self.table[(self.prompts[row] + before) % 8] + self.mix[ids[i]].sum(dim=0)
            if guess is not None:
                logits = logits + torch.softmax(guess[i].double(), dim=-1).nan_to_num()
            out.append(logits.float())
        return torch.stack(out)

    def advance(self, ids: Tensor, rows: Tensor) -> None:
        for i, row in enumerate(rows.tolist()):
            self.kept.setdefault(row, []).append(ids[i].clone())


def blank(rows: int, cells: int, pins: dict[int, int] | None = None, vocab: int = VOCAB) -> Canvas:
    return Canvas.from_rows([[(pins or {}).get(i) for i in range(cells)]] * rows, mask_id=vocab, pad_id=PAD)


def test_the_surest_are_accepted_up_to_the_bound() -> None:
    entropy = torch.tensor([[0.3, 0.1, 2.0, 0.2], [5.0, 5.0, 5.0, 5.0]])
    # sorted 0.1 0.2 0.3 2.0: what lies before each is 0, 0.1, 0.3, 0.6
    assert EntropyBound(0.3)(entropy).tolist() == [[True, True, False, True], [True, False, False, False]]
    assert EntropyBound(0.05)(entropy).sum(dim=1).tolist() == [1, 1]
    assert bool(EntropyBound(100)(entropy).all())


def test_entropy_of_certain_and_even_distributions() -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [1.0, 1.0, 1.0], [0.0, 0.0, -math.inf]])
    torch.testing.assert_close(entropies(logits), torch.tensor([0.0, math.log(3), math.log(2)]))


def test_temperature_falls_to_the_last_step() -> None:
    cooling = Cooling(0.4, 0.8, 4)
    assert [round(cooling(n), 6) for n in (4, 3, 2, 1)] == [0.8, 0.7, 0.6, 0.5]


def test_settled_wants_the_same_tokens_and_low_entropy() -> None:
    settled, calm, wild = Settled(2, 1.0).start(), torch.full((1, 3), 0.5), torch.full((1, 3), 2.0)
    a, b = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 4]])
    assert [bool(settled(ids, e)) for ids, e in ((a, calm), (a, calm), (a, calm), (b, calm), (b, calm), (b, wild), (b, calm))] == [
        False, False, True, False, False, False, True,
    ]  # fmt: skip
    assert bool(Settled(0, 1.0).start()(a, calm)) and not bool(Settled(0, 1.0).start()(a, wild))
    assert not bool(settled.start()(b, calm))  # a new canvas has no history


@pytest.mark.parametrize("cells", [SIZE, 3 * SIZE, SIZE + 2, 2])
def test_every_cell_is_filled_in_canvases_of_one_length(cells: int) -> None:
    model, canvas = Noisy(), blank(2, cells)
    frames = list(decode(model, canvas, preset("entropy-bound", steps=3, confidence=None)))  # type: ignore[arg-type]
    canvases = -(-cells // SIZE)
    assert not bool(canvas.masked.any()) and int(canvas.ids.max()) < VOCAB
    assert [len(ids[0]) for _, ids, _ in model.seen] == [SIZE] * 3 * canvases == [SIZE] * len(frames)
    assert canvas.step.tolist() == [3 * canvases] * 2 and canvas.forwards.tolist() == [4 * canvases - 1] * 2
    assert [f.step for f in frames] == list(range(1, 3 * canvases + 1)) and not bool((frames[-1].state == MASK).any())
    assert all(torch.equal(torch.cat(model.kept[row]), canvas.ids[row, : len(torch.cat(model.kept[row]))]) for row in model.kept)
    assert bool((canvas.commit_confidence > 0).all()) and bool((canvas.commit_confidence <= 1).all())
    assert [guess is None for _, _, guess in model.seen] == [True, False, False] * canvases


def test_a_batch_equals_its_rows_alone() -> None:
    recipe = preset("entropy-bound", steps=8, entropy_bound=2.0, confidence=1.0).with_parts(stop=EndOfText((END,)))
    together = run(Noisy(), blank(3, 2 * SIZE), recipe, seed=5)  # type: ignore[arg-type]
    lengths = set()
    for row in range(3):
        alone = run(Noisy(prompts=(row,)), blank(1, 2 * SIZE), recipe, seed=5)  # type: ignore[arg-type]
        assert torch.equal(alone.ids[0], together.ids[row]) and alone.step[0] == together.step[row] and alone.forwards[0] == together.forwards[row]
        assert torch.equal(alone.commit_confidence[0], together.commit_confidence[row])
        lengths.add(int(alone.step[0]))
    assert len(lengths) > 1  # rows ended at different steps, and the others went on


def test_rows_that_are_done_are_not_computed() -> None:
    model = Noisy()
    run(model, blank(3, SIZE), preset("entropy-bound", steps=20, entropy_bound=5.0, confidence=1.0), seed=5)  # type: ignore[arg-type]
    sizes = [len(rows) for rows, _, _ in model.seen]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 3


@pytest.mark.parametrize("quirks", [False, True])
def test_what_is_given_holds(quirks: bool) -> None:
    """In every canvas the model sees, unless released code is asked for, which has it in the predictions alone; in both it comes out."""
    pins = {0: 3, 4: 7, 5: 1, SIZE + 2: 9}
    model, canvas = Noisy(), blank(2, 2 * SIZE, pins)
    for frame in decode(model, canvas, preset("entropy-bound", steps=4, confidence=None, reference_quirks=quirks), seed=2):  # type: ignore[arg-type]
        assert all(bool((frame.ids[:, place] == token).all()) for place, token in pins.items())
    held = []
    for i, (_, ids, guess) in enumerate(model.seen):
        inside = {place - SIZE * (i // 4): token for place, token in pins.items() if 0 <= place - SIZE * (i // 4) < SIZE}
        held.append(all(bool((ids[:, place] == token).all()) for place, token in inside.items()))
        if guess is not None:
            assert all(int(guess[0, place].argmax()) == token and int(guess[0, place].isfinite().sum()) == 1 for place, token in inside.items())
    assert all(held) if not quirks else not held[0] and all(held[1:4])  # accepted from the first step on
    assert all(bool((canvas.ids[:, place] == token).all()) for place, token in pins.items())
    assert canvas.committed_at[:, 0].tolist() == [-1, -1]


def test_an_end_closes_its_row_and_the_others_go_on() -> None:
    model, canvas = Noisy(), blank(3, 3 * SIZE)
    ends = (4,)
    run(model, canvas, preset("entropy-bound", steps=2).with_parts(stop=EndOfText(ends)), seed=1)  # type: ignore[arg-type]
    for row in canvas.ids.tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        assert end is None or all(token == PAD for token in row[end + 1 :])
    assert not bool(canvas.masked.any()) and [len(rows) for rows, _, _ in model.seen] == [3, 3, 2, 2, 1, 1]


def test_banned_ids_never_come() -> None:
    banned = tuple(range(0, VOCAB, 2))
    canvas = run(Noisy(), blank(2, SIZE), preset("entropy-bound", steps=4, banned=banned))  # type: ignore[arg-type]
    assert not bool(torch.isin(canvas.ids, torch.tensor(banned)).any())


def test_slots_of_a_scaffold_are_valid_and_its_end_stands_behind_it() -> None:
    tokenizer = Tokenizer.pocket()
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 99}, "yes": {"type": "boolean"}}, "required": ["n", "yes"]}
    size, vocab = 7, tokenizer.vocab_size
    symbols = Symbols(tokenizer.special["<|pad|>"], vocab)
    scaffold = compile_scaffold(parse_schema(schema), tokenizer, symbols=symbols)
    assert len(scaffold) % size  # the last canvas has room behind the scaffold
    rows = scaffold.to_canvas_rows()
    cells = [None if masked else token for token, masked in zip(rows.ids, rows.masked, strict=True)]
    recipe = preset("entropy-bound", steps=4)
    driver = recipe.driver.__class__(recipe.driver.accept, recipe.driver.cooling, recipe.driver.settle, tail=(7, 8))  # type: ignore[union-attr]
    for seed in range(4):
        model = Noisy(vocab, size, prompts=(seed,))
        canvas = Canvas.from_rows([cells], mask_id=symbols.mask, pad_id=symbols.pad, slot_index=[rows.slot_index])
        for _ in decode(model, canvas, recipe.with_parts(joint=SlotEngine(scaffold), driver=driver), seed=seed):  # type: ignore[arg-type]
            pass
        data, fields = scaffold.read(canvas.ids[0].tolist(), canvas.commit_confidence[0].tolist())
        assert 10 <= data["n"] <= 99 and isinstance(data["yes"], bool) and set(fields) == {"/n", "/yes"}
        behind = len(scaffold) % size
        last = [ids[0, behind:].tolist() for _, ids, _ in model.seen][-1]
        assert last == [7] + [8] * (size - behind - 1)


def test_wrong_options_and_models() -> None:
    for options in ({"entropy_bound": 0}, {"t_min": 0.9}, {"steps": 0}, {"stability": -1}, {"confidence": 0}, {"temperature": 1.0}, {"steps": "x"}):
        with pytest.raises(OptionError):
            preset("entropy-bound", **options)
    with pytest.raises(DecodingError, match="uniform noise"):
        run(ToyDenoiser(VOCAB), blank(1, 4), preset("entropy-bound"))
    assert set(UNIFORM) == {"entropy-bound"} and isinstance(preset("entropy-bound"), Recipe)
