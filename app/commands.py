"""What each command does."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from app import batch
from app.inputs import Inputs, expand
from app.options import parse_options
from app.rows import block_of, json_line, message_of, row_of
from vlm.errors import OptionError, PromptError, SchemaError
from vlm.results import Result


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed command; returns the exit code.

    Raises:
        VLMError: the request or the model cannot be used; errors of single files become rows.
    """
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


def log(message: str) -> None:
    """A line on stderr, above the progress bar if there is one."""
    tqdm.write(f"vlm: {message}", file=sys.stderr)


def load_model(args: argparse.Namespace) -> Any:
    """The model that the options name."""
    import torch

    from vlm.model import DiffusionVLM

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return DiffusionVLM.from_pretrained(args.model, device=args.device, dtype=args.dtype, device_map=args.device_map)


def decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    """Preset, seed and ``--set`` options as keyword arguments of the model's tasks."""
    options: dict[str, Any] = {"seed": args.seed}
    if args.preset is not None:
        options["preset"] = args.preset
    options |= parse_options(args.set)
    if getattr(args, "max_new_tokens", None) is not None:
        options["max_new_tokens"] = args.max_new_tokens
    return options


def read_schema(text: str) -> Any:
    """A schema that was typed: a file of that name, or the JSON itself.

    Raises:
        SchemaError: neither, or a schema that cannot be used.
    """
    from vlm.structure.schema import parse_schema

    path = Path(text)
    if text.lstrip().startswith("{"):
        return parse_schema(text)
    if path.is_dir() or not path.exists():
        raise SchemaError("is a folder" if path.is_dir() else "no such file", source=text, remedy="name a JSON file, or give the JSON itself")
    return parse_schema(path)


def task_call(command: str, args: argparse.Namespace, model: Callable[[], Any]) -> batch.Task:
    """The function paths -> results of a task; wrong requests are found before `model` is called."""
    options = decoding_options(args) if command != "read" else {}
    if command != "read" and not _is_published(args.model):  # published families have presets of their own
        _check_preset(options)
    if command == "extract":
        schema = read_schema(args.schema)
        vlm = model()
        return lambda paths: vlm.extract(paths, schema, on_error="row", **options)
    if command in ("ask", "ground"):
        words = args.question if command == "ask" else args.instruction
        if not words.strip():
            raise PromptError(f"the {'question' if command == 'ask' else 'instruction'} is empty", remedy="write one")
        vlm = model()
        call = vlm.ask if command == "ask" else vlm.ground
        return lambda paths: call(paths, words, on_error="row", **options)
    vlm = model()
    call = vlm.caption if command == "caption" else vlm.read
    return lambda paths: call(paths, on_error="row", **options)


def _check_preset(options: dict[str, Any]) -> None:
    from vlm.decoding.presets import DEFAULT, preset

    own = {k: v for k, v in options.items() if k not in ("seed", "preset", "max_new_tokens")}
    preset(options.get("preset") or DEFAULT, **own)


def _task(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise OptionError(f"--batch-size is {args.batch_size}", remedy="use 1 or more")
    inputs = expand(args.images, recursive=args.recursive)
    _tell_passed_over(inputs, args.quiet)
    sink = _Sink(args, alone=len(inputs.files) == 1)

    def model() -> Any:
        loaded = load_model(args)
        loaded.batch_size = args.batch_size
        return loaded

    task = task_call(args.command, args, model)
    start = time.perf_counter()
    with sink:
        results = batch.run(inputs.files, task, args.batch_size, report=log if args.debug else None)
        in_the_way = args.out is None and sys.stdout.isatty()  # rows on the same screen show the progress themselves
        for result in _progress(results, len(inputs.files), args.quiet or in_the_way):
            sink.put(result)
    return sink.finish(time.perf_counter() - start)


def _progress(results: Iterable[Result], total: int, quiet: bool) -> Iterable[Result]:
    hidden = quiet or total < 2 or not sys.stderr.isatty()
    return tqdm(results, total=total, unit="image", file=sys.stderr, disable=hidden, dynamic_ncols=True)


def _tell_passed_over(inputs: Inputs, quiet: bool) -> None:
    passed = inputs.passed_over
    if passed and not quiet:
        log(f"{len(passed)} files are no images and were passed over: {', '.join(passed[:5])}{' ...' if len(passed) > 5 else ''}")


class _Sink:
    """Where rows go: a file, or stdout as JSON lines or text."""

    def __init__(self, args: argparse.Namespace, alone: bool) -> None:
        self.task, self.json, self.quiet, self.alone = args.command, args.json, args.quiet, alone
        self.out = args.out
        self.file: IO[str] | None = None
        self.statuses: list[str] = []
        if self.out is not None:
            path = Path(self.out)
            if path.is_dir():
                raise OptionError("is a folder", source=f"--out {path}", remedy="name a file")
            if path.is_file() and path.stat().st_size and not args.overwrite:
                raise OptionError("exists already", source=f"--out {path}", remedy="name another file, or add --overwrite")

    def __enter__(self) -> _Sink:
        if self.out is not None:
            try:
                Path(self.out).parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.out, "w", encoding="utf-8")
            except OSError as error:
                raise OptionError(f"cannot be written ({error.strerror or error})", source=f"--out {self.out}", remedy="name another file") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def put(self, result: Result) -> None:
        """Write one row and say what is wrong with it."""
        self.statuses.append(result.status)
        if self.file is not None or self.json:
            print(json_line(row_of(result, self.task)), file=self.file or sys.stdout, flush=True)
        elif not (self.alone and result.status == "error"):
            print(_printable(block_of(result, self.task, self.alone)), flush=True)
        if result.status == "error" and (self.alone or self.file is not None or self.json):
            log(message_of(result))
        if not self.quiet:
            for warning in result.warnings:
                log(f"warning: {result.source}: {warning}")

    def finish(self, seconds: float) -> int:
        """Summary on stderr; the exit code."""
        if not self.quiet and (not self.alone or self.file is not None):
            counts = ", ".join(f"{n} {status}" for status, n in Counter(self.statuses).items())
            where = f" in {self.out}" if self.out is not None else ""
            log(f"{len(self.statuses)} rows{where}: {counts}; {seconds:.1f} s")
        return batch.exit_code(self.statuses)


def _printable(text: str) -> str:
    """Text that stdout can take: what its encoding lacks comes out as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _is_published(model: str | None) -> bool:
    """Whether a name means a checkpoint of another kind than pocket."""
    from vlm.checkpoint import is_pocket

    return model is not None and not is_pocket(model)
