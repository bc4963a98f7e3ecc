"""Render shards of reader pages: ``python -m examples.pocket.render_reader --out runs/reader --pages 8000``."""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.pocket.reader_data import render_mosaic


def main() -> None:
    """Write ``shard-NNN.npz`` files of 500 pages each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--sparse", action="store_true", help="few pieces of text on much empty paper")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(args.workers) as pool:
        for start in range(0, args.pages, 500):
            seeds = [(args.seed + i, args.held_out, args.hard, args.sparse) for i in range(start, min(start + 500, args.pages))]
            rows = list(tqdm(pool.imap(_render, seeds, chunksize=8), total=len(seeds), disable=None))
            target = args.out / f"shard-{(args.seed + start) // 500:05d}.npz"
            partial = target.with_suffix(".tmp.npz")
            np.savez(partial, pixels=np.stack([r[0] for r in rows]), classes=np.stack([r[1] for r in rows]), boxes=np.stack([r[2] for r in rows]), blanks=np.stack([r[3] for r in rows]))
            partial.rename(target)


def _render(job: tuple[int, bool, bool, bool]) -> tuple[np.ndarray, ...]:
    return render_mosaic(*job)


if __name__ == "__main__":
    main()
