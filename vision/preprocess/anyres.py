"""Any-resolution views of the LLaVA family: a squashed base view, then the tiles of a letterboxed canvas.

One canvas is chosen from a list (*pinpoints*): the one in which the scaled picture keeps most pixels, of several the one
with the least waste. The rules are those of LLaVA-NeXT's code as the published dLLMs (LaViDa, LLaDA-V, SDAR-VL) run it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from vision.errors import VisionConfigError
from vision.preprocess.pixels import HALF, Backend, Filter, Normalization, resize

#: "anyres": base view and tiles. "pad": one view, padded to a square. "square": one view, squashed.
Aspect = Literal["anyres", "pad", "square"]


@dataclass(frozen=True)
class Views:
    """What a picture became.

    Attributes:
        pixels: [V, 3, S, S] normalised float32, base view first, then the tiles row by row.
        size: width and height of the picture. grid: columns and rows of tiles, (0, 0) if there are none.
    """

    pixels: Tensor
    size: tuple[int, int]
    grid: tuple[int, int]


@dataclass(frozen=True)
class AnyResolution:
    """How pictures are cut into views.

    Attributes:
        side: of a view in pixels. pinpoints: canvases as (width, height), multiples of the side. aspect: see `Aspect`.
        normalization, how, backend: of every view.
    """

    side: int
    pinpoints: tuple[tuple[int, int], ...] = ()
    aspect: Aspect = "anyres"
    normalization: Normalization = HALF
    how: Filter = "bicubic"
    backend: Backend = "pil"

    def __post_init__(self) -> None:
        if self.aspect == "anyres" and not self.pinpoints:
            raise VisionConfigError("any resolution needs image_grid_pinpoints", source="vision config", remedy="give them, or aspect 'pad' or 'square'")
        bad = [p for p in self.pinpoints if p[0] < self.side or p[1] < self.side or p[0] % self.side or p[1] % self.side]
        if bad:
            raise VisionConfigError(f"pinpoints {bad} are no multiples of {self.side}", source="vision config", remedy="check image_grid_pinpoints")

    @classmethod
    def from_llava(cls, config: Mapping[str, Any], side: int, normalization: Normalization | None = None) -> AnyResolution:
        """From ``image_aspect_ratio`` and ``image_grid_pinpoints`` (width first) of a LLaVA ``config.json``."""
        named = config.get("image_aspect_ratio") or "square"
        aspect = aspect_named(str(named))
        points = pinpoints_of(config.get("image_grid_pinpoints"), side) if aspect == "anyres" else ()
        return cls(side, points, aspect, normalization or HALF)

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """The best canvas (width, height) for a picture of `size`."""
        return best_resolution(size, self.pinpoints)

    def __call__(self, image: Image.Image, aspect: Aspect | None = None) -> Views:
        """Views of an RGB picture; `aspect` overrides the configured one (several pictures in one prompt are padded)."""
        aspect = aspect or self.aspect
        views, grid = self.cut(image, aspect)
        return Views(torch.stack([self.normalization(view) for view in views]), image.size, grid)

    def cut(self, image: Image.Image, aspect: Aspect) -> tuple[list[Image.Image], tuple[int, int]]:
        """The views as 8-bit pictures, and columns and rows of tiles."""
        side = (self.side, self.side)
        if aspect == "pad":
            return [resize(self._squared(image), side, self.how, self.backend)], (0, 0)
        base = resize(image, side, self.how, self.backend)
        if aspect == "square":
            return [base], (0, 0)
        width, height = self.canvas(image.size)
        page = letterbox(image, (width, height), self.how, self.backend)
        tiles = [
            page.crop((x, y, x + self.side, y + self.side)) for y in range(0, height, self.side) for x in range(0, width, self.side)
        ]
        return [base, *tiles], (width // self.side, height // self.side)

    def _squared(self, image: Image.Image) -> Image.Image:
        """Centred on a square of the mean colour."""
        if image.width == image.height:
            return image
        longest = max(image.size)
        red, green, blue = (int(v * 255) for v in self.normalization.mean)
        ground = Image.new("RGB", (longest, longest), (red, green, blue))
        ground.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        return ground


def aspect_named(name: str) -> Aspect:
    """The aspect that ``image_aspect_ratio`` means; anyres_max_N cuts like anyres and differs in packing."""
    if name == "anyres" or name.startswith("anyres_max_"):
        return "anyres"
    if name == "pad":
        return "pad"
    if name == "square":
        return "square"
    raise VisionConfigError(f"image_aspect_ratio {name!r}", source="vision config", remedy="anyres, anyres_max_N, pad or square")


def pinpoints_of(value: Any, side: int) -> tuple[tuple[int, int], ...]:
    """Pinpoints from a list, a list written as text, or a range like "(1x1),...,(6x6)" (tiles), as configs hold them."""
    if isinstance(value, str):
        tiles = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", value)]
        if tiles:
            (x0, y0), (x1, y1) = tiles[0], tiles[-1]
            return tuple((x * side, y * side) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1))
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise VisionConfigError(f"image_grid_pinpoints {value!r}", source="vision config", remedy="give a list of pairs") from error
    if not isinstance(value, Sequence) or not all(isinstance(p, Sequence) and len(p) == 2 for p in value):
        raise VisionConfigError(f"image_grid_pinpoints {value!r}", source="vision config", remedy="give a list of pairs")
    return tuple((int(a), int(b)) for a, b in value)


def best_resolution(size: tuple[int, int], canvases: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The canvas in which a picture keeps most pixels; then the least waste; then the first. All as (width, height)."""
    width, height = size
    best, most, least = canvases[0], -1, math.inf
    for canvas in canvases:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = canvas[0] * canvas[1] - kept
        if kept > most or (kept == most and waste < least):
            best, most, least = canvas, kept, waste
    return best


def letterbox(image: Image.Image, canvas: tuple[int, int], how: Filter, backend: Backend) -> Image.Image:
    """Scaled to fit and centred on black."""
    across, down = canvas[0] / image.width, canvas[1] / image.height
    wide = across < down
    size = (canvas[0], min(math.ceil(image.height * across), canvas[1])) if wide else (min(math.ceil(image.width * down), canvas[0]), canvas[1])
    page = Image.new("RGB", canvas, (0, 0, 0))
    page.paste(resize(image, size, how, backend), ((canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2))
    return page
