"""Batched extraction against the loop everybody writes first, page by page, in one process.

``python -m benchmarks.batch_throughput --rounds 6`` (small receipts), ``--documents`` (rendered documents of full size)

    one by one    for path in paths: model.extract(path, schema)
    batched       extract_iter(paths, schema, batch_size=...): decoding ahead in processes of its own, batches of like length
    processes     the same with ``--processes 2``: two models that share the pages, and the cores

The ways take turns on the same files, in changing order, so that a machine that is busy otherwise favours none. Loop and batch
run with ``--threads`` threads of torch. Ratios are medians over rounds, of wall time and, for a machine
that is shared, of CPU time (decoders included). Before the rounds every way runs once to warm up.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from app.batch import Job
from app.decoders import Decoder
from app.inputs import Input
from app.pages import PageOptions
from app.processes import Processes
from app.requests import Request
from benchmarks.batch_memory import cpu_seconds
from benchmarks.batch_pages import SCHEMA, encoded
from benchmarks.common import arguments, load, report
from vlm.model import DiffusionVLM

DOCUMENT_SCHEMA = {"vendor": "string", "date": "date", "total": "number", "address": "string"}


def write_documents(folder: Path, count: int) -> None:
    """Rendered receipts as pocket's evaluation draws them."""
    from examples.pocket import documents
    from examples.pocket.held_out import random
    from examples.pocket.sample import render

    for index in range(count):
        rng = random(4, index)
        Image.fromarray(render(documents.make(rng, True, "receipt"), rng, 0.0)).save(folder / f"{index:05d}.png")


def one_by_one(model: DiffusionVLM, schema: Any, paths: list[str]) -> list[Any]:
    """The loop."""
    return [model.extract(path, schema).data for path in paths]


def batched(model: DiffusionVLM, schema: Any, paths: list[str], processes: Processes | None = None) -> list[Any]:
    """The batch job."""
    job = Job(model, Request.extract(schema), [Input(path) for path in paths], PageOptions(), processes=processes)
    return [outcome.row["data"] for outcome in job.run()]


def clocked(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """(what `run` gives, wall seconds, CPU seconds of this process and of its decoders)."""

    def cpu() -> float:
        return time.process_time() + sum(cpu_seconds(p.pid) for p in Decoder._idle) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime

    start, before = time.perf_counter(), cpu()
    value = run()
    return value, time.perf_counter() - start, cpu() - before


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.set_defaults(pages=64, threads=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--documents", action="store_true", help="documents of full size instead of small receipts")
    parser.add_argument("--processes", type=int, default=2, help="of the third way; 1 leaves it out")
    args: argparse.Namespace = parser.parse_args()
    model = load(args)
    model.batch_size = args.batch_size
    schema = DOCUMENT_SCHEMA if args.documents else SCHEMA
    with TemporaryDirectory() as place:
        folder = Path(place)
        if args.documents:
            write_documents(folder, args.pages)
        else:
            for i in range(args.pages):
                (folder / f"{i:05d}.png").write_bytes(encoded(i))
        paths = sorted(map(str, folder.iterdir()))
        shared = args.processes > 1 and not args.random
        several = Processes(partial(DiffusionVLM.from_pretrained, args.model), args.processes, args.batch_size) if shared else None
        ways: dict[str, Callable[[], Any]] = {"one by one": lambda: one_by_one(model, schema, paths), "batched": lambda: batched(model, schema, paths)}
        if several is not None:
            ways["processes"] = lambda: batched(model, schema, paths, several)
        answers = {name: run() for name, run in ways.items()}
        wall: dict[str, list[float]] = {name: [] for name in ways}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds):
            names = list(ways)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                _, seconds, cpu = clocked(ways[name])
                wall[name].append(seconds)
                spent[name].append(cpu)
            print(" ".join(f"{name}: {wall[name][-1]:.2f} s, CPU {spent[name][-1]:.2f} s;" for name in ways), file=sys.stderr, flush=True)
    same = sum(a == b for a, b in zip(answers["one by one"], answers["batched"], strict=True))

    def ratio(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(a / b for a, b in zip(times["one by one"], times[name], strict=True))

    figures: dict[str, Any] = {
        "pages a round": args.pages, "rounds": args.rounds, "batch size": args.batch_size, "pages with identical data": same,
        "pages/s one by one (wall)": args.pages / statistics.median(wall["one by one"]),
        "pages/s batched (wall)": args.pages / statistics.median(wall["batched"]),
        "CPU ms per page, one by one": statistics.median(spent["one by one"]) / args.pages * 1000,
        "CPU ms per page, batched": statistics.median(spent["batched"]) / args.pages * 1000,
        "batched / one by one, CPU": ratio(spent, "batched"), "batched / one by one, wall": ratio(wall, "batched"),
    }  # fmt: skip
    if several is not None:
        several.close()
        figures["processes / one by one, wall"] = ratio(wall, "processes")
        figures["pages with identical data, processes"] = sum(a == b for a, b in zip(answers["one by one"], answers["processes"], strict=True))
        figures["pages/s processes (wall)"] = args.pages / statistics.median(wall["processes"])
    report(args, model, {**figures, "wall": wall, "cpu": spent})
    return 0


if __name__ == "__main__":
    sys.exit(main())
