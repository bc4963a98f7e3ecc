"""Native-resolution patches: Qwen's smart resize with its merge order, and SigLIP 2 NaFlex."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from vision.errors import ImageFormatError, VisionConfigError
from vision.preprocess.pixels import CLIP, HALF, Backend, Filter, Normalization, filter_named, resize

#: What happens to a picture with a side below one cell: scaled as any other, enlarged first, or refused.
Small = Literal["scale", "enlarge", "refuse"]
#: Largest ratio of the sides.
MAX_RATIO = 200


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int, *, small: Small = "scale", reference_quirks: bool = False
) -> tuple[int, int]:
    """Height and width, multiples of `factor`, near the given ones and with an area between the limits.

    Args:
        small: what to do with a side below `factor`; "enlarge" also lifts the limit on the ratio of sides for them.
        reference_quirks: let a side of a very narrow picture become 0, as several references do (and then fail).

    Raises:
        ImageFormatError: a ratio of sides above MAX_RATIO, or a small side that is refused.
    """
    below = min(height, width) < factor
    if below and small == "refuse":
        raise ImageFormatError(f"{width} x {height} pixels: both sides must have at least {factor}", source="image", remedy="enlarge it")
    if below and small == "enlarge":
        if height < factor:
            height, width = factor, int(width * factor / height)
        if width < factor:
            height, width = int(height * factor / width), factor
    elif max(height, width) / min(height, width) > MAX_RATIO:
        raise ImageFormatError(f"{width} x {height} pixels: one side is over {MAX_RATIO} times the other", source="image", remedy="cut it into parts")
    least = 0 if reference_quirks else factor
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (math.floor(v / shrink / factor) * factor for v in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(v * grow / factor) * factor for v in (height, width))
    return max(least, rows), max(least, columns)


@dataclass(frozen=True)
class QwenPatches:
    """Preprocessing of the Qwen vision towers.

    Attributes:
        min_pixels, max_pixels: limits of the resized area. Published files disagree, so there is no default.
        patch, merge, temporal: sizes of a patch, of a merged cell in patches, and frames per patch (a still is repeated).
        small: see :func:`smart_resize`.
    """

    min_pixels: int
    max_pixels: int
    patch: int = 14
    merge: int = 2
    temporal: int = 2
    normalization: Normalization = CLIP
    how: Filter = "bicubic"
    backend: Backend = "pil"
    small: Small = "scale"

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise VisionConfigError(
                f"min_pixels {self.min_pixels}, max_pixels {self.max_pixels}", source="preprocessor config", remedy="0 < min_pixels <= max_pixels"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], *, small: Small = "scale", backend: Backend = "pil") -> QwenPatches:
        """From a preprocessor_config.json (limits as min_pixels and max_pixels, or as edges of ``size``)."""
        size = config.get("size") or {}
        low = config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
        high = config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
        if low is None or high is None:
            raise VisionConfigError("has no min_pixels and max_pixels", source="preprocessor config", remedy="give both")
        return cls(
            int(low), int(high), int(config.get("patch_size", 14)), int(config.get("merge_size", 2)), int(config.get("temporal_patch_size", 2)),
            Normalization.from_dict(config, CLIP), filter_named(config.get("resample")), backend, small,
        )  # fmt: skip

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height to which a picture of `size` (width, height) is resized."""
        rows, columns = smart_resize(size[1], size[0], self.patch * self.merge, self.min_pixels, self.max_pixels, small=self.small)
        return columns, rows

    def count(self, size: tuple[int, int]) -> int:
        """Merged features of a picture of `size` (width, height)."""
        width, height = self.target(size)
        return width * height // (self.patch * self.merge) ** 2

    def __call__(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Patches and grid of RGB pictures.

        Returns:
            pixel_values [N, 3 * temporal * patch^2] in merge order, one picture after another; grid [V, 3] of frames,
            rows and columns in patches.
        """
        patches, grids = [], []
        for image in images:
            pixels = self.normalization(resize(image, self.target(image.size), self.how, self.backend))
            rows, columns = pixels.shape[1] // self.patch, pixels.shape[2] // self.patch
            patches.append(self._cut(pixels, rows, columns))
            grids.append((1, rows, columns))
        size = 3 * self.temporal * self.patch**2
        return torch.cat(patches) if patches else torch.zeros(0, size), torch.tensor(grids, dtype=torch.long).view(-1, 3)

    def _cut(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        """[3, H, W] -> [rows * columns, 3 * temporal * patch^2], numbers of a patch as (channel, frame, y, x)."""
        m, p = self.merge, self.patch
        cells = pixels.view(3, rows // m, m, p, columns // m, m, p).permute(1, 4, 2, 5, 0, 3, 6)  # [R,C,m,m,3,p,p]
        return cells.unsqueeze(5).expand(-1, -1, -1, -1, -1, self.temporal, -1, -1).reshape(rows * columns, -1)


@dataclass(frozen=True)
class NaflexPatches:
    """Patches of pictures for :class:`vision.towers.NaflexTower`.

    Attributes:
        pixels: [V, N, 3 * patch^2], zero on padding. grid: [V, 2] rows and columns.
    """

    pixels: Tensor
    grid: Tensor


def naflex_size(size: tuple[int, int], patch: int, max_patches: int) -> tuple[int, int]:
    """Width and height, multiples of the patch, of the largest scaled picture that has at most `max_patches` patches.

    The scale is searched by halving, and sides are rounded up, as the reference does it.

    Raises:
        ImageFormatError: so narrow that the smallest scale searched still has more patches.
    """

    def scaled(scale: float) -> tuple[int, int]:
        width, height = (max(patch, math.ceil(v * scale / patch) * patch) for v in size)
        return width, height

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        width, height = scaled(middle)
        if width // patch * (height // patch) <= max_patches:
            low = middle
        else:
            high = middle
    width, height = scaled(low)
    if width // patch * (height // patch) > max_patches:
        raise ImageFormatError(f"{size[0]} x {size[1]} pixels: too narrow for {max_patches} patches", source="image", remedy="cut it into parts")
    return width, height


def naflex_patches(
    images: Sequence[Image.Image], *, patch: int = 16, max_patches: int = 256, normalization: Normalization = HALF,
    how: Filter = "bilinear", backend: Backend = "pil",
) -> NaflexPatches:  # fmt: skip
    """Resize, normalise and cut RGB pictures; numbers of a patch as (y, x, channel), all pictures padded to `max_patches`."""
    pixels = torch.zeros(len(images), max_patches, 3 * patch**2)
    grid = torch.zeros(len(images), 2, dtype=torch.long)
    for i, image in enumerate(images):
        values = normalization(resize(image, naflex_size(image.size, patch, max_patches), how, backend))  # [3,H,W]
        rows, columns = values.shape[1] // patch, values.shape[2] // patch
        cells = values.view(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)
        pixels[i, : rows * columns] = cells.reshape(rows * columns, -1)
        grid[i] = torch.tensor((rows, columns))
    return NaflexPatches(pixels, grid)
