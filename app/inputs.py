"""From what was given to a list of files: names, folders, patterns, lists and pictures in memory; in order, none lost without a word."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.archives import MAGIC, is_archive, is_picture_name
from vision.errors import ImageNotFoundError, VLMError

STDIN = "-"


@dataclass(frozen=True)
class Input:
    """One file or picture to work on.

    Attributes:
        path: of the file, or the name of a picture in memory. error: set where a name gave nothing, which makes it a failed
            row of its own. image: a picture in memory: bytes, PIL image, array or LoadedImage.
    """

    path: str
    error: VLMError | None = None
    image: Any = None


@dataclass
class Inputs:
    """What to work on, in order, and the files of scanned folders that are no pictures."""

    files: list[Input] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def expand(names: Iterable[Any], *, recursive: bool = True) -> Inputs:
    """Files behind names.

    Args:
        names: files (taken whatever they are), folders (their pictures, documents and archives, sorted), patterns with
            ``* ? [ ]``, ``**`` for any depth, ``@list`` for a file with a name a line, ``-`` for standard input: such a
            list, or a picture or PDF. A name that exists is never read as a pattern or list. Anything that is no name
            counts as a picture in memory.
        recursive: scan folders to any depth.

    A file that is named twice counts once. A folder without pictures, or a pattern without match, gives an Input with
    an ImageNotFoundError.
    """
    found = Inputs()
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not isinstance(name, (str, os.PathLike)):
            found.files.append(Input(str(getattr(name, "source", "") or getattr(name, "filename", "") or f"image {index}"), image=name))
            continue
        for one in _listed(os.fspath(name), found):
            _add(one, recursive, found, seen)
    return found


def _listed(name: str, found: Inputs) -> Iterator[str]:
    """The name itself, or the names of a list."""
    if name == STDIN:
        data = sys.stdin.buffer.read()
        if data.startswith(MAGIC) or b"%PDF-" in data[:1024]:
            found.files.append(Input("stdin", image=data))
            return
        yield from _lines(data, "stdin", found)
    elif name.startswith("@") and not os.path.lexists(name):
        try:
            with open(name[1:], "rb") as file:
                data = file.read()
        except OSError as error:
            what = f"the list cannot be read ({error.strerror or error})"
            found.files.append(Input(name, ImageNotFoundError(what, source=name[1:], remedy="check the path")))
            return
        yield from _lines(data, name[1:], found)
    else:
        yield name


def _lines(data: bytes, source: str, found: Inputs) -> Iterator[str]:
    """Names, one a line, or ended by zero bytes as ``find -print0`` writes them."""
    zero = b"\0" in data
    names = [os.fsdecode(line if zero else line.removesuffix(b"\r")) for line in data.split(b"\0" if zero else b"\n")]
    names = [name for name in names if name.strip()]
    if not names:
        found.files.append(Input(source, ImageNotFoundError("the list is empty", source=source, remedy="give a name a line")))
    yield from names


def _add(name: str, recursive: bool, found: Inputs, seen: set[str]) -> None:
    matches = _matches(name)
    if matches is None:
        found.files.append(Input(name, ImageNotFoundError("no file matches", source=name, remedy="check the pattern")))
        return
    for match in matches:
        if os.path.isdir(match):
            taken, passed = _scan(match, recursive)
            found.passed_over += passed
            if not taken:
                remedy = "name another folder" if recursive else "name another folder, or use --recursive for those below"
                found.files.append(Input(match, ImageNotFoundError("there are no images in this folder", source=match, remedy=remedy)))
        else:
            taken = [match]
        for path in taken:
            key = os.path.abspath(path)
            if key not in seen:
                seen.add(key)
                found.files.append(Input(path))


def _matches(name: str) -> list[str] | None:
    """The name itself, or what a pattern stands for: its files, or failing those its folders; None without a match."""
    if os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    everything = sorted(glob.glob(name, recursive=True))
    return [m for m in everything if not os.path.isdir(m)] or everything or None


def _scan(folder: str, recursive: bool) -> tuple[Sequence[str], list[str]]:
    """(pictures, documents and archives; other files) of a folder, sorted by name; hidden files are no pictures."""
    taken: list[str] = []
    passed: list[str] = []
    for path in _walk(folder, recursive):
        (taken if _is_wanted(path) else passed).append(path)
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


def _is_wanted(path: str) -> bool:
    """By suffix, or, for a file with any other suffix, by its first bytes. Broken links count: they get a failed row."""
    name = os.path.basename(path)
    if name.startswith("."):
        return False
    if is_picture_name(name) or is_archive(name):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(16).startswith(MAGIC)
    except OSError:
        return False
