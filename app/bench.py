"""``vlm bench``: how long the tasks take on given images, and how many model calls they need."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from typing import Any

from tqdm import tqdm

from app.batch import exit_code
from app.commands import load_model, log, request_of
from app.inputs import expand
from app.requests import TASKS, Request
from app.rows import message_of
from vlm.errors import OptionError
from vlm.results import Result

_NEEDS = {"ask": "question", "extract": "schema", "ground": "instruction"}


def run(args: argparse.Namespace) -> int:
    """Time every task, one page at a time; prints a table or JSON. Exit code as for the tasks themselves."""
    if args.repeat < 1:
        raise OptionError(f"--repeat is {args.repeat}", remedy="use 1 or more")
    tasks = _tasks(args)
    files = expand(args.images, recursive=args.recursive).files
    requests = [request_of(task, args) for task in tasks]
    model = load_model(args)
    rows, statuses = [], Counter[str]()
    for request in requests:
        row, seen = _measure(request, model, [f.path for f in files if f.error is None], args)
        rows.append(row)
        statuses.update(seen + ["error"] * sum(f.error is not None for f in files))
    if args.json:
        import torch

        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "repeat": args.repeat, "tasks": rows}, indent=2))
    else:
        _print_table(rows)
    return exit_code(statuses)


def _tasks(args: argparse.Namespace) -> list[str]:
    """The tasks to time; each has what it needs."""
    if args.tasks is None:
        return [task for task in TASKS if task not in _NEEDS or getattr(args, _NEEDS[task]) is not None]
    tasks = [t.strip() for t in args.tasks.split(",") if t.strip()]
    for task in tasks:
        if task not in TASKS:
            raise OptionError(f"unknown task {task!r}", source="--tasks", remedy=f"use some of {','.join(TASKS)}")
        if task in _NEEDS and getattr(args, _NEEDS[task]) is None:
            raise OptionError(f"{task} needs --{_NEEDS[task]}", source="--tasks", remedy="add it")
    if not tasks:
        raise OptionError("names no task", source="--tasks", remedy=f"use some of {','.join(TASKS)}")
    return tasks


def _measure(request: Request, model: Any, paths: list[str], args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """(numbers of one task, status of each file): every file once to warm up, then `repeat` times."""

    def call(images: list[str]) -> list[Result]:
        return list(request.run(model, images))

    task = request.task
    first = {path: call([path])[0] for path in paths}
    good = [path for path, result in first.items() if result.status != "error"]
    for result in first.values():
        if result.error is not None:
            log(message_of(result.error))
    times: list[float] = []
    results: list[Result] = []
    hidden = args.quiet or not sys.stderr.isatty()
    for path in tqdm(good * args.repeat, desc=task, unit="page", file=sys.stderr, disable=hidden, leave=False):
        start = time.perf_counter()
        results += call([path])
        times.append((time.perf_counter() - start) * 1000)
    row: dict[str, Any] = {"task": task, "pages": len(good), "runs": len(times)}
    if times:
        forwards = [r.usage.forwards for r in results]
        tokens = [r.usage.tokens for r in results]
        row |= {
            "ms_median": statistics.median(times), "ms_mean": statistics.fmean(times), "ms_max": max(times),
            "forwards": statistics.fmean(forwards), "steps": statistics.fmean(r.usage.steps for r in results),
            "tokens": statistics.fmean(tokens), "tokens_per_forward": sum(tokens) / sum(forwards) if sum(forwards) else None,
        }  # fmt: skip
    return row, [r.status for r in first.values()]


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'task':<8} {'pages':>5} {'runs':>5} {'ms/page':>9} {'mean':>9} {'max':>9} {'forwards':>9} {'tokens':>8} {'tokens/forward':>15}")
    for r in rows:
        if "ms_median" not in r:
            print(f"{r['task']:<8} {0:>5} {0:>5}   no page could be read")
            continue
        ratio = f"{r['tokens_per_forward']:.2f}" if r["tokens_per_forward"] is not None else "-"
        numbers = f"{r['ms_median']:>9.1f} {r['ms_mean']:>9.1f} {r['ms_max']:>9.1f} {r['forwards']:>9.1f} {r['tokens']:>8.1f} {ratio:>15}"
        print(f"{r['task']:<8} {r['pages']:>5} {r['runs']:>5} {numbers}")
