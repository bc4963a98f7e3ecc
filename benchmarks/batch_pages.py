"""Small rendered pages for the benchmarks of batch jobs: receipts of three lines, in every kind of file."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

#: What is asked of them.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"number": {"type": ["integer", "null"]}, "total": {"type": ["number", "null"]}},
    "required": ["number", "total"],
}
_WORDS = "cafe north lamp river stone garden paper field glass winter market bridge".split()


def page(index: int, width: int = 160, height: int = 72) -> Image.Image:
    """Page number `index`; no two are alike."""
    rng = random.Random(index)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15)
    lines = [rng.choice(_WORDS).title(), f"Number {index}", f"Total {rng.randrange(100, 99999) / 100:.2f}"]
    for i, line in enumerate(lines):
        draw.text((rng.randrange(3, 14), 4 + 22 * i), line, fill=(0, 0, rng.randrange(60)), font=font)
    return picture


def encoded(index: int, kind: str = "PNG") -> bytes:
    """A page as a file's bytes."""
    data = io.BytesIO()
    page(index).save(data, kind)
    return data.getvalue()


def write_files(folder: Path, count: int) -> None:
    """`count` pages: half of them PNG in subfolders, the rest JPEG, TIFF and PDF of ten pages, zip and tar of a hundred."""
    folder.mkdir(parents=True, exist_ok=True)
    index = 0

    def many(size: int) -> list[int]:
        nonlocal index
        size = min(size, count - index)
        index += size
        return list(range(index - size, index))

    for i in many(count // 2):
        place = folder / "png" / f"{i // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:06d}.png").write_bytes(encoded(i))
    for i in many(count // 5):
        (folder / f"{i:06d}.jpg").write_bytes(encoded(i, "JPEG"))
    for kind in ("TIFF", "PDF"):
        for _ in range(count // 200):
            pages = [page(i) for i in many(10)]
            pages[0].save(folder / f"{index:06d}.{kind.lower()}", save_all=True, append_images=pages[1:])
    while index < count:
        name = folder / f"{index:06d}"
        if (index // 100) % 2:
            with zipfile.ZipFile(name.with_suffix(".zip"), "w") as archive:
                for i in many(100):
                    archive.writestr(f"{i:06d}.png", encoded(i))
        else:
            with tarfile.open(name.with_suffix(".tar"), "w") as tar:
                for i in many(100):
                    data = encoded(i)
                    info = tarfile.TarInfo(f"{i:06d}.png")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
