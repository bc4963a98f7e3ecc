"""Many pages in one run: the memory of the process over time, and what share of the work is decoding and writing.

``python -m benchmarks.batch_memory --pages 10000 --work out/pages --plot rss.svg``

Pages are small receipts in PNG, JPEG, TIFF, PDF, zip and tar files (:mod:`benchmarks.batch_pages`), made first if they are not
there. The resident memory of the process and, apart, of its decoding processes is noted at every hundredth row. CPU time of the
decoders is compared with that of the whole, so that the share does not depend on how busy the machine is otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from app.batch import Job
from app.decoders import Decoder
from app.inputs import expand
from app.journal import Journal
from app.pages import PageOptions
from app.requests import Request
from benchmarks.batch_pages import SCHEMA, write_files
from benchmarks.common import arguments, load, report

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def rss(process: int) -> float:
    """Resident memory in MiB; 0 of a process that is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE / 2**20
    except OSError:
        return 0.0


def cpu_seconds(process: int) -> float:
    """CPU time of a process, user and system; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    except OSError:
        return 0.0


def plot(points: list[tuple[int, float]], others: list[tuple[int, float]], path: Path) -> None:
    """Memory over pages as SVG."""
    width, height, left, bottom = 720, 300, 60, 40
    most = max(y for _, y in points) * 1.15
    last = points[-1][0]

    def line(series: list[tuple[int, float]], color: str, name: str, at: int) -> str:
        dots = " ".join(f"{left + (width - left - 10) * x / last:.1f},{height - bottom - (height - bottom - 10) * y / most:.1f}" for x, y in series)
        return f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{dots}"/><text x="{width - 250}" y="{at}" fill="{color}">{name}</text>'

    grid = "".join(
        f'<text x="4" y="{height - bottom - (height - bottom - 10) * i / 4 + 4:.0f}">{most * i / 4:.0f} MiB</text>'
        f'<text x="{left + (width - left - 50) * i / 4:.0f}" y="{height - 18}">{last * i // 4}</text>'
        for i in range(5)
    )
    body = line(points, "#2f6fde", "the process", 24) + line(others, "#b36b00", "its decoders together", 42)
    title = f'<text x="{width / 2 - 20:.0f}" y="{height - 2}">pages</text>'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">{grid}{body}{title}</svg>\n'
    path.write_text(text, encoding="utf-8")


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.set_defaults(pages=10000, threads=1)
    parser.add_argument("--work", type=Path, default=Path("out/batch_memory"), help="folder for pages and rows")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--plot", type=Path, help="write the curve as SVG")
    args: argparse.Namespace = parser.parse_args()
    folder = args.work / f"pages_{args.pages}"
    if not folder.exists():
        write_files(folder, args.pages)
    model = load(args)
    model.batch_size = args.batch_size
    job = Job(model, Request.extract(SCHEMA), expand([str(folder)]).files, PageOptions())
    points, others, spent = [], [], dict[int, float]()
    started, before = time.perf_counter(), cpu_seconds(os.getpid())
    with Journal(args.work / "rows.jsonl", job.versions, overwrite=True) as journal:
        for count, _ in enumerate(job.run(journal), 1):
            if count % 100 == 0:
                busy = [d._process for d in job.pages._decoders if d._process is not None] if job.pages else []
                decoders = {process.pid for process in (*busy, *Decoder._idle)}
                spent |= {process: cpu_seconds(process) for process in decoders}
                points.append((count, rss(os.getpid())))
                others.append((count, sum(map(rss, decoders))))
                seconds = time.perf_counter() - started
                print(f"{count} pages, {seconds:.0f} s, {points[-1][1]:.0f} MiB, decoders {others[-1][1]:.0f} MiB", file=sys.stderr, flush=True)
    decoding = sum(spent.values())
    own = cpu_seconds(os.getpid()) - before
    seconds = time.perf_counter() - started
    sources = [json.loads(line)["id"] for line in (args.work / "rows.jsonl").read_text().splitlines()]
    if args.plot:
        plot(points, others, args.plot)
    early = [y for x, y in points if x > args.pages / 10]
    half = len(early) // 2
    report(args, model, {
        "pages in": job.summary.pages, "rows": len(sources), "different ids": len(set(sources)), "statuses": dict(job.summary.statuses),
        "pages/s": len(sources) / seconds, "CPU ms per page, model and rows": own / len(sources) * 1000,
        "CPU ms per page, decoders": decoding / len(sources) * 1000, "share of decoders in CPU time": decoding / (own + decoding),
        "share of the wall time waited for pages": job.summary.waited / seconds, "share of the wall time spent on writing": job.summary.wrote / seconds,
        "MiB after a tenth": early[0], "MiB at the end": points[-1][1], "MiB at most": max(y for _, y in points),
        "mean MiB, second half / first half": (sum(early[half:]) / len(early[half:])) / (sum(early[:half]) / max(1, half)),
        "MiB of the decoders at the end": others[-1][1], "points": points,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
