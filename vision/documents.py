"""Files of one or many pages: pictures, multi-page TIFF, GIF and WebP, and PDF.

A document is opened once and its pages are decoded one at a time, on demand. What makes a page is decided by content.
"""

from __future__ import annotations

import contextlib
import io
import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from vision.errors import DependencyError, ImageError, ImageFormatError, ImageNotFoundError, ImageTruncatedError
from vision.loading import MAX_PIXELS, LoadedImage, finish, frames_of, load_image, open_picture

#: Dots per inch at which PDF pages are drawn: print of ten points gets the size that pocket's tower reads best.
DPI = 150.0
#: Files whose further frames are pages. (Those of an animated PNG are not: the first is made to stand alone.)
PAGED = ("TIFF", "GIF", "WEBP")
_POINTS = 72.0  # per inch


class Document(Protocol):
    """An opened file.

    Attributes:
        source: what to call it. n_pages: 0 for a PDF without pages.
    """

    source: str
    n_pages: int

    def page(self, index: int) -> LoadedImage:
        """Decode page `index`, counted from 0.

        Raises:
            ImageError: this page cannot be decoded; the others may.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class _Closing(ABC):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


class PictureDocument(_Closing):
    """The frames of a picture file."""

    def __init__(self, stream: Any, source: str, max_pixels: int) -> None:
        self.source, self.max_pixels = source, max_pixels
        self._stream, self._picture = stream, open_picture(stream, source)
        try:
            self.n_pages = frames_of(self._picture) if self._picture.format in PAGED else 1
        except Exception as error:  # counting walks through the file, and hostile files fail in every way
            self.close()
            raise ImageTruncatedError(f"is damaged or cut off ({error or type(error).__name__})", source=source, remedy="fetch or copy it again") from error

    def page(self, index: int) -> LoadedImage:
        """Decode frame `index`."""
        if self.n_pages == 1:
            return finish(self._picture, self.source, self.max_pixels, first=True)
        return finish(self._picture, self.source, self.max_pixels, page=index)

    def close(self) -> None:
        """Close picture and file."""
        self._picture.close()
        self._stream.close()


class PdfDocument(_Closing):
    """The pages of a PDF, drawn by PDFium. PDFium is not thread-safe: use from one thread at a time in a process."""

    def __init__(self, src: str | bytes, source: str, dpi: float, password: str | None, max_pixels: int) -> None:
        try:
            import pypdfium2
        except ImportError as error:
            remedy = "pip install 'diffusion-vlm[pdf]', or convert its pages to images"
            raise DependencyError("is a PDF, and pypdfium2 is not installed", source=source, remedy=remedy) from error
        self.source, self.dpi, self.max_pixels = source, dpi, max_pixels
        try:
            self._pdf = pypdfium2.PdfDocument(src, password=password)
            self.n_pages = len(self._pdf)
        except pypdfium2.PdfiumError as error:
            if getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD or "password" in str(error).lower():
                what = "is protected by another password" if password else "is protected by a password"
                raise ImageFormatError(what, source=source, remedy="give the password, or a copy without one") from error
            raise ImageTruncatedError(f"is damaged, or no PDF ({error})", source=source, remedy="fetch or copy it again") from error
        with contextlib.suppress(pypdfium2.PdfiumError):  # the pages themselves can still be drawn
            self._pdf.init_forms()  # so that what was filled into forms is drawn

    def page(self, index: int) -> LoadedImage:
        """Draw page `index`, at a lower resolution where `max_pixels` asks for it."""
        notes: list[str] = []
        name = f"{self.source} page {index + 1}"
        try:
            page = self._pdf[index]
            try:
                width, height = (side / _POINTS for side in page.get_size())
                dpi = self.dpi
                if not (width > 0 and height > 0):
                    raise ImageFormatError("has no area", source=name, remedy="leave this page out")
                if width * height * dpi**2 > self.max_pixels:
                    dpi = (self.max_pixels / (width * height)) ** 0.5 * 0.999  # sides are rounded up
                    notes.append(f"drawn at {dpi:.0f} instead of {self.dpi:.0f} dots per inch: the page has {width:.0f} x {height:.0f} inches")
                bitmap = page.render(scale=dpi / _POINTS)
                rgb = bitmap.to_pil().convert("RGB").copy()  # not a view of PDFium's memory
                bitmap.close()
            finally:
                page.close()
        except ImageError:
            raise
        except Exception as error:
            raise ImageTruncatedError(f"cannot be drawn ({error or type(error).__name__})", source=name, remedy="fetch or copy the file again") from error
        return LoadedImage(rgb, self.source, self.n_pages, tuple(notes))

    def close(self) -> None:
        """Close the file."""
        self._pdf.close()


class ImageDocument(_Closing):
    """A picture that is already in memory, as a document of one page."""

    def __init__(self, image: Any, source: str, max_pixels: int) -> None:
        self._image, self.source, self.max_pixels, self.n_pages = image, source, max_pixels, 1

    def page(self, index: int) -> LoadedImage:
        """The picture."""
        return load_image(self._image, max_pixels=self.max_pixels, name=self.source)

    def close(self) -> None:
        """Nothing is open."""


def open_document(
    src: str | os.PathLike[str] | bytes | Any, *, name: str | None = None, dpi: float = DPI, password: str | None = None, max_pixels: int = MAX_PIXELS
) -> Document:
    """Open a file whose pages are wanted.

    Args:
        src: path or bytes of a picture or a PDF; a picture in memory (PIL, array, LoadedImage) counts as one page.
        name: used in messages instead of the path. dpi: of PDF pages. password: of protected PDFs.
        max_pixels: of one page. A picture above it is refused, a PDF page is drawn smaller.

    Raises:
        ImageError: no such file, or neither a picture nor a PDF. DependencyError: a PDF without pypdfium2.
    """
    if not isinstance(src, (str, os.PathLike, bytes, bytearray, memoryview)):
        return ImageDocument(src, name or str(getattr(src, "source", "") or getattr(src, "filename", "") or "image"), max_pixels)
    if isinstance(src, (bytes, bytearray, memoryview)):
        data, label = bytes(src), name or "bytes"
        if is_pdf(data[:1024]):
            return PdfDocument(data, label, dpi, password, max_pixels)
        return PictureDocument(io.BytesIO(data), label, max_pixels)
    path = Path(src)
    label = name or str(path)
    if path.is_dir():
        raise ImageFormatError("is a folder, not an image", source=label, remedy="name the files, or use a command that takes folders")
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would block, or never end
            raise ImageFormatError("is not a regular file", source=label, remedy="give a file, or the bytes themselves")
        stream = path.open("rb")
    except FileNotFoundError:
        raise ImageNotFoundError("no such file", source=label, remedy="check the path") from None
    except (OSError, ValueError) as error:
        raise ImageNotFoundError(f"cannot be read ({error})", source=label, remedy="check path and permissions") from error
    try:
        head = stream.read(1024)
        stream.seek(0)
        if is_pdf(head):
            stream.close()
            return PdfDocument(str(path), label, dpi, password, max_pixels)
        return PictureDocument(stream, label, max_pixels)
    except BaseException:
        stream.close()
        raise


def is_pdf(head: bytes) -> bool:
    """Whether a file begins like a PDF; as in other readers the mark may come late, behind stray bytes that are no picture's."""
    return head.startswith(b"%PDF") or (b"%PDF-" in head[:1024] and not head.startswith((b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"II", b"MM", b"RIFF")))
