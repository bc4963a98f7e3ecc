"""Block-causal decoding: rules, exact caches, rows of different lengths, stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vlm.backbone.config import BackboneConfig
from vlm.backbone.inputs import Inputs
from vlm.backbone.model import DiffusionBackbone
from vlm.decoding.blocks import BlockDenoiser, Blocks, block_rule, entry_blocks
from vlm.decoding.canvas import Canvas
from vlm.decoding.loop import run
from vlm.decoding.presets import preset
from vlm.decoding.stops import EndOfBlock
from vlm.decoding.windows import AlignedBlocks, BlockWindow
from vlm.errors import OptionError
from vlm.training.block_diffusion import doubled_rule, prefix_rule, stratified_levels
from vlm.training.losses import context_weights

LENGTHS = (5, 8, 3)
BOTH = pytest.mark.parametrize("tail", ["shared", "fresh"])


@pytest.fixture(scope="module")
def backbone() -> DiffusionBackbone:
    torch.manual_seed(0)
    config = BackboneConfig(
        vocab_size=24, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24, mask_token_id=23, pad_token_id=22, eos_token_id=21,
    )  # fmt: skip
    return DiffusionBackbone(config).eval()


def inputs_of(backbone: DiffusionBackbone, lengths: tuple[int, ...]) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    prompts = {n: torch.randint(0, 20, (n,), generator=generator) for n in sorted(set(LENGTHS))}
    with torch.no_grad():
        return Inputs.join([(backbone.embed(prompts[n]), torch.arange(n), n, ()) for n in lengths])


def canvas_of(backbone: DiffusionBackbone, rows: int, cells: int) -> Canvas:
    return Canvas.blank(rows, cells, mask_id=backbone.config.mask_token_id, pad_id=backbone.config.pad_token_id)


def whole(backbone: DiffusionBackbone, inputs: Inputs, ids: Tensor, blocks: Blocks) -> Tensor:
    """Logits of the canvas [B, L, V] in one pass."""
    cells = ids.shape[1]
    embeds = torch.cat((inputs.embeds, backbone.embed(ids)), dim=1)
    positions = torch.cat((inputs.positions, inputs.start.unsqueeze(1) + torch.arange(cells)), dim=1)
    valid = torch.cat((inputs.valid, torch.ones_like(ids, dtype=torch.bool)), dim=1)
    rule = block_rule(entry_blocks(inputs.lengths, cells, blocks, inputs.valid.shape[1]))
    with torch.no_grad():
        return backbone.logits(backbone(embeds, positions, valid, rule=rule))[:, -cells:]


@BOTH
def test_cached_blocks_equal_one_pass(backbone: DiffusionBackbone, tail: str) -> None:
    blocks = Blocks(4, tail)  # type: ignore[arg-type]
    inputs = inputs_of(backbone, LENGTHS)
    denoiser = BlockDenoiser(backbone, inputs, blocks)
    ids = torch.randint(0, 20, (3, 10), generator=torch.Generator().manual_seed(2))
    canvas = Canvas.from_rows(ids.tolist(), mask_id=backbone.config.mask_token_id, pad_id=backbone.config.pad_token_id)
    numbers = denoiser.window(preset("block-static", block_length=4).window).blocks(10)
    expected = whole(backbone, inputs, ids, blocks)
    for number in range(int(numbers.max()) + 1):
        cells = numbers == number
        torch.testing.assert_close(denoiser(canvas, cells).logits, expected[cells], rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("name", ["block-static", "block-dynamic", "block-sequential"])
def test_a_batch_equals_its_rows_alone(backbone: DiffusionBackbone, tail: str, name: str) -> None:
    recipe, blocks = preset(name, block_length=4, steps_per_block=3, banned=(backbone.config.pad_token_id,)), Blocks(4, tail)  # type: ignore[arg-type]
    together = run(BlockDenoiser(backbone, inputs_of(backbone, LENGTHS), blocks), canvas_of(backbone, 3, 9), recipe)
    for i, length in enumerate(LENGTHS):
        alone = run(BlockDenoiser(backbone, inputs_of(backbone, (length,)), blocks), canvas_of(backbone, 1, 9), recipe)
        assert together.ids[i].tolist() == alone.ids[0].tolist()
        assert int(together.forwards[i]) == int(alone.forwards[0])
    assert not bool(together.masked.any())


def test_commit_passes_count_as_forwards_and_not_as_steps(backbone: DiffusionBackbone) -> None:
    canvas = run(BlockDenoiser(backbone, inputs_of(backbone, (8,)), Blocks(4)), canvas_of(backbone, 1, 12), preset("block-static", steps_per_block=2))
    assert (int(canvas.step[0]), int(canvas.forwards[0])) == (6, 8)


def test_the_published_stop_leaves_masks_behind_the_block(backbone: DiffusionBackbone) -> None:
    denoiser = BlockDenoiser(backbone, inputs_of(backbone, (8,)), Blocks(4))
    recipe = preset("block-static", steps_per_block=4)
    first = int(run(denoiser, canvas_of(backbone, 1, 12), recipe).ids[0, 0])
    ended = run(denoiser, canvas_of(backbone, 1, 12), recipe.with_parts(stop=EndOfBlock((first,), denoiser.window(recipe.window))))
    assert ended.masked[0].tolist() == [False] * 4 + [True] * 8


@pytest.mark.parametrize("options", [{"length": 0}, {"length": 4, "tail": "anywhere"}, {"length": 4, "finished": "never"}, {"length": 4, "finished": "token"}])
def test_bad_blocks_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        Blocks(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shifted(backbone: DiffusionBackbone) -> DiffusionBackbone:
    """The same weights, whose logits speak of the next token."""
    other = DiffusionBackbone(replace(backbone.config, logit_shift=1)).eval()
    other.load_state_dict(backbone.state_dict())
    return other


RULES = pytest.mark.parametrize("blocks", [Blocks(4), Blocks(4, "fresh"), Blocks(4, "fresh", "token")], ids=["shared", "fresh", "token"])


def one_pass(backbone: DiffusionBackbone, prompt: Tensor, ids: Tensor, blocks: Blocks, number: int) -> Tensor:
    """Logits [L, V] of canvas cells behind one prompt [P, D] in one pass, block `number` of the answer under work; each from the entry before."""
    length, total = len(prompt), len(prompt) + len(ids)
    seen = entry_blocks(torch.tensor([length]), len(ids), blocks)[0]
    rule = seen.unsqueeze(1) >= seen
    if blocks.finished == "token":
        mine = torch.zeros(total, dtype=torch.bool)
        mine[length:] = torch.arange(len(ids)) // blocks.length == number
        rule = torch.ones(total, total, dtype=torch.bool).tril() | (mine.unsqueeze(1) & mine)
    embeds = torch.cat((prompt, backbone.embed(ids))).unsqueeze(0)
    with torch.no_grad():
        hidden = backbone(embeds, torch.arange(total).unsqueeze(0), torch.ones(1, total, dtype=torch.bool), rule=rule.unsqueeze(0))
        return backbone.logits(hidden)[0, length - 1 : total - 1]


@RULES
def test_shifted_blocks_speak_of_the_next_entry(shifted: DiffusionBackbone, blocks: Blocks) -> None:
    inputs = inputs_of(shifted, LENGTHS)
    denoiser = BlockDenoiser(shifted, inputs, blocks)
    ids = torch.randint(0, 20, (3, 10), generator=torch.Generator().manual_seed(2))
    canvas = Canvas.from_rows(ids.tolist(), mask_id=shifted.config.mask_token_id, pad_id=shifted.config.pad_token_id)
    numbers = denoiser.window(preset("block-static", block_length=4).window).blocks(10)
    for number in range(int(numbers.max()) + 1):
        cells = numbers == number
        known, sure = denoiser.ahead(canvas, cells)
        theirs = torch.cat([
            one_pass(shifted, inputs.embeds[i, : LENGTHS[i]], ids[i], blocks, number)[cells[i]] for i in range(3)
        ])  # fmt: skip
        torch.testing.assert_close(denoiser(canvas, cells).logits, theirs, rtol=1e-4, atol=1e-4)
        first = cells & ~torch.cat((torch.zeros(3, 1, dtype=torch.bool), cells[:, :-1]), dim=1)
        if number == 0 and blocks.tail == "shared":
            first &= torch.tensor(LENGTHS).unsqueeze(1) % 4 == 0  # else the prompt's tail stands before it, in the same block
        assert torch.equal(known, first)
        torch.testing.assert_close(sure, theirs[first[cells]], rtol=1e-4, atol=1e-4)


def published_loop(backbone: DiffusionBackbone, prompt: Tensor, cells: int, threshold: float, part: int) -> tuple[list[int], int]:
    """Fast-dLLM v2's way without any cache: (tokens, forwards on blocks with masks), for blocks of 4 that a prompt may have begun."""
    mask, tokens, forwards = backbone.config.mask_token_id, torch.full((cells,), backbone.config.mask_token_id), 0

    def logits() -> Tensor:
        found = one_pass(backbone, prompt, tokens, Blocks(4), 0)
        found[:, mask] = -torch.inf
        return found.softmax(dim=-1)

    place = len(prompt) + torch.arange(cells)
    for block in place.unique_consecutive(dim=0).floor_divide(4).unique().tolist():
        mine = place // 4 == block
        first = int(mine.int().argmax())
        if int(place[first]) % 4 == 0:
            tokens[first] = logits()[first].argmax()  # what stands before it is finished
        for piece in (place[mine] // part).unique().tolist():
            while bool((todo := (place // part == piece) & (tokens == mask)).any()):
                chance, best = logits().max(dim=-1)
                chance = chance.masked_fill(~todo, -1.0)
                chosen = chance > threshold
                chosen[chance.argmax()] = True
                tokens[chosen] = best[chosen]
                forwards += 1
    return tokens.tolist(), forwards


@pytest.mark.parametrize("threshold", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("part", [2, 4])
def test_the_first_cell_of_a_block_is_free_and_parts_are_decoded_in_turn(shifted: DiffusionBackbone, threshold: float, part: int) -> None:
    recipe = preset("block-dynamic", block_length=4, steps_per_block=4, part=part, threshold=threshold, first_cell=True)
    inputs = inputs_of(shifted, LENGTHS)
    together = run(BlockDenoiser(shifted, inputs, Blocks(4)), canvas_of(shifted, 3, 11), recipe)
    for i, length in enumerate(LENGTHS):
        tokens, forwards = published_loop(shifted, inputs.embeds[i, :length], 11, threshold, part)
        assert together.ids[i].tolist() == tokens and int(together.step[i]) == forwards


def test_parts_must_divide_their_blocks() -> None:
    for part in (3, 0):
        with pytest.raises(OptionError, match="part"):
            preset("block-dynamic", block_length=4, part=part)
    window = BlockWindow(4, 2)
    canvas = Canvas.from_rows([[1, None, None, None, None, None]], mask_id=23, pad_id=22)
    assert window.cells(canvas)[0].tolist() == [False, True, False, False, False, False] and int(window.number(canvas)) == 0
    assert AlignedBlocks(4, (2,), 2).cells(canvas)[0].tolist() == [False, True, False, False, False, False]


def test_training_rules_hide_the_answer_and_agree_with_decoding() -> None:
    block = torch.arange(12) // 4
    rule = doubled_rule(block)
    assert bool(rule.diagonal().all())
    assert not bool((rule[:12, 12:] & (block.unsqueeze(1) <= block)).any())  # a noisy entry never sees its own clean block
    assert not bool(rule[12:, :12].any())
    assert torch.equal(rule[12:, 12:], block_rule(block.unsqueeze(0))[0])
    rule = prefix_rule(6, 8, 4)
    assert torch.equal(rule[:14, :14], block_rule(entry_blocks(torch.tensor([6]), 8, Blocks(4, "fresh")))[0])
    assert not bool(rule[:14, 14:].any())
    assert bool(prefix_rule(6, 8, 4, reference_quirks=True)[6:14, 14:].any())


def test_levels_fall_into_their_strata_and_weights_follow_the_context() -> None:
    levels = stratified_levels(torch.rand(2, 4, generator=torch.Generator().manual_seed(0)), 0.0, 1.0)
    assert (levels.flatten() * 8).long().tolist() == list(range(8))
    weight = context_weights(torch.tensor([[False, True, True, True, True, True]]), p=0.1)[0]
    assert weight.tolist() == pytest.approx([0.0, *(0.05 * 0.9**d for d in range(5))])
