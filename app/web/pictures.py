"""Pictures that visitors bring: loaded by the library's safe loader, shown as a smaller copy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.web.draw import Mark, picture
from vision.loading import load_image
from vlm.errors import PromptError

SHOWN_SIDE = 1600  # pixels of the longer side of what the browser gets
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pdf"]


@dataclass(frozen=True)
class Picture:
    """A picture as the model gets it and as the browser shows it.

    Attributes:
        image: RGB. size: its pixels, which boxes are in. shown: file the server may hand out. name: for people.
    """

    image: Any
    size: tuple[int, int]
    shown: str
    name: str

    def drawn(self, marks: list[Mark] | None = None) -> str:
        """As HTML, with boxes."""
        return picture(self.shown, self.size, self.name, marks or [])


def open_picture(path: str | None) -> Picture:
    """The picture of an uploaded file.

    Raises:
        PromptError: no file. ImageError: one that cannot be used.
    """
    if not path:
        raise PromptError("there is no picture", remedy="upload one, or click an example")
    found = _opened(path)
    if not Path(found.shown).is_file():  # the server tidies its cache from time to time
        _opened.cache_clear()
        found = _opened(path)
    return found


@lru_cache(maxsize=16)  # uploads lie in folders named by their content
def _opened(path: str) -> Picture:
    loaded = load_image(path, name=Path(path).name)
    small = loaded.rgb.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    folder = cache_folder(f"{path} {loaded.rgb.size}")
    shown = folder / "page.webp"
    small.save(shown, quality=85)
    return Picture(loaded.rgb, loaded.rgb.size, str(shown), Path(path).name)


def cache_folder(key: str) -> Path:
    """A folder of the server's cache, from which it may hand files out."""
    from gradio.utils import get_upload_folder

    folder = Path(get_upload_folder()) / hashlib.sha256(key.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def text_file(name: str, text: str) -> str:
    """A file for download."""
    path = cache_folder(text) / name
    path.write_text(text, encoding="utf-8")
    return str(path)
