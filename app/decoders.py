"""Decoding in processes of its own: a page that hangs or crashes its decoder costs that process, and becomes an error.

A thread drives each process. Processes that have nothing to do wait for the next run.
"""

from __future__ import annotations

import atexit
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from app.decode_worker import LENGTH
from vision.errors import ImageTruncatedError, VLMError
from vision.loading import LoadedImage

#: Seconds a process may take to start, on however busy a machine.
STARTING = 120.0
_ROOT = str(Path(__file__).resolve().parents[1])


class DecodeError(VLMError):
    """A page could not be decoded, for reasons that lie outside its file."""


class DecodeTimeoutError(DecodeError):
    """A page took longer than it may."""


class Decoder:
    """A decoding process; started when it is first needed, and anew after it was killed.

    Args:
        timeout: seconds a request may take.
    """

    _idle: ClassVar[list[subprocess.Popen[bytes]]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, src: str | bytes, name: str, skip: int, options: dict[str, Any]) -> dict[str, Any]:
        """The first document of a file after `skip` others, see :mod:`app.decode_worker`.

        Raises:
            DecodeTimeoutError, ImageTruncatedError: the process hung or died; the next request starts another.
        """
        found: dict[str, Any] = self._ask(name, "open", src, name, skip, options)
        return found

    def next(self, name: str) -> dict[str, Any]:
        """The next document."""
        found: dict[str, Any] = self._ask(name, "next")
        return found

    def page(self, name: str, index: int) -> PendingPage:
        """Decode a page of the open document; its pixels wait in the process until they are taken."""
        return PendingPage(self, name, self._ask(name, "page", index))

    @property
    def alive(self) -> bool:
        """Whether the document that was opened last is still open."""
        return self._process is not None

    def _ask(self, name: str, *request: Any) -> Any:
        message = pickle.dumps((self.timeout, *request))
        try:
            process = self._running()
            until = time.monotonic() + self.timeout
            assert process.stdin is not None
            self._write(process, LENGTH.pack(len(message)) + message, until)
            (length,) = LENGTH.unpack(self._read(process, LENGTH.size, until))
            reply = pickle.loads(self._read(process, length, until))
        except (EOFError, OSError) as error:
            self.kill()
            raise self._lost(error, name) from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _lost(self, error: Exception, name: str) -> VLMError:
        if isinstance(error, TimeoutError):
            what = f"was not decoded within {self.timeout:g} seconds"
            return DecodeTimeoutError(what, source=name, remedy="look at the file, or allow more time with --timeout")
        if not isinstance(error, (EOFError, BrokenPipeError)):
            return DecodeError(f"was not decoded, for there is no decoder ({error})", source=name, remedy="see what the machine lacks, and use --retry-errors")
        return ImageTruncatedError("crashed its decoder", source=name, remedy="the file is damaged or hostile; fetch or copy it again")

    def pixels(self, name: str, count: int) -> bytes:
        """Bytes that follow the reply of a page."""
        assert self._process is not None
        try:
            return self._read(self._process, count, time.monotonic() + self.timeout)
        except (EOFError, OSError) as error:
            self.kill()
            raise self._lost(error, name) from None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            with self._lock:
                while Decoder._idle and self._process is None:
                    waiting = Decoder._idle.pop()
                    self._process = waiting if waiting.poll() is None else None
            if self._process is None:
                self._process = start()
                until = time.monotonic() + STARTING
                (length,) = LENGTH.unpack(self._read(self._process, LENGTH.size, until))
                self._read(self._process, length, until)
        return self._process

    @staticmethod
    def _read(process: subprocess.Popen[bytes], count: int, until: float) -> bytes:
        assert process.stdout is not None
        pieces, left = [], count
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        while left:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), min(left, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    @staticmethod
    def _write(process: subprocess.Popen[bytes], data: bytes, until: float) -> None:
        assert process.stdin is not None
        view = memoryview(data)
        poll = select.poll()
        poll.register(process.stdin, select.POLLOUT)
        while view:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            view = view[os.write(process.stdin.fileno(), view[: select.PIPE_BUF]) :]

    def abort(self) -> None:
        """End what the process does, from any thread: the thread that waits for it gets an error."""
        process = self._process
        if process is not None:
            process.kill()

    def kill(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def release(self) -> None:
        """Leave the process, which waits for a request, to the next run."""
        process, self._process = self._process, None
        if process is not None:
            with self._lock:
                Decoder._idle.append(process)


class PendingPage:
    """A page that was decoded and not yet taken over."""

    def __init__(self, decoder: Decoder, name: str, about: dict[str, Any]) -> None:
        self._decoder, self._name, self._about = decoder, name, about

    @property
    def bytes(self) -> int:
        """Size of its pixels."""
        return int(self._about["bytes"])

    def take(self, n_pages: int) -> LoadedImage:
        """The picture."""
        pixels = self._decoder.pixels(self._name, self.bytes)
        return LoadedImage(Image.frombytes("RGB", self._about["size"], pixels), self._name, n_pages, self._about["warnings"])


def start() -> subprocess.Popen[bytes]:
    """A new decoding process, out of reach of the terminal's Ctrl-C."""
    path = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "app.decode_worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=env, process_group=0)


@atexit.register
def _end_idle() -> None:
    for process in Decoder._idle:
        process.kill()
