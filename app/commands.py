"""What each command does."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.batch import Job, Outcome, Summary, page_range, shard_of
from app.inputs import Inputs, expand
from app.journal import Journal
from app.options import parse_options
from app.outputs import Output
from app.pages import PageOptions
from app.processes import Processes
from app.report import write_report
from app.requests import Request
from app.rows import block_of, json_line, message_of, place_of, text_of
from vlm.errors import OptionError


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed command; returns the exit code.

    Raises:
        VLMError: the request or the model cannot be used; errors of single files become rows.
    """
    if args.command == "report":
        return _report(args)
    if args.command == "corrections":
        return _corrections(args)
    if args.threads is not None and args.threads < 1:
        raise OptionError(f"--threads is {args.threads}", remedy="use 1 or more")
    if args.command in ("info", "convert"):
        from app import checkpoints

        return checkpoints.info(args) if args.command == "info" else checkpoints.convert(args)
    if args.command == "bench":
        from app import bench

        return bench.run(args)
    if args.command == "demo":
        from app.web import serve

        return serve.run(args)
    return _task(args)


def _report(args: argparse.Namespace) -> int:
    rows = Path(args.rows)
    if args.limit < 1:
        raise OptionError(f"--limit is {args.limit}", remedy="use 1 or more")
    out = Path(args.out) if args.out else rows.with_suffix(".html")
    shown = write_report(rows, out, limit=args.limit)
    if not args.quiet:
        log(f"{shown} pages in {out}")
    return 0


def _corrections(args: argparse.Namespace) -> int:
    from app.corrections import write_conversations

    done = write_conversations(Path(args.rows), Path(args.corrected), args.schema, Path(args.out))
    for source in done.lost:
        log(f"{source}: the page is not there any more, and was left out")
    if not args.quiet:
        log(f"{done.conversations} conversations in {Path(args.out) / 'conversations.jsonl'}; {done.changed} values were corrected")
    return 0 if not done.lost else 3 if done.conversations else 1


def log(message: str) -> None:
    """A line on stderr, above the progress bar if there is one."""
    tqdm.write(f"vlm: {message}", file=sys.stderr)


def load_model(args: argparse.Namespace) -> Any:
    """The model that the options name."""
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return _loader(args)()


def _loader(args: argparse.Namespace) -> Callable[[], Any]:
    from vlm.model import DiffusionVLM

    return partial(DiffusionVLM.from_pretrained, args.model, device=args.device, dtype=args.dtype, device_map=args.device_map)


def decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    """Preset, seed and ``--set`` options as keyword arguments of the model's tasks."""
    options: dict[str, Any] = {"seed": args.seed}
    if args.preset is not None:
        options["preset"] = args.preset
    options |= parse_options(args.set)
    if getattr(args, "max_new_tokens", None) is not None:
        options["max_new_tokens"] = args.max_new_tokens
    return options


def request_of(command: str, args: argparse.Namespace) -> Request:
    """What a command asks of every page; wrong requests are found here, before a model is loaded."""
    options = decoding_options(args) if command != "read" else {}
    if command != "read" and not _is_published(args.model):  # published families have presets of their own
        _check_preset(options)
    dpi = getattr(args, "dpi", 0.0)
    if command == "extract":
        if getattr(args, "lenient", False):  # bench has no such option
            options["lenient"] = True
        return Request.extract(args.schema, options, dpi)
    if command in ("ask", "ground"):
        return Request.about(command, args.question if command == "ask" else args.instruction, options, dpi)
    return Request(command, decoding=options, dpi=dpi)


def _check_preset(options: dict[str, Any]) -> None:
    from vlm.decoding.presets import DEFAULT, preset

    own = {k: v for k, v in options.items() if k not in ("seed", "preset", "max_new_tokens")}
    preset(options.get("preset") or DEFAULT, **own)


def page_options(args: argparse.Namespace) -> PageOptions:
    """How files are opened; raises OptionError."""
    for name, least in (("dpi", 1), ("timeout", 0.01), ("workers", 1), ("memory", 1), ("batch_size", 1), ("processes", 1)):
        if getattr(args, name) < least:
            raise OptionError(f"--{name.replace('_', '-')} is {getattr(args, name)}", remedy=f"use {least} or more")
    return PageOptions(page_range(args.pages), args.dpi, args.password, timeout=args.timeout, workers=args.workers, memory=args.memory << 20)


def _task(args: argparse.Namespace) -> int:
    options, shard = page_options(args), shard_of(args.shard)
    request = request_of(args.command, args)
    output = None
    if args.out is not None:
        output = Output(Path(args.out.replace("{shard}", str(shard[0]) if shard else "1")), merge=args.merge == "per_doc", overwrite=args.overwrite)
    elif args.merge == "per_doc" or args.report or args.retry_errors:
        raise OptionError("--merge, --report and --retry-errors work on a file of rows", remedy="add --out FILE")
    inputs = expand(args.images, recursive=args.recursive)
    if output is not None:  # a wrong file is found before a model is loaded
        Journal.try_out(output.journal, overwrite=args.overwrite)
    model = load_model(args)
    model.batch_size = args.batch_size
    several = Processes(_loader(args), args.processes, args.batch_size) if args.processes > 1 else None
    job = Job(model, request, inputs.files, options, shard=shard, stop_at_error=args.on_error == "stop", processes=several)
    with several or nullcontext():
        code = _run(args, job, inputs, output)
    if output is not None and code not in (130, 143):
        output.finish(request)
        if args.report:
            write_report(output.journal, Path(args.report), inputs.files, options)
    return code


def _run(args: argparse.Namespace, job: Job, inputs: Inputs, output: Output | None) -> int:
    """All pages of a job, with progress on the terminal; returns the exit code."""
    start = time.perf_counter()
    with ExitStack() as stack:
        journal = None
        if output is not None:
            journal = stack.enter_context(Journal(output.journal, job.versions, overwrite=args.overwrite, retry_errors=args.retry_errors))
            if journal.total and not args.quiet:
                log(f"going on with {output.journal}, which holds {journal.total} rows")
        caught = stack.enter_context(_finishing(job))
        teller = Teller(args, alone=len(inputs.files) == 1, to_file=output is not None)
        bar = stack.enter_context(_progress(args, len(inputs.files)))
        for outcome in job.run(journal):
            teller.put(outcome)
            _advance(bar, job)
    summary = job.summary
    _tell_passed_over([*inputs.passed_over, *summary.passed_over], args.quiet)
    if not args.quiet and (output is not None or summary.pages != 1):
        log(said(summary, output, time.perf_counter() - start))
    return 128 + caught[0] if caught else summary.exit_code


def said(summary: Summary, output: Output | None, seconds: float) -> str:
    """The summary in a line."""
    counts = ", ".join(f"{n} {status}" for status, n in summary.statuses.items()) or "nothing new"
    where = f" in {output.path}" if output is not None else ""
    before = f"; {summary.done} of them before" if summary.done else ""
    speed = f", {summary.rows / seconds:.1f} pages/s" if summary.rows > 1 else ""
    end = "; stopped before the last page: the same command goes on" if summary.stopped else ""
    return f"{summary.pages} pages in, {summary.done + summary.rows} rows{where}{before}: {counts}; {seconds:.1f} s{speed}{end}"


@contextmanager
def _finishing(job: Job) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM ends the job after the batch in hand, the second one at once. Yields the signals that came."""
    caught: list[int] = []
    wanted = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        for one in wanted:
            signal.signal(one, before[one])
        log("finishing the batch in hand (once more to stop at once)")
        job.halt()

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield caught
        return
    before = {one: signal.signal(one, note) for one in wanted}
    try:
        yield caught
    finally:
        for one in wanted:
            signal.signal(one, before[one])


def _progress(args: argparse.Namespace, total: int) -> Any:
    """A bar on the terminal: pages a second, time left, errors."""
    in_the_way = args.out is None and sys.stdout.isatty()  # rows on the same screen show the progress themselves
    hidden = args.quiet or in_the_way or not sys.stderr.isatty()
    return tqdm(total=total, unit="page", file=sys.stderr, disable=hidden, dynamic_ncols=True, smoothing=0.1)


def _advance(bar: Any, job: Job) -> None:
    if bar.disable or job.pages is None:
        return
    known = len(job.files) + job.pages.extra
    bar.total = max(job.summary.pages, known // job.shard[1] if job.shard else known)
    if job.summary.done > bar.initial:
        bar.initial = job.summary.done  # they say nothing about the speed
    bar.set_postfix(errors=job.summary.statuses["error"], refresh=False)
    bar.update(job.summary.done + job.summary.rows - bar.n)


def _tell_passed_over(passed: list[str], quiet: bool) -> None:
    if passed and not quiet:
        log(f"{len(passed)} files are no images and were passed over: {', '.join(passed[:5])}{' ...' if len(passed) > 5 else ''}")


class Teller:
    """Says what became of pages: on stdout as JSON lines or text, unless rows go to a file, and errors and warnings on stderr."""

    def __init__(self, args: argparse.Namespace, alone: bool, to_file: bool) -> None:
        self.task, self.json, self.quiet, self.alone, self.to_file = args.command, args.json, args.quiet, alone, to_file

    def put(self, outcome: Outcome) -> None:
        """One page."""
        row, result = outcome.row, outcome.result
        alone = self.alone and (row["n_pages"] or 1) == 1
        if not self.to_file and self.json:
            print(json_line(row), flush=True)
        elif not self.to_file and not (alone and result.error is not None):
            print(_printable(block_of(text_of(result, self.task), place_of(row), alone)), flush=True)
        if row["error"] is not None and (alone or self.to_file or self.json):
            log(message_of(row["error"]))
        if not self.quiet:
            for warning in row.get("warnings", ()):
                log(f"warning: {place_of(row)}: {warning}")


def _printable(text: str) -> str:
    """Text that stdout can take: what its encoding lacks comes out as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _is_published(model: str | None) -> bool:
    """Whether a name means a checkpoint of another kind than pocket."""
    from vlm.checkpoint import is_pocket

    return model is not None and not is_pocket(model)
