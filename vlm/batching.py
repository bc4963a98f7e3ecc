"""Many pictures through a model: read as they come, sorted by length, run in batches, given back in their order.

Pictures are let go as soon as they were read. A batch that does not fit into memory is cut in halves, and the size of later
batches with it; a picture that breaks its batch is run alone, and becomes a result with status 'error'.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlm.errors import ContextLengthError, ImageTooLargeError, OptionError, PromptError, SchemaError, VLMError
from vlm.results import Result

#: Batches that are collected before the first of them is run: the more there are, the more alike the rows of each.
WINDOW = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """A picture that was read: its place among the inputs, what was found, and the milliseconds that took.

    The picture itself is not kept: a batch of large pages must not pile up in memory.
    """

    index: int
    source: str
    warnings: tuple[str, ...]
    reading: Any
    ms: float


class Batches:
    """Results of pictures, one each, in order.

    Args:
        look: (number, image) -> what was seen; the length of its reading is how much of the prompt it takes.
        run: what was seen on some pictures -> their results.
        size: rows of a batch at most.
        as_rows: bad pictures become results instead of raising.
    """

    def __init__(self, look: Callable[[int, Any], Seen], run: Callable[[list[Any]], list[Result]], size: int, as_rows: bool) -> None:
        self.look, self.run, self.size, self.as_rows = look, run, size, as_rows

    def __call__(self, images: Iterable[Any]) -> Iterator[Result]:
        """Results of images, as the windows fill; an exception among them stands for an image that could not be had.

        Raises what `run` raises for the request as a whole.
        """
        waiting: list[Seen] = []
        rows: dict[int, Result] = {}
        index = -1
        for index, image in enumerate(images):
            try:
                if isinstance(image, Exception):
                    raise image
                waiting.append(self.look(index, image))
            except Exception as error:
                if not self.as_rows or of_the_request(error):
                    raise
                rows[index] = failed(error, "load", image)
            del image
            if len(waiting) >= self.size * WINDOW or len(rows) >= self.size * WINDOW * 4:
                yield from self._window(waiting, rows, index)
                waiting, rows = [], {}
        yield from self._window(waiting, rows, index)

    def _window(self, waiting: list[Seen], rows: dict[int, Result], last: int) -> Iterator[Result]:
        """Run what waits, and give everything up to number `last` in order."""
        first = last + 1 - len(waiting) - len(rows)
        queue = sorted(waiting, key=lambda seen: len(seen.reading))  # stable: equal windows give equal batches
        while queue:
            batch, queue = queue[: self.size], queue[self.size :]
            for seen, result in zip(batch, self._run(batch), strict=True):
                rows[seen.index] = of_picture(result, seen)
        for index in range(first, last + 1):
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
