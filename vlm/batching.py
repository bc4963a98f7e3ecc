"""Many pictures through a model: read as they come, sorted by length, run in batches, given back in their order.

Pictures are let go as soon as they were read; small ones wait for a few of their kind, to be read together. A batch that does
not fit into memory is cut in halves, and the size of later batches with it; a picture that breaks its batch is run alone, and
becomes a result with status 'error'.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from vision.loading import LoadedImage
from vlm.errors import ContextLengthError, ImageTooLargeError, OptionError, PromptError, SchemaError, VLMError
from vlm.results import Result

#: Batches that are collected before the first of them is run: the more there are, the more alike the rows of each.
WINDOW = 4
#: Pixels of pictures that wait to be read together: beyond it they are, however few they are.
TOGETHER = 1_000_000

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """A picture that was read: its name, what was found, and the milliseconds that took.

    The picture itself is not kept: a batch of large pages must not pile up in memory.
    """

    source: str
    warnings: tuple[str, ...]
    reading: Any
    ms: float


class Batches:
    """Results of pictures, one each, in order.

    Args:
        load: an image of any kind -> the picture.
        look: some pictures -> what was seen on each; the length of its reading is how much of the prompt it takes.
        run: what was seen on some pictures -> their results.
        size: rows of a batch at most.
        as_rows: bad pictures become results instead of raising.
    """

    def __init__(
        self, load: Callable[[Any], LoadedImage], look: Callable[[list[LoadedImage]], list[Seen]], run: Callable[[list[Any]], list[Result]],
        size: int, as_rows: bool,
    ) -> None:  # fmt: skip
        self.load, self.look, self.run, self.size, self.as_rows = load, look, run, size, as_rows

    def __call__(self, images: Iterable[Any]) -> Iterator[Result]:
        """Results of images, as the windows fill; an exception among them stands for an image that could not be had.

        Raises what `run` raises for the request as a whole.
        """
        loaded: dict[int, tuple[LoadedImage, float]] = {}  # and the milliseconds it took
        waiting: dict[int, Seen] = {}
        rows: dict[int, Result] = {}
        first, index, pixels = 0, -1, 0
        for index, image in enumerate(images):
            try:
                if isinstance(image, Exception):
                    raise image
                loaded[index] = timed(self.load, image)
                pixels += loaded[index][0].rgb.width * loaded[index][0].rgb.height
            except Exception as error:
                rows[index] = self._failed(error, image)
            del image
            full = len(loaded) + len(waiting) >= self.size * WINDOW or len(rows) >= self.size * WINDOW * 4
            if full or len(loaded) >= self.size or pixels > TOGETHER:
                self._see(loaded, waiting, rows)
                pixels = 0
            if full:
                yield from self._window(waiting, rows, range(first, index + 1))
                first = index + 1
        self._see(loaded, waiting, rows)
        yield from self._window(waiting, rows, range(first, index + 1))

    def _failed(self, error: Exception, image: Any) -> Result:
        """The row of a picture that could not be loaded or read; raises where there are no such rows."""
        if not self.as_rows or of_the_request(error):
            raise error
        return failed(error, "load", image)

    def _see(self, loaded: dict[int, tuple[LoadedImage, float]], waiting: dict[int, Seen], rows: dict[int, Result]) -> None:
        """Look at what was loaded, together; where that breaks, at one after the other."""
        try:
            seen: Sequence[Seen | None] = self.look([picture for picture, _ in loaded.values()]) if loaded else []
        except Exception:
            if len(loaded) == 1 and not self.as_rows:
                raise
            seen = [None] * len(loaded)
        for index, found in zip(list(loaded), seen, strict=True):
            picture, ms = loaded.pop(index)
            try:
                one = found or self.look([picture])[0]
                waiting[index] = replace(one, ms=one.ms + ms)
            except Exception as error:
                rows[index] = self._failed(error, picture)

    def _window(self, waiting: dict[int, Seen], rows: dict[int, Result], numbers: range) -> Iterator[Result]:
        """Run what waits, and give the results of all `numbers` in order."""
        queue = sorted(waiting, key=lambda index: len(waiting[index].reading))  # stable: equal windows give equal batches
        while queue:
            batch, queue = queue[: self.size], queue[self.size :]
            seen = [waiting.pop(index) for index in batch]
            for index, one, result in zip(batch, seen, self._run(seen), strict=True):
                rows[index] = of_picture(result, one)
        for index in numbers:
            yield rows.pop(index)

    def _run(self, batch: list[Seen]) -> list[Result]:
        """Results of a batch; where it breaks, of its halves or of each row alone."""
        try:
            return self.run([seen.reading for seen in batch])
        except Exception as error:
            exhausted = out_of_memory(error)
            if len(batch) == 1 or not (exhausted or self.as_rows):
                if not self.as_rows or of_the_request(error):
                    raise
                return [failed(error, "decode", batch[0].source)]
            if of_the_request(error):
                raise
        # outside the handler: the traceback no longer holds on to what the batch allocated
        if not exhausted:
            return [result for seen in batch for result in self._run([seen])]
        gc.collect()
        half = len(batch) // 2
        self.size = max(1, min(self.size, half))
        _log.warning("out of memory with a batch of %d; going on with %d", len(batch), self.size)
        return self._run(batch[:half]) + self._run(batch[half:])


def timed(run: Callable[[Any], T], given: Any) -> tuple[T, float]:
    """(``run(given)``, the milliseconds that took)."""
    start = time.perf_counter()
    value = run(given)
    return value, (time.perf_counter() - start) * 1000


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch says so on the CPU by a RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text or "not enough memory" in text)


def of_the_request(error: Exception) -> bool:
    """Errors that no other picture would mend: of the schema, an option or the prompt itself."""
    return isinstance(error, (SchemaError, OptionError, PromptError)) and not isinstance(error, ContextLengthError)


def charged(result: Result, ms: float) -> Result:
    """The same result with `ms` added to its cost."""
    return replace(result, usage=replace(result.usage, ms=result.usage.ms + ms))


def of_picture(result: Result, seen: Seen) -> Result:
    """The result of a picture: with its name, its warnings, and what reading it took."""
    return charged(replace(result, source=seen.source, warnings=(*seen.warnings, *result.warnings)), seen.ms)


def failed(error: Exception, stage: str, image: Any) -> Result:
    """The result of an image that could not be used."""
    source = getattr(error, "source", "") or str(getattr(image, "source", "")) or (str(image) if isinstance(image, (str, Path)) else type(image).__name__)
    if out_of_memory(error):
        error = ImageTooLargeError("needs more memory than there is", source=source, remedy="scale it down, or free memory")
    if not isinstance(error, VLMError):  # nobody foresaw it
        _log.debug("%s", source, exc_info=error)
        stage = "internal"
    message = str(error) if isinstance(error, VLMError) else f"{source}: {error or 'unexpected error'}"
    return Result(status="error", error={"type": type(error).__name__, "message": message, "stage": stage}, source=source)
