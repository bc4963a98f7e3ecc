"""Pictures that visitors bring: loaded by the library's safe loader, shown as a smaller copy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.web.draw import Mark, picture
from vision.documents import open_document
from vision.loading import SUFFIXES as IMAGES
from vlm.errors import PromptError

SHOWN_SIDE = 1600  # pixels of the longer side of what the browser gets
SUFFIXES = [*sorted(IMAGES), ".heic", ".heif", ".pdf"]


@dataclass(frozen=True)
class Picture:
    """A picture as the model gets it and as the browser shows it.

    Attributes:
        image: RGB. size: its pixels, which boxes are in. shown: file the server may hand out. name: for people. pages: of the file.
    """

    image: Any
    size: tuple[int, int]
    shown: str
    name: str
    pages: int = 1

    def drawn(self, marks: list[Mark] | None = None) -> str:
        """As HTML, with boxes."""
        return picture(self.shown, self.size, self.name, marks or [])


def open_picture(path: str | None, page: float | None = 1) -> Picture:
    """A page of an uploaded file, counted from 1.

    Raises:
        PromptError: no file, or no such page. ImageError: one that cannot be used. DependencyError: a PDF without pypdfium2.
    """
    if not path:
        raise PromptError("there is no picture", remedy="upload one, or click an example")
    number = 1 if page is None else int(page)
    found = _opened(path, number)
    if not Path(found.shown).is_file():  # the server tidies its cache from time to time
        _opened.cache_clear()
        found = _opened(path, number)
    return found


@lru_cache(maxsize=16)  # uploads lie in folders named by their content
def _opened(path: str, number: int) -> Picture:
    name = Path(path).name
    with open_document(path, name=name) as document:
        count = document.n_pages
        if not 1 <= number <= count:
            raise PromptError(f"there is no page {number}", source=name, remedy=f"it has {count}")
        rgb = document.page(number - 1).rgb
    small = rgb.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    shown = cache_folder(f"{path} {number} {rgb.size}") / "page.webp"
    small.save(shown, quality=85)
    return Picture(rgb, rgb.size, str(shown), name if count == 1 else f"{name} page {number}", count)


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
