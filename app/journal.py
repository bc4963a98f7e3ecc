"""The file that rows are appended to: whole lines, forced to disk, and after an interruption continued where it ends."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from app.rows import STATUSES, json_line
from vlm.errors import OptionError, VLMError

#: Seconds after which rows are forced to disk at the latest, when another one comes.
SYNC_SECONDS = 1.0


class WriteError(VLMError):
    """Rows cannot be written: the disk is full, or the file is out of reach."""


class Journal:
    """Rows in a JSONL file.

    Args:
        path: created with its folders, or continued. versions: of this run; a file of other versions is refused.
        overwrite: begin anew. retry_errors: take rows with status 'error' out first, so that their pages are done again.

    Attributes:
        counts: rows by status, those of earlier runs included.
        total: their number.

    Raises:
        OptionError: the file is of another kind, or of another request, or in use.
    """

    def __init__(self, path: Path, versions: Mapping[str, str], *, overwrite: bool = False, retry_errors: bool = False) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self._done: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._file = _open(path)
        try:
            self._claim()
            if overwrite:
                os.ftruncate(self._file, 0)
            else:
                self._resume(versions, retry_errors)
            self._end = os.fstat(self._file).st_size
        except BaseException:
            os.close(self._file)
            raise
        self._synced = time.monotonic()

    @staticmethod
    def try_out(path: Path, *, overwrite: bool = False) -> None:
        """Raise OptionError where a journal at `path` would, as far as it can be told before the versions of a run are known."""
        os.close(_open(path))
        if not overwrite and path.stat().st_size:
            with open(path, "rb") as file:
                line = file.readline()
            if line.endswith(b"\n") and _row(line) is None:
                raise _no_results(path, 1)

    @property
    def total(self) -> int:
        """Rows in the file."""
        return sum(self.counts.values())

    def has_row(self, id: str, source: str) -> bool:
        """Whether a page has its row from an earlier run; each such row answers for one page only."""
        key = _key(id, source)
        with self._lock:
            if not self._done[key]:
                return False
            self._done[key] -= 1
            return True

    def put(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            WriteError: it could not be written whole. What was written of it is taken back.
        """
        line = json_line(row).encode() + b"\n"
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, self._end)  # needs no space
            raise self._unwritable(error) from error
        self._end += len(line)
        self.counts[row["status"]] += 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force what was written to disk; raises WriteError."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._unwritable(error) from error
        self._synced = time.monotonic()

    def check(self) -> None:
        """Read the file and raise WriteError unless it holds as many whole rows as were counted."""
        found = 0
        with open(self.path, "rb") as file:
            while block := file.read(1 << 20):
                found += block.count(b"\n")
        if found != self.total:
            raise WriteError(f"holds {found} rows where {self.total} were written", source=str(self.path), remedy="see whether another program writes to it")

    def close(self) -> None:
        """Force to disk, and let go."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unwritable(self, error: OSError) -> WriteError:
        what = f"cannot be written any further ({error.strerror or error}); its {self.total} rows are complete"
        return WriteError(what, source=str(self.path), remedy="make room and run the same command again: it goes on from there")

    def _claim(self) -> None:
        """Two runs must not write to one file."""
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on this system
            return
        except OSError as error:
            raise OptionError("is being written by another run", source=f"--out {self.path}", remedy="wait for it, or name another file") from error

    def _resume(self, versions: Mapping[str, str], retry_errors: bool) -> None:
        """Take the rows of earlier runs for done."""
        end = 0
        errors = False
        for row, end in self._whole_rows():  # noqa: B007
            if not self.counts:
                self._same_run(row, versions)
            self.counts[row["status"]] += 1
            errors = errors or row["status"] == "error"
            if row["status"] != "error" or not retry_errors:
                self._done[_key(row["id"], row["source"])] += 1
        os.ftruncate(self._file, end)  # a torn last line
        if errors and retry_errors:
            self._drop_errors()

    def _whole_rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        """(row, where it ends) of the rows that are whole; a broken line is forgiven at the end of the file only."""
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                row = _row(line)
                if row is None:
                    ours = number > 1 or (line.startswith(b'{"id"') and not line.endswith(b"\n"))
                    if ours and not file.read(1):
                        return
                    raise _no_results(self.path, number)
                end += len(line)
                yield row, end

    def _same_run(self, row: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        theirs = row.get("versions", {})
        for key, what in (("request", "another schema, question or decoding"), ("model_hash", "another model")):
            if theirs.get(key) != versions.get(key):
                raise OptionError(
                    f"exists already and holds rows of {what}", source=f"--out {self.path}", remedy="name another file, or add --overwrite"
                )

    def _drop_errors(self) -> None:
        """Write the file anew without its error rows."""
        beside = self.path.with_name(self.path.name + ".tmp")
        with open(beside, "wb") as kept:
            for row, _ in self._whole_rows():
                if row["status"] != "error":
                    kept.write(json_line(row).encode() + b"\n")
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(beside, self.path)
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        self._claim()
        del self.counts["error"]


def _open(path: Path) -> int:
    """A file to append to, created with its folders if need be."""
    if path.is_dir():
        raise OptionError("is a folder", source=f"--out {path}", remedy="name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise OptionError(f"cannot be written ({error.strerror or error})", source=f"--out {path}", remedy="name another file") from error


def _no_results(path: Path, number: int) -> OptionError:
    return OptionError(f"exists already and line {number} is no row of results", source=f"--out {path}", remedy="name another file, or add --overwrite")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a finished file, one at a time; raises OptionError for a line that is none."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                row = _row(line)
                if row is None:
                    raise OptionError(f"line {number} is no row of results", source=str(path), remedy="name a file that vlm extract has written")
                yield row
    except OSError as error:
        raise OptionError(f"cannot be read ({error.strerror or error})", source=str(path), remedy="check the path") from error


def _row(line: bytes) -> dict[str, Any] | None:
    """A row, or None for a line that is torn or something else."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.get("status") in STATUSES and {"id", "source"} <= row.keys() else None


def _key(id: str, source: str) -> bytes:
    """Short, for there may be millions."""
    return hashlib.blake2b(f"{id}\0{source}".encode(errors="surrogateescape"), digest_size=12).digest()
