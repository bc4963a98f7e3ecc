"""Safe image loading: explicit formats, limits before decoding, every oddity turned into plain 8-bit RGB."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vision.errors import ImageError, ImageFormatError, ImageNotFoundError, ImageTooLargeError, ImageTruncatedError

#: The formats that are decoded, by content. Everything else is refused, whatever the suffix says.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Largest picture in pixels; compared with the header before anything is decoded.
MAX_PIXELS = 120_000_000
#: Suffixes a folder scan takes for images.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"})
_MAGIC = ((b"%PDF", "a PDF document", "convert its pages to images first"), (b"PK\x03\x04", "a zip archive", "unpack it first"))


@dataclass(frozen=True)
class LoadedImage:
    """A picture ready for preprocessing.

    Attributes:
        rgb: upright 8-bit RGB. source: what to call it in messages. n_frames: frames or pages in the file (the first is
        used). warnings: what a user should know.
    """

    rgb: Image.Image
    source: str
    n_frames: int = 1
    warnings: tuple[str, ...] = ()


def load_image(src: Any, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> LoadedImage:
    """Load a picture from a path, bytes, a PIL image or an array.

    Args:
        src: path; encoded bytes; PIL image; array [H, W], [H, W, 1|3|4] of uint8, uint16, bool, or float in 0..1.
        max_pixels: limit on width * height, checked before decoding.
        name: used in messages instead of the path.

    Raises:
        ImageNotFoundError, ImageFormatError, ImageTruncatedError, ImageTooLargeError: with source and remedy.
    """
    if isinstance(src, LoadedImage):
        return src
    if isinstance(src, Image.Image):
        label = name or getattr(src, "filename", "") or "image"
        return _finish(src, str(label), max_pixels)
    if isinstance(src, np.ndarray):
        return LoadedImage(_from_array(src, name or "array", max_pixels), name or "array")
    if isinstance(src, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(bytes(src)), name or "bytes", max_pixels)
    if isinstance(src, (str, os.PathLike)):
        path = Path(src)
        label = name or str(path)
        if path.is_dir():
            raise ImageFormatError("is a folder, not an image", source=label, remedy="name the files, or use a command that takes folders")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ImageNotFoundError("no such file", source=label, remedy="check the path") from None
        except (OSError, ValueError) as error:
            raise ImageNotFoundError(f"cannot be read ({error})", source=label, remedy="check path and permissions") from error
        return _decode(io.BytesIO(data), label, max_pixels)
    raise ImageFormatError(f"cannot make an image of {type(src).__name__}", source=name or "image", remedy="give a path, bytes, a PIL image or an array")


def _decode(stream: io.BytesIO, source: str, max_pixels: int) -> LoadedImage:
    head = stream.getbuffer()[:16].tobytes()
    if not head:
        raise ImageTruncatedError("the file is empty", source=source, remedy="fetch or copy it again")
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            raise ImageFormatError(f"is {what}, not an image", source=source, remedy=remedy)
    if head[4:8] == b"ftyp":
        raise ImageFormatError("is a HEIF or AVIF picture, which this version does not decode", source=source, remedy="convert it to JPEG or PNG")
    try:
        picture = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageFormatError(f"is not an image in one of the formats {', '.join(FORMATS)}", source=source, remedy="convert it to PNG or JPEG") from None
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"is too large ({error})", source=source, remedy="scale it down first") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageTruncatedError(f"is damaged or cut off ({error})", source=source, remedy="fetch or copy it again") from error
    return _finish(picture, source, max_pixels)


def _finish(picture: Image.Image, source: str, max_pixels: int) -> LoadedImage:
    """Limit, decode, turn upright and convert."""
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageTooLargeError(f"has {width} x {height} = {width * height} pixels, the limit is {max_pixels}", source=source, remedy="scale it down, or raise max_pixels")
    if width < 1 or height < 1:
        raise ImageFormatError("has no pixels", source=source, remedy="give a picture of at least 1 x 1")
    frames, warnings = 1, []
    try:
        frames = int(getattr(picture, "n_frames", 1))
        if frames > 1:
            warnings.append(f"has {frames} frames or pages; only the first was used")
            picture.seek(0)
        picture.load()
        upright = ImageOps.exif_transpose(picture) or picture
        rgb = to_rgb(upright)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"is too large ({error})", source=source, remedy="scale it down first") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ImageTruncatedError(f"is damaged or cut off ({error})", source=source, remedy="fetch or copy it again") from error
    return LoadedImage(rgb, source, frames, tuple(warnings))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB: transparency on white, 16-bit scaled by 256, CMYK and others converted."""
    mode = picture.mode
    if mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        values = np.asarray(picture).astype(np.int64)
        if mode != "I" or values.max(initial=0) > 255:
            values = values // 256
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    if mode == "F":
        numbers = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        numbers = numbers * 255 if numbers.max(initial=0) <= 1 else numbers
        return Image.fromarray(np.clip(numbers, 0, 255).astype(np.uint8)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def _from_array(array: np.ndarray, source: str, max_pixels: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageFormatError(f"an array of shape {array.shape} is no picture", source=source, remedy="give [H, W], [H, W, 3] or [H, W, 4]")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise ImageTooLargeError(f"has {array.shape[0] * array.shape[1]} pixels, the limit is {max_pixels}", source=source, remedy="scale it down, or raise max_pixels")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array // 256).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        values = np.nan_to_num(array)
        if values.min() < -1e-3 or values.max() > 1 + 1e-3:
            raise ImageFormatError("a float array must hold values in 0..1", source=source, remedy="divide by 255, or convert to uint8")
        array = (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageFormatError(f"cannot read an array of {array.dtype}", source=source, remedy="use uint8, uint16, bool or float in 0..1")
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))
