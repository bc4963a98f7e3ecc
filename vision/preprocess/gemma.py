"""Gemma 4's patches: pictures at their own aspect ratio, within a budget of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vision.errors import ImageFormatError, VisionConfigError
from vision.preprocess.pixels import Backend, Filter, Normalization, filter_named, resize

#: Tokens per picture the model was trained with.
BUDGETS = (70, 140, 280, 560, 1120)
#: Values in 0..1, as they are.
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class GemmaPatches:
    """Preprocessing of the Gemma 4 vision tower.

    Attributes:
        budget: most tokens of a picture, one of :data:`BUDGETS`. patch: side of a patch in pixels. pool: patches on a side of
            the square that becomes one token.
    """

    budget: int = 280
    patch: int = 16
    pool: int = 3
    normalization: Normalization = PLAIN
    filter: Filter = "bicubic"
    backend: Backend = "pil"

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise VisionConfigError(f"max_soft_tokens is {self.budget}", source="preprocessor config", remedy=f"use one of {', '.join(map(str, BUDGETS))}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], patch: int = 16, pool: int = 3) -> GemmaPatches:
        """From a preprocessor_config.json, or the `image_processor` of a processor_config.json."""
        normal = Normalization.from_dict(config, PLAIN) if config.get("do_normalize") else PLAIN
        return cls(
            int(config.get("max_soft_tokens") or 280), int(config.get("patch_size") or patch), int(config.get("pooling_kernel_size") or pool), normal,
            filter_named(config.get("resample")),
        )  # fmt: skip

    def with_budget(self, budget: int) -> GemmaPatches:
        """The same with another budget of tokens."""
        return replace(self, budget=budget)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, multiples of patch * pool, the largest that keep the aspect ratio and the budget.

        Raises:
            ImageFormatError: no cell is left of a very narrow picture.
        """
        cell, area = self.patch * self.pool, self.budget * (self.patch * self.pool) ** 2
        factor = math.sqrt(area / (width * height))
        columns, rows = (math.floor(factor * side / cell) for side in (width, height))
        if columns == 0 and rows == 0:
            raise ImageFormatError(f"{width} x {height} pixels leave no cell of {cell}", source="image", remedy="raise the budget of tokens")
        if rows == 0:
            rows, columns = 1, min(width // height, self.budget)
        elif columns == 0:
            columns, rows = 1, min(height // width, self.budget)
        return columns * cell, rows * cell

    def count(self, size: tuple[int, int]) -> int:
        """Tokens of a picture of (width, height)."""
        width, height = self.size(*size)
        return width * height // (self.patch * self.pool) ** 2

    def __call__(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Patches and places of RGB pictures.

        Returns:
            pixels [V, N, 3 * patch²] float32 in row order, zero on padding; places [V, N, 2] (column, row), -1 on padding.
            N is that of the largest picture: padding makes no difference to the tower.
        """
        rows = [self._patches(image) for image in images]
        most = max(len(pixels) for pixels, _ in rows)
        pixels = torch.zeros(len(rows), most, rows[0][0].shape[1])
        places = torch.full((len(rows), most, 2), -1)
        for i, (patches, where) in enumerate(rows):
            pixels[i, : len(patches)], places[i, : len(where)] = patches, where
        return pixels, places

    def _patches(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        image = resize(image, self.size(*image.size), self.filter, self.backend)
        values = self.normalization(image)  # [3, H, W]
        rows, columns = values.shape[1] // self.patch, values.shape[2] // self.patch
        cut = values.reshape(3, rows, self.patch, columns, self.patch).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return cut, torch.stack((column.flatten(), row.flatten()), dim=1)
