"""The process that opens files and decodes pages: ``python -m app.decode_worker``, started by :mod:`app.decoders`.

Decoders of hostile bytes hang, crash and eat memory. Here they can be killed, and take nothing along but themselves.

Requests and replies are pickles with their length in front, on stdin and stdout:

    ("open", path or bytes, name, skip, options)  ->  a document, after `skip` others of the same archive
    ("next",)                                     ->  the next document
    ("page", i)                                   ->  {size, warnings, bytes}, followed by that many bytes of RGB

A document is {"source", "digest", "n_pages"}, with "error" where it cannot be opened; after the last one {"end": files
passed over}. Errors are exceptions.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import struct
import sys
from collections.abc import Iterator
from typing import IO, Any

from app.archives import is_archive, members
from vision.documents import Document, open_document
from vision.errors import ImageTooLargeError, VLMError

LENGTH = struct.Struct("<Q")
#: Bytes of address space: a picture of the largest size takes about a fifth of it, a bomb more.
ADDRESS_SPACE = 6 << 30


def digest_of(src: str | bytes) -> str:
    """SHA-256 of a file or of bytes."""
    if isinstance(src, bytes):
        return hashlib.sha256(src).hexdigest()
    with open(src, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Worker:
    """Serves one file at a time."""

    def __init__(self) -> None:
        self.documents: Iterator[dict[str, Any]] = iter(())
        self.document: Document | None = None

    def open(self, src: str | bytes, name: str, skip: int, options: dict[str, Any]) -> dict[str, Any]:
        """Begin with a file."""
        self.documents = self._documents(src, name, skip, options)
        return self.next()

    def next(self) -> dict[str, Any]:
        """The next document of the file."""
        return next(self.documents)

    def _documents(self, src: str | bytes, name: str, skip: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Documents from number `skip` on; those before are not opened again."""
        if not (isinstance(src, str) and is_archive(src) and os.path.isfile(src)):
            if not skip:
                yield self._document(src, name, options)
            yield {"end": []}
            return
        passed_over: list[str] = []
        found = 0
        try:
            for member in members(src, passed_over):
                found += 1
                if found <= skip:
                    continue
                source = f"{name}!{member.name}"
                if member.error is not None:
                    yield {"source": source, "digest": digest_of(source.encode(errors="surrogateescape")), "n_pages": None, "error": member.error}
                else:
                    yield self._document(member.data, source, options)
        except VLMError as error:
            yield {"source": name, "digest": digest_of(src), "n_pages": None, "error": error}
            found += 1
        if not found and not skip:
            yield {"source": name, "digest": digest_of(src), "n_pages": 0}
        yield {"end": passed_over}

    def _document(self, src: str | bytes, name: str, options: dict[str, Any]) -> dict[str, Any]:
        self.close()
        found: dict[str, Any] = {"source": name, "digest": "", "n_pages": None}
        try:
            self.document = open_document(src, name=name, **options)
            found["n_pages"] = self.document.n_pages
        except Exception as error:  # also what nobody foresaw
            found["error"] = sendable(error, name)
        try:
            found["digest"] = digest_of(src)
        except OSError:  # there are no bytes; the name stands for them
            found["digest"] = digest_of(name.encode(errors="surrogateescape"))
        return found

    def page(self, index: int) -> tuple[dict[str, Any], bytes]:
        """Decode a page."""
        assert self.document is not None
        image = self.document.page(index)
        pixels = image.rgb.tobytes()
        return {"size": image.rgb.size, "warnings": image.warnings, "bytes": len(pixels)}, pixels

    def close(self) -> None:
        """Let go of the open document."""
        if self.document is not None:
            self.document.close()
            self.document = None


def send(replies: IO[bytes], reply: Any, pixels: bytes = b"") -> None:
    """A reply, and what follows it."""
    message = pickle.dumps(reply)
    replies.write(LENGTH.pack(len(message)) + message)
    replies.write(pixels)
    replies.flush()


def sendable(error: Exception, source: str) -> Exception:
    """An error that can be pickled and reads well."""
    if isinstance(error, MemoryError):
        return ImageTooLargeError("needs more memory than a decoder may take", source=source, remedy="scale it down first")
    if not isinstance(error, VLMError):
        return RuntimeError(f"{type(error).__name__}: {error}")
    error.__cause__ = None
    return error


def main() -> int:
    """Serve until stdin ends."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get among the replies
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    except (ImportError, ValueError, OSError):
        pass  # not on this system
    worker = Worker()
    send(replies, "ready")  # starting takes long on a busy machine, and is nobody's fault
    while True:
        head = requests.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return 0
        (patience, what, *arguments) = pickle.loads(requests.read(LENGTH.unpack(head)[0]))
        if hasattr(signal, "alarm"):
            signal.alarm(int(patience) + 30)  # should nobody be left to kill us, the system does
        pixels = b""
        try:
            reply: Any = getattr(worker, what)(*arguments)
            if what == "page":
                reply, pixels = reply
        except Exception as error:
            reply = sendable(error, str(getattr(worker.document, "source", "")))
        send(replies, reply, pixels)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


if __name__ == "__main__":
    sys.exit(main())
