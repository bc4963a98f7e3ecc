"""Block diffusion (BD3-LM, arXiv:2503.09573): what decodes a model whose attention is causal over blocks.

A cell sees its own block and those before it. A finished block is therefore run once more without masks and its keys and
values are kept for good (the commit pass): the cache is exact. Families differ in where blocks begin:

* 'shared' (DiffusionVL, SDAR): blocks are counted from the first entry of the prompt, so what is left of the prompt behind its
  last whole block lies in the first block of the answer;
* 'fresh' (BARD-VL, Fast-dVLM): the prompt's last block may be short, the answer starts a block of its own.

and in what finished entries see: their block and those before it, or ('token', Fast-dVLM) only entries before them. With
shifted logits (Fast-dLLM v2) the first cell of a block is predicted by the last entry before it, which is finished: its
prediction cannot change any more and costs nothing (:meth:`BlockDenoiser.ahead`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm.backbone.cache import PrefixCache
from vlm.backbone.inputs import Inputs, deepstack
from vlm.backbone.model import DiffusionBackbone
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Prediction, Window
from vlm.decoding.windows import AlignedBlocks, BlockWindow
from vlm.errors import OptionError

PromptTail = Literal["shared", "fresh"]
Finished = Literal["block", "token"]


def block_rule(numbers: Tensor) -> Tensor:
    """[B, T, T] which entry (row) may see which (column), from the block number [B, T] of each: its own and earlier blocks."""
    return numbers.unsqueeze(2) >= numbers.unsqueeze(1)


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model: their length, where the recipe does not say, where they begin, and what finished entries see."""

    length: int
    tail: PromptTail = "shared"
    finished: Finished = "block"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise OptionError(f"block_length is {self.length}", remedy="use 1 or more")
        if self.tail not in get_args(PromptTail):
            raise OptionError(f"unknown place of blocks {self.tail!r}", remedy=f"use one of {', '.join(get_args(PromptTail))}")
        if self.finished not in get_args(Finished) or (self.finished == "token" and self.tail != "fresh"):
            raise OptionError(f"finished entries see {self.finished!r} behind {self.tail!r} blocks", remedy="use 'block', or 'token' with 'fresh'")


def entry_blocks(lengths: Tensor, cells: int, blocks: Blocks, width: int | None = None) -> Tensor:
    """[B, P + cells] block numbers of prompts (padded on the right to P) and the canvas behind them.

    Args:
        lengths: [B] of the prompts. width: P, the longest prompt if None.
    """
    width, block = int(lengths.max()) if width is None else width, blocks.length
    ahead, prompt = torch.arange(cells, device=lengths.device), torch.arange(width, device=lengths.device)
    if blocks.tail == "shared":
        answer = (lengths.unsqueeze(1) + ahead) // block
    else:
        answer = (lengths.unsqueeze(1) + block - 1) // block + ahead // block
    return torch.cat(((prompt // block).expand(len(lengths), -1), answer), dim=1)


class BlockDenoiser:
    """A block-causal backbone behind B prompts. Runs on the backbone's device; canvas and logits stay on the canvas's.

    Rows may have prompts of different lengths and be in different blocks; each has what it would have alone. Commit passes
    count as forwards of the canvas.

    Args:
        backbone: the model. inputs: prompts, padded on the right.
        blocks: of the family.
    """

    def __init__(self, backbone: DiffusionBackbone, inputs: Inputs, blocks: Blocks) -> None:
        self.backbone, self.device = backbone, backbone.token_embed.weight.device
        self.inputs, self.block, self.tail, self.finished = inputs.to(self.device), blocks.length, blocks.tail, blocks.finished
        self.part: int | None = None  # cells decoded at a time, where the recipe wants less than a block
        self.shift = bool(backbone.config.logit_shift)
        self.vocab_size = backbone.config.logit_size
        self.cache: PrefixCache | None = None
        self.done = torch.zeros(len(inputs.embeds), dtype=torch.long)  # [B] blocks of the answer in the cache

    def window(self, asked: Window) -> AlignedBlocks:
        """The window of a run: blocks as long as the recipe's if that has any, where this model has them. Begins a new run."""
        if isinstance(asked, BlockWindow):
            self.block, self.part = asked.length, asked.part
        self.cache, self.done = None, torch.zeros_like(self.done)
        return self._blocks()

    def _blocks(self) -> AlignedBlocks:
        lengths = self.inputs.lengths.tolist()
        return AlignedBlocks(self.block, tuple(n % self.block if self.tail == "shared" else 0 for n in lengths), self.part)

    @torch.no_grad()
    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits of the asked cells, which must lie in one block in each row; one forward, and commit passes where due."""
        blocks = self._blocks()
        self._catch_up(canvas, blocks, cells)
        assert self.cache is not None
        rows = cells.any(dim=1).nonzero(as_tuple=True)[0]
        embeds, positions, valid, deep, place = self._gather(canvas, blocks, rows)
        cache = self.cache if len(rows) == len(self.done) else self.cache.select(rows.to(self.device))
        hidden = self.backbone(embeds, positions, valid, cache=cache, between=deepstack(deep))
        if self.shift:
            hidden = self._shifted(hidden, cache, place.to(self.device))
        asked = (cells[rows].gather(1, place.clamp(0, cells.shape[1] - 1)) & (place >= 0) & (place < cells.shape[1])).to(self.device)
        return Prediction(self.backbone.logits(hidden[:, -self.block :][asked]).float().to(canvas.ids.device))

    @torch.no_grad()
    def ahead(self, canvas: Canvas, cells: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of the asked cells without a forward: with shifted logits the first cell of a row's block, unless a part
        of the prompt stands before it.

        Returns:
            [B, L] these cells; [N, V] their logits. Finished blocks are taken into the cache where due.
        """
        blocks, known = self._blocks(), torch.zeros_like(cells)
        if not self.shift or not bool(cells.any()):
            return known, torch.zeros(0, self.vocab_size)
        self._catch_up(canvas, blocks, cells)
        assert self.cache is not None
        place = self.done * self.block - torch.tensor(blocks.filled)  # [B] column of the block's first cell
        rows = ((place >= 0) & cells.any(dim=1)).nonzero(as_tuple=True)[0]
        known[rows, place[rows]] = cells[rows, place[rows]]
        rows = known.any(dim=1).nonzero(as_tuple=True)[0].to(self.device)
        return known, self.backbone.logits(_last(self.cache)[rows]).float().to(canvas.ids.device)

    def _catch_up(self, canvas: Canvas, blocks: AlignedBlocks, cells: Tensor) -> None:
        """Prompt and finished blocks into the cache, up to the block of the asked cells in each row."""
        if self.cache is None:
            self.cache = self._prefill()
        busy = cells.any(dim=1)
        number = torch.where(busy, blocks.blocks(cells.shape[1]).gather(1, cells.int().argmax(dim=1, keepdim=True)).squeeze(1), self.done)
        while bool((due := busy & (self.done < number)).any()):
            self._commit(canvas, blocks, due)

    def _shifted(self, hidden: Tensor, cache: PrefixCache, place: Tensor) -> Tensor:
        """[n, block, D] states that speak of the block's own cells [n, block] (canvas columns): each is that of the entry before."""
        inside = hidden[:, -self.block :]
        before = torch.cat((_last(cache).unsqueeze(1), inside[:, :-1]), dim=1)
        tail = hidden.shape[1] - self.block  # entries of the prompt, at the left, in rows whose first block they share
        if not tail:
            return before
        row, at = ((place == 0) & (torch.arange(self.block, device=place.device) > 0)).nonzero(as_tuple=True)
        before[row, at] = hidden[row, at - 1]  # the block's first `at` cells are the prompt's
        return before

    def _prefill(self) -> PrefixCache:
        """The prompt under the block rule, without the tails that lie in the answer's first block."""
        inputs = self.inputs
        valid = inputs.valid
        if self.tail == "shared":
            whole = inputs.lengths // self.block * self.block
            valid = valid & (torch.arange(valid.shape[1], device=self.device) < whole.unsqueeze(1))
        width = int(valid.sum(dim=1).max())
        step = 1 if self.finished == "token" else self.block
        rule = block_rule((torch.arange(width, device=self.device) // step).unsqueeze(0))
        itself = torch.eye(width, dtype=torch.bool, device=self.device)  # no entry may be blind: some kernels give it NaN
        rule = rule & (valid[:, None, :width] | itself)
        everything = torch.ones_like(valid[:, :width])
        cache = self.backbone.prefill(
            inputs.embeds[:, :width], inputs.positions[:, :width], everything, rule, deepstack([d[:, :width] for d in inputs.deep])
        )
        cache.valid = valid[:, :width]
        return cache

    def _commit(self, canvas: Canvas, blocks: AlignedBlocks, due: Tensor) -> None:
        """Run the next block of the rows that are due without masks, and keep it; other rows get padding."""
        assert self.cache is not None
        everyone = torch.arange(len(due))
        embeds, positions, valid, deep, _ = self._gather(canvas, blocks, everyone)
        rule = None
        if self.finished == "token":
            new = torch.ones(embeds.shape[1], embeds.shape[1], dtype=torch.bool, device=self.device).tril()
            rule = torch.cat((torch.ones(len(new), self.cache.valid.shape[1], dtype=torch.bool, device=self.device), new), dim=1).unsqueeze(0)
        self.cache = self.backbone.extend(self.cache, embeds, positions, valid, rule, deepstack(deep))
        self.cache.valid[:, -valid.shape[1] :] &= due.unsqueeze(1).to(self.device)
        self.done += due
        canvas.forwards += due

    def _gather(self, canvas: Canvas, blocks: AlignedBlocks, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
        """The current block (number `done`) of the given rows, behind the prompt's tail where that is part of it.

        Returns:
            embeds [n, T, D], positions, valid [n, T], deep, and the canvas columns [n, block] of the last `block` of these T.
        """
        length, done = canvas.ids.shape[1], self.done[rows]
        place = done.unsqueeze(1) * self.block - torch.tensor(blocks.filled)[rows].unsqueeze(1) + torch.arange(self.block)  # [n,block]
        inside = (place >= 0) & (place < length)
        column = place.clamp(0, length - 1)
        inside &= canvas.valid[rows].gather(1, column)
        column, inside = column.to(self.device), inside.to(self.device)
        embeds = self.backbone.embed(canvas.ids[rows].to(self.device).gather(1, column))
        positions = self.inputs.start[rows.to(self.device)].unsqueeze(1) + column
        if self.inputs.positions.ndim == 3:
            positions = positions.unsqueeze(-1).expand(-1, -1, 3)
        if self.tail == "fresh" or not bool((done == 0).any()):
            return embeds, positions, inside, [], place
        return (*self._with_tail(rows, done == 0, embeds, positions, inside), place)

    def _with_tail(
        self, rows: Tensor, first: Tensor, embeds: Tensor, positions: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Put the prompt's entries behind its last whole block before the cells, in rows that are in their first block."""
        rows, first, inputs = rows.to(self.device), first.to(self.device), self.inputs
        lengths = inputs.lengths[rows]
        begin = lengths // self.block * self.block
        place = begin.unsqueeze(1) + torch.arange(max(1, self.block - 1), device=self.device)  # [n, block - 1]
        there = (place < lengths.unsqueeze(1)) & first.unsqueeze(1)
        if not bool(there.any()):
            return embeds, positions, valid, []
        place = place[:, : int(there.sum(dim=1).max())]
        there, column = there[:, : place.shape[1]], place.clamp_max(inputs.embeds.shape[1] - 1)
        picked = rows.unsqueeze(1)
        deep = [d[picked, column] for d in inputs.deep]
        return (
            torch.cat((inputs.embeds[picked, column], embeds), dim=1), torch.cat((inputs.positions[picked, column], positions), dim=1),
            torch.cat((there, valid), dim=1), deep,
        )  # fmt: skip


def _last(cache: PrefixCache) -> Tensor:
    """[n, D] states of the last valid entry of each row; of rows that have none, anything."""
    if not cache.valid.shape[1]:
        return cache.hidden.new_zeros(len(cache.hidden), cache.hidden.shape[2])
    place = (cache.valid * torch.arange(1, cache.valid.shape[1] + 1, device=cache.valid.device)).argmax(dim=1)
    return cache.hidden[torch.arange(len(place), device=place.device), place]
