"""Pictures and documents inside zip and tar files. Nothing is ever written to disk."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vision.errors import ImageError, ImageFormatError, ImageNotFoundError, ImageTooLargeError, ImageTruncatedError
from vision.loading import SUFFIXES

#: Ends of names that are opened as archives.
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
#: Suffixes of pictures and documents beside those of plain pictures; those that cannot be read get rows that say why.
RELATED = frozenset({".pdf", ".heic", ".heif", ".avif", ".svg", ".jp2", ".jxl", ".psd", ".ico", ".tga", ".eps"})
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"RIFF", b"%PDF")
#: Bytes of a single member beyond which it is not unpacked: archives may lie about what is in them.
MAX_MEMBER = 1 << 30


@dataclass(frozen=True)
class Member:
    """A file inside an archive: its bytes, or why there are none."""

    name: str
    data: bytes = b""
    error: ImageError | None = None


def is_archive(path: str) -> bool:
    """By the end of its name."""
    return path.lower().endswith(ARCHIVES)


def is_picture_name(name: str) -> bool:
    """Whether a name says picture or document; hidden files never do."""
    path = PurePosixPath(name)
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES | RELATED


def members(path: str, passed_over: list[str]) -> Iterator[Member]:
    """Pictures and documents of an archive in its order; the names of other files go to `passed_over`.

    Raises:
        ImageError: the archive itself cannot be read (any further).
    """
    try:
        if path.lower().endswith(".zip"):
            yield from _zip(path, passed_over)
        else:
            yield from _tar(path, passed_over)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageNotFoundError("no such file", source=path, remedy="check the path") from None
    except Exception as error:  # hostile archives fail in every way there is
        what = f"is damaged or cut off ({error or type(error).__name__})"
        raise ImageTruncatedError(what, source=path, remedy="fetch or copy it again") from error


def _zip(path: str, passed_over: list[str]) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield from _member(path, info.filename, info.file_size, lambda info=info: archive.open(info), passed_over)  # type: ignore[misc]


def _tar(path: str, passed_over: list[str]) -> Iterator[Member]:
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            if info.isfile():
                yield from _member(path, info.name, info.size, lambda info=info: archive.extractfile(info), passed_over)  # type: ignore[misc]
            archive.members = []  # type: ignore[attr-defined]  # of a large archive, not every header is kept


def _member(path: str, name: str, size: int, opened: Any, passed_over: list[str]) -> Iterator[Member]:
    source = f"{path}!{name}"
    if is_archive(name):
        yield Member(name, error=ImageFormatError("is an archive inside an archive", source=source, remedy="unpack the outer one first"))
        return
    if os.path.basename(name).startswith(".") or name.startswith("__MACOSX/"):
        passed_over.append(source)
        return
    try:
        with opened() as stream:
            head = stream.read(16)
            if not is_picture_name(name) and not head.startswith(MAGIC):
                passed_over.append(source)
                return
            data = head + stream.read(MAX_MEMBER + 1 - len(head))
    except Exception as error:  # one bad member must not hide the others
        what = "is protected by a password" if "password" in str(error) else f"cannot be unpacked ({error or type(error).__name__})"
        yield Member(name, error=ImageTruncatedError(what, source=source, remedy="unpack the archive yourself, or fetch it again"))
        return
    if len(data) > MAX_MEMBER:
        yield Member(name, error=ImageTooLargeError(f"unpacks to more than {MAX_MEMBER >> 20} MiB", source=source, remedy="unpack the archive yourself"))
        return
    yield Member(name, data)
