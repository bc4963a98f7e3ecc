"""From what was typed to a list of files: names, folders and patterns, in order, none lost without a word."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vision.errors import ImageNotFoundError, VLMError
from vision.loading import SUFFIXES

#: Suffixes of pictures and documents that may lie among images: they are taken too, so that each gets a row that says
#: why it could not be read.
RELATED = frozenset({".pdf", ".heic", ".heif", ".avif", ".svg", ".jp2", ".jxl", ".psd", ".ico", ".tga", ".eps"})
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"RIFF", b"%PDF")


@dataclass(frozen=True)
class Input:
    """One file to work on; `error` is set where a name gave nothing, which makes it a failed row of its own."""

    path: str
    error: VLMError | None = None


@dataclass
class Inputs:
    """What to work on, in order, and the files of scanned folders that are no pictures."""

    files: list[Input] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def expand(names: Sequence[str], *, recursive: bool = False) -> Inputs:
    """Files behind names.

    Args:
        names: files (taken whatever they are), folders (their pictures, sorted) and patterns with ``* ? [ ]``, ``**``
            for any depth. A name that exists is never read as a pattern.
        recursive: scan folders to any depth.

    A file that is named twice counts once. A folder without pictures, or a pattern without match, gives an Input with
    an ImageNotFoundError.
    """
    found = Inputs()
    seen: set[str] = set()
    for name in names:
        matches = _matches(name)
        if matches is None:
            found.files.append(Input(name, ImageNotFoundError("no file matches", source=name, remedy="check the pattern")))
            continue
        for match in matches:
            if os.path.isdir(match):
                taken, passed = _scan(match, recursive)
                found.passed_over += passed
                if not taken:
                    remedy = "name another folder, or use --recursive for those below"
                    found.files.append(Input(match, ImageNotFoundError("there are no images in this folder", source=match, remedy=remedy)))
            else:
                taken = [match]
            for path in taken:
                key = os.path.abspath(path)
                if key not in seen:
                    seen.add(key)
                    found.files.append(Input(path))
    return found


def _matches(name: str) -> list[str] | None:
    """The name itself, or what a pattern stands for: its files, or failing those its folders; None without a match."""
    if os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    everything = sorted(glob.glob(name, recursive=True))
    return [m for m in everything if not os.path.isdir(m)] or everything or None


def _scan(folder: str, recursive: bool) -> tuple[list[str], list[str]]:
    """(pictures, other files) of a folder, sorted by name; hidden files are no pictures."""
    taken: list[str] = []
    passed: list[str] = []
    for path in _walk(folder, recursive):
        (taken if _is_picture(path) else passed).append(path)
    return taken, passed


def _walk(folder: str, recursive: bool) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageNotFoundError(f"cannot be read ({error})", source=folder, remedy="check the permissions") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) or (not recursive and entry.is_dir()):
            if recursive and not entry.name.startswith("."):
                yield from _walk(entry.path, recursive)
        else:
            yield entry.path


def _is_picture(path: str) -> bool:
    """By suffix, or, for a file with any other suffix, by its first bytes. Broken links count: they get a failed row."""
    name = Path(path)
    if name.name.startswith("."):
        return False
    if name.suffix.lower() in SUFFIXES | RELATED:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(16).startswith(_MAGIC)
    except OSError:
        return False
