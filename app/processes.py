"""Models in processes of their own that share the pages of a run: more cores than one model can keep busy.

    with Processes(partial(DiffusionVLM.from_pretrained, path), count=2, batch_size=8) as several:
        for result in several.run(request, images): ...

Pages are handed out in parts of a few batches, and come back in their order. A process that dies (out of memory, most often)
takes no page along: its part is done again page by page in a new process, and a page that kills that one, too, has status 'error'.

Processes are spawned: a script that asks for them needs the usual ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

from app.requests import Request
from vlm.batching import failed
from vlm.errors import OptionError, VLMError
from vlm.results import Result

if TYPE_CHECKING:
    from vlm.model import DiffusionVLM

#: Batches in a part: pages of one part are sorted by length.
PART = 2
#: Parts that are handed out for each process: one in hand, one that waits.
AHEAD = 2


class ModelDiedError(VLMError):
    """A page ended the process that computed it."""


class Processes:
    """`count` models, each in a process with its share of the cores.

    Args:
        load: gives a model; it is called in every process, so it must be picklable. count: processes. batch_size: of each.
    """

    def __init__(self, load: Callable[[], DiffusionVLM], count: int, batch_size: int) -> None:
        if count < 1:
            raise OptionError(f"processes is {count}", remedy="use 1 or more")
        self.load, self.count, self.batch_size = load, count, batch_size
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; parts in hand are finished first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, request: Request, images: Iterable[Any]) -> Iterator[Result]:
        """One result for each image, in order, as :meth:`app.requests.Request.run` gives them."""
        stream = iter(images)
        handed: deque[tuple[Future[list[Result]], ProcessPoolExecutor, list[Any]]] = deque()
        try:
            while True:
                while len(handed) < self.count * AHEAD and (part := list(islice(stream, self.batch_size * PART))):
                    pool = self._running()
                    handed.append((self._submit(pool, request, part), pool, part))
                if not handed:
                    return
                yield from self._results(request, *handed.popleft())
        finally:
            for future, _, _ in handed:
                future.cancel()

    def _submit(self, pool: ProcessPoolExecutor, request: Request, part: list[Any]) -> Future[list[Result]]:
        try:
            return pool.submit(_compute, request, part)
        except BrokenProcessPool as error:  # it broke with another part in hand
            future: Future[list[Result]] = Future()
            future.set_exception(error)
            return future

    def _results(self, request: Request, future: Future[list[Result]], pool: ProcessPoolExecutor, part: list[Any]) -> list[Result]:
        try:
            return future.result()
        except BrokenProcessPool:
            self._forget(pool)
        found: list[Result] = []
        for image in part:
            pool = self._running()
            try:
                found += self._submit(pool, request, [image]).result()
            except BrokenProcessPool:
                self._forget(pool)
                source = str(getattr(image, "source", ""))
                error = ModelDiedError("ended the process that computed it", source=source, remedy="give it more memory, or look at the file")
                found.append(failed(error, "decode", image))
        return found

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            setting = (self.load, self.batch_size, max(1, cores // self.count))
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=setting)
        return self._pool

    def _forget(self, pool: ProcessPoolExecutor) -> None:
        if pool is self._pool:
            pool.shutdown(wait=False)
            self._pool = None


_model: DiffusionVLM | None = None
_request: Request | None = None


def _prepare(load: Callable[[], DiffusionVLM], batch_size: int, threads: int) -> None:
    """In a new process."""
    global _model
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the one that hands out pages
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _model = load()
    _model.batch_size = batch_size


def _end_with_parent() -> None:
    """A parent that was killed tells nobody: its processes would wait for pages, and hold their models, for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _compute(request: Request, part: list[Any]) -> list[Result]:
    global _request
    if _request is None or _request.hash != request.hash:
        _request = request  # the first copy stays: what was compiled for its schema is known by it
    assert _model is not None
    return list(_request.run(_model, part))
