"""From files to pages: decoded ahead by threads, handed out in order, within a budget of memory and time.

Every file takes a lane. Threads fill lanes, each the next file in order; the reader empties them in order. A page waits
in its lane once the budget allows, and the lane that the reader stands at may always hold one: nothing can wait in a circle.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from app.archives import is_archive
from app.decoders import Decoder
from app.inputs import Input
from vision.documents import DPI
from vision.errors import VLMError
from vision.loading import MAX_PIXELS, LoadedImage, load_image

#: Bytes that a page counts at least, so that errors and tiny pictures do not pile up either.
LEAST = 1 << 20


@dataclass(frozen=True)
class PageOptions:
    """How files are opened.

    Attributes:
        pages: which pages of a file are wanted, counted from 1; None: all.
        dpi, password: of PDFs. max_pixels: of a page.
        timeout: seconds for opening a file, and again for each page.
        workers: decoding threads, each with a process of its own.
        memory: bytes of decoded pages that may wait.
    """

    pages: PageRange | None = None
    dpi: float = DPI
    password: str | None = None
    max_pixels: int = MAX_PIXELS
    timeout: float = 60.0
    workers: int = 2
    memory: int = 256 << 20

    @property
    def opening(self) -> dict[str, Any]:
        """Arguments of :func:`vision.documents.open_document`."""
        return {"dpi": self.dpi, "password": self.password, "max_pixels": self.max_pixels}


@dataclass(frozen=True)
class PageRange:
    """Pages such as ``1-3,7,10-``: pairs of first and last, last None for 'to the end'."""

    parts: tuple[tuple[int, int | None], ...]
    text: str

    def __contains__(self, page: int) -> bool:
        return any(first <= page and (last is None or page <= last) for first, last in self.parts)


@dataclass
class Page:
    """A page on its way to its row.

    Attributes:
        id: of the row. page: counted from 1; None where the file could not be opened. n_pages: None likewise.
        image: decoded. error, stage: why there is no image. done: there is a row already. skipped: why no row of a page is due
            although the file was given.
    """

    id: str
    source: str
    page: int | None
    n_pages: int | None
    image: LoadedImage | None = None
    error: Exception | None = None
    stage: str = ""
    done: bool = False
    skipped: str = ""


@dataclass
class _Lane:
    """Pages of one file."""

    pages: deque[tuple[Page, int]] = field(default_factory=deque)
    closed: bool = False


class Pages:
    """The pages of files, once, in order.

    Args:
        files: taken as needed. ids: (digest of the file, page) -> id of the row.
        options: see :class:`PageOptions`.
        has_row: whether a page (by id and source) has its row already: it is then not decoded, and comes as `done`.
        mine: whether the id belongs to this run at all (shards); the others do not come.
    """

    def __init__(
        self, files: Iterable[Input], ids: Callable[[str, int], str], options: PageOptions, *,
        has_row: Callable[[str, str], bool] = lambda *_: False, mine: Callable[[str], bool] = lambda _: True,
    ) -> None:  # fmt: skip
        self.options, self.ids, self.has_row, self.mine = options, ids, has_row, mine
        self.passed_over: list[str] = []
        self.extra = 0  # pages that are known of beyond one for each file
        self.halted = False  # set from anywhere, a signal handler too: no further page comes
        self._files = iter(files)
        self._change = threading.Condition()
        self._lanes: deque[_Lane] = deque()
        self._held = 0
        self._working = 0
        self._stopped = False
        self._failure: Exception | None = None
        self._decoders: list[Decoder] = []

    def __iter__(self) -> Iterator[Page]:
        threads = [threading.Thread(target=self._work, daemon=True, name=f"decode-{i}") for i in range(self.options.workers)]
        self._working = len(threads)
        for thread in threads:
            thread.start()
        try:
            while True:
                with self._change:
                    found = self._next()
                if found is None:
                    break
                page, size = found
                yield page
                page.image = None  # by now it has been looked at
                with self._change:
                    self._held -= size
                    self._change.notify_all()
            if self._failure is not None:
                raise self._failure
        finally:
            self.stop()
            for thread in threads:
                thread.join(timeout=1.0)

    def stop(self) -> None:
        """Give up what is being decoded; pages that wait are lost."""
        with self._change:
            if self._stopped:
                return
            self._stopped = True
            busy = list(self._decoders)
            self._change.notify_all()
        for decoder in busy:
            decoder.abort()

    def _next(self) -> tuple[Page, int] | None:
        """The page at the head; None at the end."""
        while not self.halted:
            if self._lanes:
                lane = self._lanes[0]
                if lane.pages:
                    return lane.pages.popleft()
                if lane.closed:
                    self._lanes.popleft()
                    self._change.notify_all()  # the head has moved
                    continue
            elif not self._working:
                return None
            self._change.wait(0.2)  # a signal handler cannot notify
        return None

    def _work(self) -> None:
        """One decoding thread."""
        decoder = Decoder(self.options.timeout)
        with self._change:
            self._decoders.append(decoder)
        try:
            while True:
                with self._change:
                    if self._stopped:
                        return
                    try:
                        given = next(self._files, None)
                    except Exception as error:
                        self._failure = error
                        given = None
                    if given is None:
                        return
                    lane = _Lane()
                    self._lanes.append(lane)
                try:
                    self._fill(lane, given, decoder)
                except Exception as error:  # nobody foresaw it; the file still has its row
                    decoder.kill()
                    if not self._stopped:
                        self._fail(lane, digest(given.path.encode(errors="surrogateescape")), given.path, error, "internal")
                finally:
                    with self._change:
                        lane.closed = True
                        self._change.notify_all()
        finally:
            with self._change:
                self._working -= 1
                self._decoders.remove(decoder)
                stopped = self._stopped
                self._change.notify_all()
            if stopped:
                decoder.kill()
            else:
                decoder.release()

    def _put(self, lane: _Lane, page: Page, size: int = 0) -> None:
        """Note a page of a file that has no pixels."""
        with self._change:
            self._wait_for(lane, max(LEAST, size))
            lane.pages.append((page, max(LEAST, size)))
            self._change.notify_all()

    def _wait_for(self, lane: _Lane, size: int) -> None:
        """Wait until `size` bytes may be held, and hold them."""
        while not self._stopped and self._held + size > self.options.memory and not (self._lanes and self._lanes[0] is lane and not lane.pages):
            self._change.wait()
        self._held += size

    def _fill(self, lane: _Lane, given: Input, decoder: Decoder) -> None:
        """All pages of a file."""
        if given.error is not None:
            self._fail(lane, digest(given.path.encode(errors="surrogateescape")), given.path, given.error, "find")
        elif given.image is None or isinstance(given.image, (bytes, bytearray, memoryview)):
            self._decode(lane, given, decoder)
        else:
            self._take(lane, given)

    def _fail(self, lane: _Lane, of: str, source: str, error: Exception, stage: str, page: int | None = None, n_pages: int | None = None) -> None:
        """An error of a page, or of a file that could not be opened."""
        name = self.ids(of, page or 0)
        if self.mine(name):
            done = self.has_row(name, source)
            self._put(lane, Page(name, source, page, n_pages, error=None if done else error, stage=stage, done=done))

    def _take(self, lane: _Lane, given: Input) -> None:
        """A picture in memory."""
        try:
            image = load_image(given.image, max_pixels=self.options.max_pixels, name=given.path)
        except VLMError as error:
            self._fail(lane, digest(given.path.encode()), given.path, error, "load")
            return
        name = self.ids(digest(f"{image.rgb.size}".encode(), np.asarray(image.rgb).tobytes()), 1)
        if self.mine(name):
            done = self.has_row(name, given.path)
            self._put(lane, Page(name, given.path, 1, 1, None if done else image, done=done), 0 if done else len(image.rgb.getbands()) * _area(image.rgb))

    def _decode(self, lane: _Lane, given: Input, decoder: Decoder) -> None:
        """The documents of a file, by the decoder."""
        src = given.path if given.image is None else bytes(given.image)
        number = lost = 0
        while not self._stopped and lost < 2:  # a second file in a row that takes the decoder along: it is the archive
            try:
                if number and decoder.alive:
                    document = decoder.next(given.path)
                else:
                    document = decoder.open(src, given.path, number, self.options.opening)
            except VLMError as error:  # hung or crashed
                if not self._stopped:
                    self._fail(lane, digest(f"{given.path}#{number}".encode(errors="surrogateescape")), given.path, error, "open")
                if not is_archive(given.path):
                    return
                number, lost = number + 1, lost + 1
                continue
            lost = 0
            if "end" in document:
                self.passed_over += document["end"]
                return
            self.extra += number > 0
            self._document(lane, document, decoder, lambda number=number: decoder.open(src, given.path, number, self.options.opening))  # type: ignore[misc]
            number += 1

    def _document(self, lane: _Lane, about: dict[str, Any], decoder: Decoder, again: Callable[[], Any]) -> None:
        """The wanted pages of a document; `again` opens it a second time."""
        source, of, n_pages = about["source"], about["digest"], about["n_pages"]
        if "error" in about:
            self._fail(lane, of, source, about["error"], "open")
            return
        wanted = [page for page in range(1, n_pages + 1) if self.options.pages is None or page in self.options.pages]
        if not wanted:
            why = f"has {n_pages} pages, and none of them is among {self.options.pages.text}" if self.options.pages and n_pages else "has no pages"
            name = self.ids(of, 0)
            if self.mine(name):
                self._put(lane, Page(name, source, None, n_pages, done=self.has_row(name, source), skipped=why))
            return
        self.extra += len(wanted) - 1
        for page in wanted:
            name = self.ids(of, page)
            if self._stopped or not self.mine(name):
                continue
            if self.has_row(name, source):
                self._put(lane, Page(name, source, page, n_pages, done=True))
                continue
            try:
                if not decoder.alive:
                    again()
                pending = decoder.page(source, page - 1)
                with self._change:
                    self._wait_for(lane, max(LEAST, pending.bytes))
                try:
                    image = pending.take(n_pages)
                except VLMError:
                    with self._change:
                        self._held -= max(LEAST, pending.bytes)
                    raise
                with self._change:
                    lane.pages.append((Page(name, source, page, n_pages, image), max(LEAST, pending.bytes)))
                    self._change.notify_all()
            except Exception as error:
                if not self._stopped:
                    self._put(lane, Page(name, source, page, n_pages, error=error, stage="load"))


def digest(*parts: bytes) -> str:
    """SHA-256 of bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _area(picture: Image.Image) -> int:
    return picture.width * picture.height
