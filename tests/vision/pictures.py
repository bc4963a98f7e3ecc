"""Pictures drawn for tests, and the robustness pack where it is there."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROBUSTNESS = Path(__file__).parents[3] / "shared" / "data" / "robustness"


def quarters(width: int = 60, height: int = 44) -> Image.Image:
    """A picture with a different colour in each quarter."""
    picture = Image.new("RGB", (width, height), (200, 60, 60))
    picture.paste((60, 160, 80), (width // 2, 0, width, height // 2))
    picture.paste((60, 80, 190), (0, height // 2, width // 2, height))
    picture.paste((230, 200, 60), (width // 2, height // 2, width, height))
    return picture


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture that does not compress, so that a cut anywhere hits pixel data."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, so that resampling has something to do."""
    small = noise(max(2, width // 7), max(2, height // 7), seed).resize((width, height), Image.Resampling.BILINEAR)
    return Image.blend(small, noise(width, height, seed + 1), 0.2)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def corners(picture: Image.Image) -> list[tuple[int, ...]]:
    """Colours near the four corners: top left, top right, bottom left, bottom right."""
    width, height = picture.size
    x, y = width // 8, height // 8
    out = []
    for place in ((x, y), (width - 1 - x, y), (x, height - 1 - y), (width - 1 - x, height - 1 - y)):
        pixel = picture.getpixel(place)
        assert isinstance(pixel, tuple)
        out.append(tuple(int(v) for v in pixel))
    return out


def near(found: list[tuple[int, ...]], wanted: list[tuple[int, ...]], tolerance: int) -> bool:
    return all(abs(a - b) <= tolerance for f, w in zip(found, wanted, strict=True) for a, b in zip(f, w, strict=True))


def robustness_rows() -> list[dict[str, Any]]:
    manifest = ROBUSTNESS / "manifest.jsonl"
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()] if manifest.exists() else []
