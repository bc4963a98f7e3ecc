"""From the features of views to one sequence: pooling, stitching, cutting off the letterbox, newline embeddings.

The order is that of LLaVA-NeXT's code: features are projected first, then pooled and packed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.errors import VisionConfigError
from vision.preprocess.anyres import Views

Pool = Literal["bilinear", "average", "max"]


@dataclass(frozen=True)
class Packing:
    """How the features of a picture become a sequence.

    Attributes:
        pool: how each view is pooled before packing, None not at all. "bilinear" rounds the size up, the others down.
        stride: of the pooling.
        unpad: cut what is letterbox out of the stitched tiles. newline: add the newline embedding after each row of the
            stitched tiles, or after the only view.
        max_views: shrink the stitched tiles to about so many views' worth of features, None never.
        digits: round sizes to so many digits before they are cut to integers, as transformers does; None as LLaVA does.
    """

    pool: Pool | None = None
    stride: int = 2
    unpad: bool = True
    newline: bool = True
    max_views: int | None = None
    digits: int | None = None

    @classmethod
    def from_llava(cls, config: Mapping[str, Any], pooled: bool = False) -> Packing:
        """From the ``mm_*`` keys of a LLaVA ``config.json``; `pooled`: whether this family pools still pictures.

        Raises:
            VisionConfigError: a merge type or pooling mode that is not known.
        """
        merge, mode = str(config.get("mm_patch_merge_type") or "flat"), str(config.get("mm_spatial_pool_mode") or "bilinear")
        if merge not in ("spatial_unpad", "spatial", "flat"):
            raise VisionConfigError(f"mm_patch_merge_type {merge!r}", source="vision config", remedy="spatial_unpad, spatial or flat")
        if mode not in ("bilinear", "average", "max"):
            raise VisionConfigError(f"mm_spatial_pool_mode {mode!r}", source="vision config", remedy="bilinear, average or max")
        pool: Pool | None = "average" if mode == "average" else "max" if mode == "max" else "bilinear"
        return cls(
            pool if pooled else None, int(config.get("mm_spatial_pool_stride") or 2), unpad=merge == "spatial_unpad",
            newline=merge == "spatial_unpad", max_views=max_views_named(config.get("image_aspect_ratio")),
        )  # fmt: skip

    def pooled_side(self, side: int) -> int:
        """Features per side of a view after pooling."""
        if self.pool is None:
            return side
        return math.ceil(side / self.stride) if self.pool == "bilinear" else (side - self.stride) // self.stride + 1

    def pooled(self, features: Tensor) -> Tensor:
        """Pool each view: [V, side^2, D] -> [V, pooled_side^2, D]."""
        if self.pool is None:
            return features
        side = side_of(features)
        maps = features.transpose(1, 2).reshape(len(features), -1, side, side)
        if self.pool == "average":
            maps = F.avg_pool2d(maps, self.stride)
        elif self.pool == "max":
            maps = F.max_pool2d(maps, self.stride)
        else:
            maps = F.interpolate(maps, size=(self.pooled_side(side),) * 2, mode="bilinear")
        return maps.flatten(2).transpose(1, 2)

    def pack(self, features: Tensor, views: Views, newline: Tensor | None) -> Tensor:
        """One sequence [T, D] of the pooled features of a picture.

        Args:
            features: [V, side^2, D] of the views, base view first. newline: [D]; needed if the rule has newlines.

        Raises:
            VisionConfigError: another number of views than the picture has, or no newline embedding.
        """
        columns, rows = views.grid
        if len(features) != max(1, 1 + columns * rows):
            raise VisionConfigError(f"{len(features)} views for a grid of {columns} x {rows}", source="Packing", remedy="give the features of all views")
        if self.newline and newline is None:
            raise VisionConfigError("there is no newline embedding", source="Packing", remedy="give image_newline of the checkpoint")
        if len(features) == 1:
            return features[0] if newline is None or not self.newline else torch.cat((features[0], newline.to(features)[None]))
        side = side_of(features)
        grid = features[1:].reshape(rows, columns, side, side, -1)
        stitched = grid.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # [D,H,W]
        top, left, height, width = self._kept(views.size, rows * side, columns * side)
        stitched = stitched[:, top : top + height, left : left + width]
        target = self._shrunk(height, width, side)
        if target != (height, width):
            stitched = F.interpolate(stitched[None], size=target, mode="bilinear")[0]
        if self.newline and newline is not None:
            stitched = torch.cat((stitched, newline.to(stitched)[:, None, None].expand(-1, target[0], 1)), dim=2)
        return torch.cat((features[0], stitched.flatten(1).T))

    def count(self, size: tuple[int, int], grid: tuple[int, int], side: int) -> int:
        """How many features a picture becomes; `side` as the tower gives it, `size` and `grid` as in :class:`Views`."""
        side = self.pooled_side(side)
        columns, rows = grid
        if not columns:
            return side**2 + self.newline
        _, _, height, width = self._kept(size, rows * side, columns * side)
        height, width = self._shrunk(height, width, side)
        return side**2 + height * (width + self.newline)

    def _kept(self, size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is not letterbox; of a very narrow picture nothing may be left, as in the reference."""
        if not self.unpad:
            return 0, 0, height, width
        if size[0] / size[1] > width / height:
            border = (height - self._cut(size[1] * (width / size[0]))) // 2
            return border, 0, height - 2 * border, width
        border = (width - self._cut(size[0] * (height / size[1]))) // 2
        return 0, border, height, width - 2 * border

    def _cut(self, length: float) -> int:
        return int(length if self.digits is None else round(length, self.digits))

    def _shrunk(self, height: int, width: int, side: int) -> tuple[int, int]:
        """Height and width after shrinking; nothing happens up to 1.1 times the limit, per side."""
        if self.max_views is None:
            return height, width
        times = math.sqrt(height * width / (self.max_views * side**2))
        return (int(height // times), int(width // times)) if times > 1.1 else (height, width)


def max_views_named(name: Any) -> int | None:
    """N of "anyres_max_N", else None."""
    text = str(name or "")
    if not text.startswith("anyres_max_"):
        return None
    number = text.removeprefix("anyres_max_")
    if not number.isdigit() or int(number) < 1:
        raise VisionConfigError(f"image_aspect_ratio {text!r}", source="vision config", remedy="anyres_max_N with a whole number N")
    return int(number)


def side_of(features: Tensor) -> int:
    """Features per side of square views [V, side^2, D]."""
    side = math.isqrt(features.shape[1])
    if side**2 != features.shape[1]:
        raise VisionConfigError(f"{features.shape[1]} features are no square", source="Packing", remedy="give all features of each view")
    return side
