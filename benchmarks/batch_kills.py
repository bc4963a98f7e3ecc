"""A batch job killed at random moments, a hundred times: is any row lost or repeated?

``python -m benchmarks.batch_kills --kills 100``

Every run is a process of its own that is killed with SIGKILL after it has written a random number of rows, at a random moment.
After every third kill some bytes are cut off the end of the file as well, as when the power fails while a row is being written.
At the end the job runs through, and its rows are compared with those of a job that nobody interrupted. Pages are small
receipts; the weights make no difference here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from app.batch import Job
from app.inputs import expand
from app.journal import Journal, read_rows
from app.pages import PageOptions
from app.requests import Request
from benchmarks.batch_pages import SCHEMA, write_files
from benchmarks.common import arguments, load, report
from vlm.model import DiffusionVLM


def run(model: DiffusionVLM, folder: Path, out: Path) -> None:
    """The job, from where it stands to its end."""
    torch.set_num_threads(1)
    job = Job(model, Request.extract(SCHEMA), expand([str(folder)]).files, PageOptions(workers=1))
    with Journal(out, job.versions) as journal:
        for _ in job.run(journal):
            pass


def size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def content(path: Path) -> list[tuple[str, str, str]]:
    """What must not depend on interruptions, row by row."""
    return [(row["id"], row["source"], json.dumps(row["data"])) for row in read_rows(path)]


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.set_defaults(pages=600, threads=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args: argparse.Namespace = parser.parse_args()
    rng = random.Random(args.seed)
    model = load(args)
    model.batch_size = 1  # small batches: rows come often, and kills fall between them
    fork = multiprocessing.get_context("fork")
    with TemporaryDirectory() as place:
        folder, out, whole = Path(place) / "pages", Path(place) / "rows.jsonl", Path(place) / "whole.jsonl"
        write_files(folder, args.pages)
        reference = fork.Process(target=run, args=(model, folder, whole))
        reference.start()
        reference.join()
        kills = torn = early = 0
        while kills < args.kills:
            process = fork.Process(target=run, args=(model, folder, out))
            before = size(out)
            process.start()
            wanted = rng.randrange(0, 6) * 600  # about as many bytes as that many rows
            until = time.monotonic() + 60
            while process.is_alive() and size(out) < before + wanted and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.3)
            if not process.is_alive():
                break
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            early += size(out) == before
            if kills % 3 == 0 and size(out) > 1000:
                os.truncate(out, size(out) - rng.randrange(1, 400))
                torn += 1
            if kills % 10 == 0:
                print(f"{kills} kills, {size(out)} bytes", file=sys.stderr, flush=True)
        at_the_last_kill = out.read_bytes().count(b"\n")
        last = fork.Process(target=run, args=(model, folder, out))
        last.start()
        last.join()
        rows, expected = content(out), content(whole)
    ids = [row[:2] for row in rows]
    report(args, model, {
        "pages": len(expected), "kills": kills, "of which before the first new row": early, "rows cut in the middle": torn,
        "rows when the last kill came": at_the_last_kill, "rows": len(rows), "repeated": len(ids) - len(set(ids)),
        "lost": len({e[:2] for e in expected} - set(ids)), "in the same order": ids == [e[:2] for e in expected],
        "rows with the same data as without interruption": sum(a == b for a, b in zip(rows, expected, strict=False)),
    })  # fmt: skip
    return 0 if sorted(ids) == sorted(e[:2] for e in expected) else 1


if __name__ == "__main__":
    sys.exit(main())
