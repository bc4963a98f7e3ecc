"""How long the examples of the browser front end take, without the browser: ``python -m benchmarks.web``.

Every example button is pressed once to warm up and then ``--repeat`` times. Wall time is what a visitor waits; CPU time is
what the machine works, and is the one to compare where other programs run beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from vlm import DiffusionVLM


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    from app.web.serve import check_installed

    check_installed()
    from app.web.build import build_demo

    demo = build_demo(DiffusionVLM.from_pretrained())
    print(f"{'example':<20} {'wall ms':>9} {'CPU ms':>9}   of {args.repeat} runs, {args.threads} threads, medians")
    for name, run in examples(demo):
        run()
        walls, cpus = [], []
        for _ in range(args.repeat):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            walls.append((time.perf_counter() - wall) * 1000)
            cpus.append((time.process_time() - cpu) * 1000)
        print(f"{name:<20} {statistics.median(walls):>9.0f} {statistics.median(cpus):>9.0f}")


def examples(demo: Any) -> list[tuple[str, Any]]:
    """Name and function of every example button: what it fills in, then the run behind it."""
    ids = {i: getattr(block, "elem_id", None) or "" for i, block in demo.blocks.items()}
    found = []
    for number, fill in demo.fns.items():
        button = next((ids[i] for i, event in fill.targets if i is not None and "-example-" in ids[i] and event == "click"), None)
        if button is None:
            continue
        run = next(fn for fn in demo.fns.values() if fn.trigger_after == number)

        def press(fill: Any = fill, run: Any = run) -> None:
            values = fill.fn()
            filled = dict(zip([c._id for c in fill.outputs], values if len(fill.outputs) > 1 else [values], strict=True))
            for _ in run.fn(*(filled.get(c._id, c.value) for c in run.inputs)):
                pass

        found.append((button, press))
    return found


if __name__ == "__main__":
    main()
