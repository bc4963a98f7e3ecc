"""Any number of pages through one request: exactly one row for each, in order, whatever happens.

:func:`extract_iter` and :func:`extract_batch` are the Python API; the command line runs the same :class:`Job`.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.inputs import Input, expand
from app.journal import Journal, WriteError
from app.pages import Page, PageOptions, PageRange, Pages, digest
from app.processes import Processes
from app.requests import Request
from app.rows import row_of
from vlm.errors import ImageError, OptionError, VLMError
from vlm.results import Result
from vlm.version import VERSION

if TYPE_CHECKING:
    from vlm.model import DiffusionVLM


@dataclass(frozen=True)
class Outcome:
    """A page that is finished: its row, and the result behind it."""

    row: dict[str, Any]
    result: Result


@dataclass
class Summary:
    """What became of a run.

    Attributes:
        pages: that came in, those of earlier runs included. done: of which had their rows from earlier runs.
        statuses: of the rows of this run. waited, wrote: seconds that the model stood still for pages and
            for the disk. stopped: the run ended before the last page, at a wish or an error.
        passed_over: files in folders and archives that are no pictures.
    """

    pages: int = 0
    done: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    waited: float = 0.0
    wrote: float = 0.0
    stopped: bool = False
    passed_over: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of this run."""
        return sum(self.statuses.values())

    @property
    def exit_code(self) -> int:
        """0 when no row failed, 1 when all did, 3 when some did."""
        return exit_code(self.statuses)


class Job:
    """Pages through a request.

    Args:
        model: of the package. request: what is asked.
        files: from :func:`app.inputs.expand`. options: how they are opened.
        shard: (i, n): only the pages whose ids fall to part i of n, counted from 1.
        stop_at_error: end after the batch in which a page failed.
        processes: that compute the pages instead of `model`, which then only gives its name.

    Attributes:
        summary: grows while :meth:`run` goes on. pages: where pages come from, while it goes on.
    """

    def __init__(
        self, model: DiffusionVLM, request: Request, files: Sequence[Input], options: PageOptions | None = None, *,
        shard: tuple[int, int] | None = None, stop_at_error: bool = False, processes: Processes | None = None,
    ) -> None:  # fmt: skip
        self.model, self.request, self.files, self.options = model, request, files, options or PageOptions()
        self.shard, self.stop_at_error, self.processes = shard, stop_at_error, processes
        self.versions = {"program": VERSION, "model": model.name, "model_hash": model.fingerprint, "request": request.hash}
        self.summary = Summary()
        self.pages: Pages | None = None
        self._waiting: deque[Page] = deque()

    def id_of(self, content: str, page: int) -> str:
        """Id of a row, from the digest of its file: 32 hex digits."""
        return digest(f"{content} {page} {self.request.hash} {self.versions['model_hash']}".encode())[:32]

    def halt(self) -> None:
        """End after the batch in hand; from a signal handler, too."""
        self.summary.stopped = True
        if self.pages is not None:
            self.pages.halted = True

    def run(self, journal: Journal | None = None) -> Iterator[Outcome]:
        """Outcomes in order, written to the journal before they are given; pages that have rows there are left out.

        Raises:
            SchemaError, OptionError, PromptError: the request itself cannot be met. WriteError: the journal cannot be written.
        """
        self.pages = Pages(self.files, self.id_of, self.options, has_row=journal.has_row if journal else lambda *_: False, mine=self._mine)
        if self.summary.stopped:
            return
        summary = self.summary
        images = self._images(self.pages)
        results = self.request.run(self.model, images) if self.processes is None else self.processes.run(self.request, images)
        try:
            for result in results:
                outcome = self._outcome(self._waiting.popleft(), result)
                if journal is not None:
                    start = time.perf_counter()
                    journal.put(outcome.row)
                    summary.wrote += time.perf_counter() - start
                summary.statuses[outcome.row["status"]] += 1
                if outcome.row["status"] == "error" and self.stop_at_error:
                    self.halt()
                yield outcome
        finally:
            self.pages.stop()
        summary.passed_over = self.pages.passed_over
        if summary.pages != summary.done + summary.rows:
            raise WriteError(f"{summary.pages} pages gave {summary.done + summary.rows} rows", source="summary", remedy="report this: it must not happen")
        if journal is not None:
            journal.sync()
            journal.check()

    def _mine(self, id: str) -> bool:
        return self.shard is None or int(id[:12], 16) % self.shard[1] == self.shard[0] - 1

    def _images(self, pages: Pages) -> Iterator[Any]:
        """What the model is to look at; errors stand for pages without picture."""
        stream = iter(pages)
        while True:
            start = time.perf_counter()
            page = next(stream, None)
            self.summary.waited += time.perf_counter() - start
            if page is None:
                return
            self.summary.pages += 1
            if page.done:
                self.summary.done += 1
                continue
            self._waiting.append(page)
            yield page.image if page.image is not None else page.error or ImageError(page.skipped, source=page.source)

    def _outcome(self, page: Page, result: Result) -> Outcome:
        if page.skipped:
            result = Result(status="skipped", error={"type": "Skipped", "message": f"{page.source}: {page.skipped}", "stage": "open"}, source=page.source)
        elif page.error is not None:
            result = failed_page(page)
        row = row_of(result, self.request.task, id=page.id, page=page.page, n_pages=page.n_pages, versions=self.versions)
        row["source"] = page.source
        return Outcome(row, result)


def failed_page(page: Page) -> Result:
    """The result of a page that could not be had."""
    error = page.error
    message = str(error) if isinstance(error, VLMError) else f"{page.source}: {error or 'unexpected error'}"
    stage = page.stage if isinstance(error, VLMError) else "internal"
    return Result(status="error", error={"type": type(error).__name__, "message": message, "stage": stage}, source=page.source)


def exit_code(statuses: Counter[str]) -> int:
    """0 when no row failed, 1 when all did, 3 when some did."""
    failed = statuses["error"]
    if not failed:
        return 0
    return 1 if failed == sum(statuses.values()) else 3


def page_range(text: str | None) -> PageRange | None:
    """``1-3,7,10-`` as pages; None for all; raises OptionError."""
    if text is None or text.strip().lower() == "all":
        return None
    parts: list[tuple[int, int | None]] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        try:
            start = int(first)
            end = (int(last) if last else None) if dash else start
        except ValueError:
            start, end = 0, None
        if start < 1 or (end is not None and end < start):
            raise OptionError(f"{text!r} are no pages", source="pages", remedy="write them as 1-3,7,10- or all")
        parts.append((start, end))
    return PageRange(tuple(parts), text)


def shard_of(text: str | None) -> tuple[int, int] | None:
    """``2/8`` as part 2 of 8, counted from 1; ``auto`` from RANK and WORLD_SIZE as launchers set them; raises OptionError."""
    if text is None:
        return None
    if text == "auto":
        try:
            index, count = int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"])
        except (KeyError, ValueError):
            remedy = "start with accelerate launch or torchrun, or write --shard i/n"
            raise OptionError("RANK and WORLD_SIZE are not set", source="--shard auto", remedy=remedy) from None
    else:
        i, slash, n = text.partition("/")
        if not (slash and i.isdigit() and n.isdigit()):
            raise OptionError(f"{text!r} is no shard", source="--shard", remedy="write it as i/n, for example 1/8 ... 8/8")
        index, count = int(i), int(n)
    if not 1 <= index <= count:
        raise OptionError(f"there is no part {index} of {count}", source="--shard", remedy="count from 1 to n")
    return index, count


def _many(inputs: Any) -> Sequence[Any]:
    return inputs if isinstance(inputs, (list, tuple)) else [inputs]


def extract_iter(
    inputs: Any, schema: Any, *, model: DiffusionVLM | str | Path | None = None, batch_size: int | None = None, pages: str | None = None,
    options: PageOptions | None = None, shard: str | None = None, recursive: bool = True, processes: int = 1, **decoding: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of all pages of the inputs, in order, in bounded memory.

    Args:
        inputs: one or a list of files, folders, patterns, archives, ``@lists`` and pictures in memory (:func:`app.inputs.expand`).
        schema: in any form that :func:`app.schemas.find_schema` knows, a built-in name among them.
        model: None loads pocket, a path or Hub id that one. batch_size: rows computed together; None: as the model has it.
        processes: models that share the pages (:mod:`app.processes`); more than one need `model` as None, path or id.
        pages: such as ``1-3,7``. options: further ones of opening files. shard: ``i/n``.
        decoding: ``preset``, ``seed`` and the preset's options; ``lenient=True`` for schemas with keywords that cannot be guaranteed.

    Raises:
        SchemaError, OptionError: the request cannot be met; at once. Pages that fail are rows with status 'error'.
    """
    job = _job(inputs, schema, model, batch_size, pages, options, shard, recursive, processes, decoding)
    return _rows(job)


def _rows(job: Job) -> Iterator[dict[str, Any]]:
    with job.processes or nullcontext():
        for outcome in job.run():
            yield outcome.row


def extract_batch(
    inputs: Any, schema: Any, out: str | Path, *, model: DiffusionVLM | str | Path | None = None, batch_size: int | None = None, pages: str | None = None,
    options: PageOptions | None = None, shard: str | None = None, recursive: bool = True, overwrite: bool = False, retry_errors: bool = False,
    merge: bool = False, processes: int = 1, **decoding: Any,
) -> Summary:  # fmt: skip
    """Write a row for every page of the inputs to `out` (.jsonl, .csv or .parquet); a second call goes on where the first one ended.

    Arguments as of :func:`extract_iter`, and:
        overwrite: begin anew. retry_errors: do pages whose rows are errors again. merge: a row per document.

    Raises:
        SchemaError, OptionError: the request cannot be met. WriteError: the disk is full; what was written is complete.
    """
    from app.outputs import Output

    job = _job(inputs, schema, model, batch_size, pages, options, shard, recursive, processes, decoding)
    output = Output(Path(out), merge=merge, overwrite=overwrite)
    with job.processes or nullcontext(), Journal(output.journal, job.versions, overwrite=overwrite, retry_errors=retry_errors) as journal:
        for _ in job.run(journal):
            pass
    output.finish(job.request)
    return job.summary


def _job(
    inputs: Any, schema: Any, model: DiffusionVLM | str | Path | None, batch_size: int | None, pages: str | None, options: PageOptions | None,
    shard: str | None, recursive: bool, processes: int, decoding: dict[str, Any],
) -> Job:  # fmt: skip
    from vlm.model import DiffusionVLM

    options = options or PageOptions()
    if pages is not None:
        options = replace(options, pages=page_range(pages))
    request = Request.extract(schema, decoding, options.dpi)
    part = shard_of(shard)
    files = expand(_many(inputs), recursive=recursive)
    load = None
    if model is None or isinstance(model, (str, Path)):
        load = partial(DiffusionVLM.from_pretrained, model)
        model = load()
    if batch_size is not None:
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}", remedy="use 1 or more")
        model.batch_size = batch_size
    several = None
    if processes != 1:
        if load is None:
            raise OptionError("a model cannot be handed to other processes", source="processes", remedy="give its folder or Hub id, or nothing for pocket")
        several = Processes(load, processes, model.batch_size)
    return Job(model, request, files.files, options, shard=part, processes=several)
