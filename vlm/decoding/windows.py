"""Windows: the whole canvas, or blocks from left to right, which a prompt may have begun."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.errors import OptionError


def check_part(length: int, part: int | None) -> None:
    """OptionError unless a block can be cut into such parts."""
    if part is not None and (part < 1 or length % part):
        raise OptionError(f"part is {part} of blocks of {length}", remedy="use a divisor of block_length, or None")


@dataclass(frozen=True)
class FullWindow:
    """Every open cell."""

    def start(self, canvas: Canvas) -> FullWindow:
        """No state."""
        return self

    def cells(self, canvas: Canvas) -> Tensor:
        """[B, L] open cells."""
        return canvas.open

    def number(self, canvas: Canvas) -> Tensor:
        """[B] zeros."""
        return torch.zeros(canvas.ids.shape[0], dtype=torch.long)


@dataclass(frozen=True)
class BlockWindow:
    """Semi-autoregressive blocks of fixed length (LLaDA, arXiv:2502.09992, section 2.4).

    Each row works on the block that holds its first open cell.

    Args:
        part: work on so many cells of a block at a time, from left to right (Fast-dLLM v2's small blocks); None: on all.
    """

    length: int = 32
    part: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise OptionError(f"block_length is {self.length}", remedy="use 1 or more, or None for one block")
        check_part(self.length, self.part)

    def start(self, canvas: Canvas) -> BlockWindow:
        """No state: the block follows from the canvas."""
        return self

    def cells(self, canvas: Canvas) -> Tensor:
        """[B, L] open cells of each row's block, or of its part."""
        length = self.part or self.length  # parts do not straddle blocks
        block = torch.arange(canvas.ids.shape[1]) // length
        return canvas.open & (block == (canvas.open.int().argmax(dim=1) // length).unsqueeze(1))

    def number(self, canvas: Canvas) -> Tensor:
        """[B] index of the first block with an open cell."""
        return canvas.open.int().argmax(dim=1) // self.length


@dataclass(frozen=True)
class AlignedBlocks:
    """Blocks from left to right, of which the first has only what the prompt's tail leaves.

    Args:
        length: of a block. filled: [B] cells of the first block that the prompt takes. part: see :class:`BlockWindow`.
    """

    length: int
    filled: tuple[int, ...]
    part: int | None = None

    def start(self, canvas: Canvas) -> AlignedBlocks:
        """No state: the block follows from the canvas."""
        return self

    def blocks(self, cells: int) -> Tensor:
        """[B, cells] block numbers, from 0."""
        return (torch.tensor(self.filled).unsqueeze(1) + torch.arange(cells)) // self.length

    def cells(self, canvas: Canvas) -> Tensor:
        """[B, L] open cells of each row's block, or of its part."""
        length = self.part or self.length
        place = torch.tensor(self.filled).unsqueeze(1) + torch.arange(canvas.ids.shape[1])
        first = place.gather(1, canvas.open.int().argmax(dim=1, keepdim=True))
        return canvas.open & (place // length == first // length)

    def number(self, canvas: Canvas) -> Tensor:
        """[B] number of the first block with an open cell."""
        first = canvas.open.int().argmax(dim=1)
        return (torch.tensor(self.filled) + first) // self.length
