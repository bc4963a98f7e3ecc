"""Measure a pocket checkpoint on every task it was trained for.

``python -m examples.pocket.evaluate --data ROOT --tasks documents,lines --json out.json``

Packs are read from ``ROOT/<name>/manifest.jsonl``; documents, lines and screens are drawn (see ``held_out``). Prints a
table and, with ``--json``, writes every figure with command, date, versions, counts and seconds.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from examples.pocket import evaluate_packs as packs
from examples.pocket import evaluate_rendered as rendered
from examples.pocket.evaluation import Bench, Figure, as_table, processor
from vlm.checkpoint import POCKET
from vlm.model import DiffusionVLM

#: Tasks in the order of the table: (what measures it, pack it needs).
TASKS: dict[str, tuple[Callable[[Bench], list[Figure]], str | None]] = {
    "documents": (rendered.documents, None),
    "absent": (rendered.documents, None),
    "boxes": (rendered.documents, None),
    "captions": (rendered.captions, None),
    "easy_vqa": (packs.easy_vqa, "easy_vqa"),
    "nlvr": (packs.nlvr, "nlvr"),
    "nlvr_scene": (packs.nlvr_scene, "nlvr"),
    "lines": (rendered.lines, None),
    "sroie_read": (packs.sroie_read, "sroie"),
    "screens": (rendered.screens, None),
    "gui": (packs.gui, "gui"),
    "sroie_fields": (packs.sroie_fields, "sroie"),
    "schema_valid": (rendered.schema_valid, None),
}


def measure(bench: Bench, tasks: list[str]) -> tuple[list[Figure], dict[str, str]]:
    """(figures of the tasks in the order of the table, why a task was left out)."""
    figures: list[Figure] = []
    skipped: dict[str, str] = {}
    done: dict[Any, list[Figure]] = {}
    for name, (run, pack) in TASKS.items():
        if name not in tasks:
            continue
        if pack is not None and not bench.has(pack):
            skipped[name] = f"no {pack}/manifest.jsonl under the data root"
            continue
        if run not in done:
            done[run] = run(bench)
        figures += [f for f in done[run] if f.task == name]
    return figures, skipped


def about(bench: Bench, model: Path, argv: list[str], seconds: float) -> dict[str, Any]:
    """What a figure needs beside it: command, date, versions, model, machine, settings."""
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "tesseract": packs.tesseract_version()}
    for package in ("numpy", "pillow", "jsonschema"):
        versions[package] = metadata.version(package)
    return {
        "command": shlex.join(["python", "-m", "examples.pocket.evaluate", *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "model": {"sha256": weights, **bench.model.info()},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]},
        "settings": {"split": bench.split, "limit": bench.limit, "seed": bench.seed},
        "seconds": round(seconds, 1),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 1 when nothing could be measured."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="root folder of packs; without it only drawn sets are measured")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of {','.join(TASKS)}")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--model", type=Path, help="checkpoint folder; the shipped pocket by default")
    parser.add_argument("--split", default="val", help="split of packs, or 'all'")
    parser.add_argument("--limit", type=int, help="most items of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn sets")
    for name, count in (("documents", 300), ("lines", 400), ("screens", 150)):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{name} to draw")
    args = parser.parse_args(argv)
    tasks = [t for t in args.tasks.split(",") if t]
    if unknown := [t for t in tasks if t not in TASKS]:
        parser.error(f"unknown task {unknown[0]}; there are {', '.join(TASKS)}")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"--data {args.data} is not a folder")
    start = time.perf_counter()
    model = DiffusionVLM.from_pretrained(args.model)
    bench = Bench(model, args.data, args.split, args.limit, args.documents, args.lines, args.screens, args.seed)
    figures, skipped = measure(bench, tasks)
    report = about(bench, args.model or POCKET, argv, time.perf_counter() - start)
    report |= {"figures": [f.to_dict() for f in figures], "skipped": skipped, "refused": bench.refused}
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{report['command']}\n{report['date']}, {report['seconds']} s\n\n{as_table(figures)}")
    for name, why in skipped.items():
        print(f"{name}: not measured, {why}")
    for why in bench.refused[:5]:
        print(f"refused: {why}")
    return 0 if figures else 1


if __name__ == "__main__":
    sys.exit(main())
