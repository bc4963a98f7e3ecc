"""Where the patches of packed pictures lie, for the Qwen towers: merge order, windows, attention segments, positions.

Patches come in *merge order*: the merge x merge patches of one merged cell follow each other, the cells row by row. A
*segment* is a run of patches that attend to each other. Everything here is integers, computed once per set of grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

#: (frames, rows, columns) of each picture, in patches.
Grids = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Segments:
    """Runs of patches, grouped by length, so that each group is one batched attention.

    Attributes:
        groups: index tensors [runs, length] into the sequence. whole: whether the only group is the sequence in order.
    """

    groups: tuple[Tensor, ...]
    whole: bool

    def to(self, device: torch.device) -> Segments:
        """The same on another device."""
        return Segments(tuple(group.to(device) for group in self.groups), self.whole)


@dataclass(frozen=True)
class WindowOrder:
    """Order of merged cells by windows (Qwen2.5-VL).

    Attributes:
        index: [cells] cell that stands at each place. lengths: patches of each window, in that order.
    """

    index: Tensor
    lengths: tuple[int, ...]


def positions(grids: Grids, merge: int) -> Tensor:
    """Row and column [N, 2] of each patch in its frame, in merge order."""
    parts = []
    for frames, rows, columns in grids:
        place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)  # [h,w,2]
        blocks = place.view(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2).reshape(-1, 2)
        parts.append(blocks.repeat(frames, 1))
    return torch.cat(parts)


def frame_lengths(grids: Grids) -> tuple[int, ...]:
    """Patches of each frame; a frame is a segment of full attention."""
    return tuple(rows * columns for frames, rows, columns in grids for _ in range(frames))


def segments(lengths: tuple[int, ...]) -> Segments:
    """Consecutive runs of the given lengths, grouped by length."""
    starts: dict[int, list[int]] = {}
    at = 0
    for length in lengths:
        starts.setdefault(length, []).append(at)
        at += length
    groups = tuple(torch.tensor(first)[:, None] + torch.arange(length) for length, first in starts.items())
    return Segments(groups, len(groups) == 1)


def window_order(grids: Grids, merge: int, window: int) -> WindowOrder:
    """Cells window by window; `window` is the side of a window in merged cells. Windows at the edge are cut short."""
    order, lengths, start = [], [], 0
    for frames, rows, columns in grids:
        height, width = rows // merge, columns // merge
        cells = torch.arange(height * width).view(height, width)
        for frame in range(frames):
            for top in range(0, height, window):
                for left in range(0, width, window):
                    block = cells[top : top + window, left : left + window].reshape(-1)
                    order.append(block + start + frame * height * width)
                    lengths.append(len(block) * merge**2)
        start += frames * height * width
    return WindowOrder(torch.cat(order), tuple(lengths))


def bilinear_taps(grids: Grids, merge: int, side: int) -> tuple[Tensor, Tensor]:
    """Learned positions of a side x side table for each patch (Qwen3-VL): indices [N, 4] and weights [N, 4].

    Corners of the picture lie on corners of the table.
    """
    indices, weights = [], []
    for grid in grids:
        place = positions((grid,), merge).float()  # [n,2]
        span = torch.tensor([max(grid[1] - 1, 1), max(grid[2] - 1, 1)]).float()
        exact = place * (side - 1) / span
        low = exact.floor().long()
        high = (low + 1).clamp(max=side - 1)
        share = exact - low
        (y0, x0), (y1, x1), (fy, fx) = low.unbind(-1), high.unbind(-1), share.unbind(-1)
        indices.append(torch.stack((y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1), dim=-1))
        weights.append(torch.stack(((1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx), dim=-1))
    return torch.cat(indices), torch.cat(weights)


@dataclass(frozen=True)
class Plan:
    """All of it for one set of grids. `cells` is the order of merged cells the blocks work in (None: picture order)."""

    positions: Tensor
    frames: Segments
    windows: Segments | None
    cells: Tensor | None
    inverse: Tensor | None

    def to(self, device: torch.device) -> Plan:
        """The same on another device."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        windows = None if self.windows is None else self.windows.to(device)
        return Plan(self.positions.to(device), self.frames.to(device), windows, moved(self.cells), moved(self.inverse))


@lru_cache(maxsize=64)
def plan(grids: Grids, merge: int, window: int | None, device: torch.device) -> Plan:
    """Positions and segments of the given grids in the order the blocks work in.

    Frames stay contiguous in window order, so their segments are the same.
    """
    with torch.inference_mode(False):  # what is kept must also serve a later training step
        place = positions(grids, merge)
        frames = segments(frame_lengths(grids))
        if window is None:
            return Plan(place, frames, None, None, None).to(device)
        order = window_order(grids, merge, window)
        place = place.view(-1, merge**2, 2)[order.index].view(-1, 2)
        return Plan(place, frames, segments(order.lengths), order.index, order.index.argsort()).to(device)
