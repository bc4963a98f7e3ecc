"""Safe image loading: explicit formats, limits before decoding, every oddity turned into plain 8-bit RGB.

The type is decided by content, never by suffix. Colour profiles are not applied, as in the preprocessing of the published
models. The global switches of Pillow are not touched.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vision.errors import ImageError, ImageFormatError, ImageNotFoundError, ImageTooLargeError, ImageTruncatedError

#: The formats that are decoded, by content. Everything else is refused, whatever the suffix says.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Largest picture in pixels; compared with the header before anything is decoded. Pillow's own bound, above which it warns.
MAX_PIXELS = 89_478_485
#: Suffixes a folder scan takes for images.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"})
#: Start of a file -> what it is, and what to do with it.
_MAGIC = (
    (b"%PDF", "a PDF document", "open it with vision.documents, or give it to the command line, which takes every page"),
    (b"PK\x03\x04", "a zip archive or office document", "unpack or convert it first (the command line opens .zip and .tar by itself)"),
    (b"<svg", "an SVG drawing, which is not decoded", "draw it to PNG first"),
    (b"<?xml", "an XML document (an SVG drawing perhaps), which is not decoded", "draw it to PNG first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself", "fetch the file with git lfs pull"),
)
#: Brands of ISO media files that hold still pictures.
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis"})
_AGAIN = "fetch or copy it again"
_ORIENTATION = 0x0112
_FILTERS = threading.Lock()


@dataclass(frozen=True)
class LoadedImage:
    """A picture ready for preprocessing.

    Attributes:
        rgb: upright 8-bit RGB. source: what to call it in messages. n_frames: frames or pages in the file (one is used).
        warnings: what a user should know.
    """

    rgb: Image.Image
    source: str
    n_frames: int = 1
    warnings: tuple[str, ...] = ()


def load_image(src: Any, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> LoadedImage:
    """Load a picture from a path, bytes, a PIL image or an array. The source is never changed.

    Args:
        src: path; encoded bytes; PIL image (its current frame counts); array [H, W], [H, W, 1|3|4] of uint8, uint16,
            bool, or float in 0..1. A LoadedImage passes through.
        max_pixels: limit on width * height, checked before decoding.
        name: used in messages instead of the path.

    Raises:
        ImageNotFoundError: no such file, or it cannot be read.
        ImageFormatError: not a picture in one of FORMATS.
        ImageTruncatedError: empty, cut off or damaged.
        ImageTooLargeError: more than max_pixels.
    """
    if isinstance(src, LoadedImage):
        return src
    if isinstance(src, Image.Image):
        label = str(name or getattr(src, "filename", "") or "image")
        return finish(src, label, max_pixels)
    if isinstance(src, np.ndarray):
        return LoadedImage(_from_array(src, name or "array", max_pixels), name or "array")
    if isinstance(src, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(bytes(src)), name or "bytes", max_pixels)
    if isinstance(src, (str, os.PathLike)):
        return _from_path(src, name, max_pixels)
    raise ImageFormatError(f"cannot make an image of {type(src).__name__}", source=name or "image", remedy="give a path, bytes, a PIL image or an array")


def _from_path(src: str | os.PathLike[str], name: str | None, max_pixels: int) -> LoadedImage:
    path = Path(src)
    label = name or (str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}...")
    if str(src).startswith(("http://", "https://")):
        raise ImageNotFoundError("is an address, and nothing is fetched from the network here", source=label, remedy="download it and give the file")
    try:
        if path.is_dir():
            raise ImageFormatError("is a folder, not an image", source=label, remedy="name the files, or use a command that takes folders")
        if path.exists() and not path.is_file():  # a pipe or a device would block, or never end
            raise ImageFormatError("is not a regular file", source=label, remedy="give a file, or the bytes themselves")
        with path.open("rb") as stream:
            return _decode(stream, label, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageNotFoundError("no such file", source=label, remedy="check the path") from None
    except (OSError, ValueError) as error:
        raise ImageNotFoundError(f"cannot be read ({_short(error)})", source=label, remedy="check path and permissions") from error


def _decode(stream: IO[bytes], source: str, max_pixels: int) -> LoadedImage:
    """Recognise the format by content and decode the first picture."""
    with open_picture(stream, source) as picture:
        return finish(picture, source, max_pixels, first=True)


def open_picture(stream: IO[bytes], source: str) -> Image.Image:
    """A picture whose format was recognised by content and whose header was read; nothing is decoded yet.

    Raises:
        ImageError: as of :func:`load_image`.
    """
    head = stream.read(64)
    stream.seek(0)
    if not head:
        raise ImageTruncatedError("the file is empty", source=source, remedy=_AGAIN)
    for magic, what, remedy in _MAGIC:
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(magic.lower()):
            raise ImageFormatError(f"is {what}", source=source, remedy=remedy)
    formats: tuple[str, ...] = FORMATS
    if head[4:8] == b"ftyp":
        if head[8:12] not in _HEIF:
            raise ImageFormatError("is a video or another ISO media file", source=source, remedy="convert it to JPEG or PNG")
        if not _heif_plugin():
            remedy = "install the extra heif (pip install 'diffusion-vlm[heif]'), or convert it to JPEG or PNG"
            raise ImageFormatError("is a HEIF or AVIF picture, whose decoder is an optional plugin", source=source, remedy=remedy)
        formats = ("HEIF",)
    try:
        # of odd tags, and of many pixels (our own limit follows); the filters are global, hence the lock
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(stream, formats=formats)
    except UnidentifiedImageError:
        raise ImageFormatError(
            f"is not an image in one of the formats {', '.join(FORMATS)}, or its header is damaged", source=source, remedy="convert it to PNG or JPEG"
        ) from None
    except Image.DecompressionBombError as error:
        raise _too_large(error, source) from error
    except Exception as error:  # decoders of hostile bytes fail in every way there is
        raise ImageTruncatedError(f"is damaged or cut off ({_short(error)})", source=source, remedy=_AGAIN) from error


def _heif_plugin() -> bool:
    """Teach Pillow HEIF if pillow-heif is installed. It is used only where a format list names it, so nothing else changes."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def frames_of(picture: Image.Image) -> int:
    """Pictures in an opened file. The further ones of a camera's multi-picture JPEG or HEIF are previews and depth maps, no pages."""
    return 1 if picture.format in ("MPO", "HEIF") else int(getattr(picture, "n_frames", 1))


def finish(picture: Image.Image, source: str, max_pixels: int, *, first: bool = False, page: int | None = None) -> LoadedImage:
    """Limit, decode, turn upright and convert.

    Args:
        picture: opened, not yet decoded.
        first: take the first frame (a file), else the current one (a caller's image).
        page: take this frame, counted from 0; the caller knows that there are others.

    Raises:
        ImageTooLargeError, ImageTruncatedError, ImageFormatError.
    """
    if page is not None:
        try:
            picture.seek(page)
        except Exception as error:  # as below
            raise ImageTruncatedError(f"page {page + 1} is damaged or missing ({_short(error)})", source=source, remedy=_AGAIN) from error
    width, height = picture.size
    check_size(width, height, max_pixels, source)
    notes: list[str] = []
    try:
        frames = frames_of(picture)
        if first and frames > 1:
            picture.seek(0)
        picture.load()
        white = 65535 if picture.format == "PPM" else None  # what its decoder scales wide values to
        rgb = to_rgb(_upright(picture, notes), white)
    except Image.DecompressionBombError as error:
        raise _too_large(error, source) from error
    except MemoryError as error:
        raise ImageTooLargeError(f"has {width} x {height} pixels, too many for the memory", source=source, remedy="scale it down first") from error
    except Exception as error:  # as above
        raise ImageTruncatedError(f"is damaged or cut off ({_short(error)})", source=source, remedy=_AGAIN) from error
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        notes.append("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so a file that is cut off would go unnoticed")
    if frames > 1 and page is None:
        notes.append(f"has {frames} frames or pages; only {'the first' if first else 'the current one'} was used")
    return LoadedImage(rgb, source, frames, tuple(notes))


def check_size(width: int, height: int, max_pixels: int, source: str) -> None:
    """Refuse a picture without pixels, or with more than `max_pixels`."""
    if width < 1 or height < 1:
        raise ImageFormatError("has no pixels", source=source, remedy="give a picture of at least 1 x 1")
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"has {width} x {height} = {width * height} pixels, the limit is {max_pixels}", source=source, remedy="scale it down, or raise max_pixels"
        )


def _upright(picture: Image.Image, notes: list[str]) -> Image.Image:
    """Turned by its EXIF orientation; damaged EXIF data is no reason to lose the picture."""
    try:
        if picture.getexif().get(_ORIENTATION, 1) == 1:
            return picture  # exif_transpose would copy it
        return ImageOps.exif_transpose(picture)
    except Exception:  # EXIF parsing fails in many ways on damaged data
        notes.append("its EXIF data is damaged; the picture was taken as it is stored")
        return picture


def _too_large(error: Exception, source: str) -> ImageTooLargeError:
    return ImageTooLargeError(f"is too large ({_short(error)})", source=source, remedy="scale it down first")


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def to_rgb(picture: Image.Image, white: int | None = None) -> Image.Image:
    """Any mode as 8-bit RGB: transparency on white, 16-bit scaled by 256, CMYK and others converted.

    `white` is the value of white in a 32-bit picture (mode I); None: 255, 65535 or the largest value, the first that
    no value exceeds.
    """
    if picture.mode.startswith(("I", "F")):
        return _from_numbers(picture, white)
    transparent = picture.info.get("transparency")
    if picture.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # 16-bit colour is decoded to its high bytes, the transparent colour is not
        picture = picture.copy()
        picture.info["transparency"] = tuple(value // 256 for value in transparent)
    if picture.mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if picture.mode in ("RGBA", "LA", "PA") or (transparent is not None and picture.mode in ("1", "L", "P", "RGB")):
        layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        ground = Image.new("RGB", layer.size, (255, 255, 255))
        ground.paste(layer, mask=layer.getchannel("A"))
        return ground
    return picture.convert("RGB")  # a copy in any case


def _from_numbers(picture: Image.Image, white: int | None) -> Image.Image:
    """Grey values of 16 or 32 bit, or float."""
    values = np.asarray(picture)
    if picture.mode == "F":
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    scaled: NDArray[Any]
    top = 65535 if picture.mode.startswith("I;16") else white or _white(values)
    if top == 65535 and picture.mode != "F":
        scaled = values >> 8
    else:
        scaled = values.astype(np.float32)
        scaled *= np.float32(255 / top)
        if picture.mode == "F":
            scaled += np.float32(0.5)
    grey = np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _white(values: NDArray[Any]) -> float:
    """The value that is meant to be white: 1 (of floats), 255, 65535, or the largest."""
    top = float(values.max(initial=0))
    known = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    return next((w for w in known if top <= w), top)


def _from_array(array: NDArray[Any], source: str, max_pixels: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageFormatError(f"an array of shape {array.shape} is no picture", source=source, remedy="give [H, W], [H, W, 3] or [H, W, 4]")
    check_size(array.shape[1], array.shape[0], max_pixels, source)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array // 256).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < -1e-3 or array.max() > 1 + 1e-3:
            raise ImageFormatError("a float array must hold values in 0..1", source=source, remedy="divide by 255, or convert to uint8")
        array = (np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageFormatError(f"cannot read an array of {array.dtype}", source=source, remedy="use uint8, uint16, bool or float in 0..1")
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))
