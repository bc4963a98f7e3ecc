"""Start-up: time of ``import vlm``, of a cold ``vlm caption``, and peak memory of the demo beside that of torch.

``python -m benchmarks.startup``

Every figure is the median of fresh processes. Files are in the page cache after the first.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.common import arguments, median, report

ROOT = Path(__file__).parent.parent
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def seconds(command: list[str], repeat: int) -> float:
    """Median wall seconds of a command in fresh processes.

    Raises:
        CalledProcessError: the command failed.
    """
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return median(times)


def peak(command: list[str]) -> float:
    """Peak resident memory in MiB of a command and the processes it waits for (of the largest one)."""
    done = subprocess.run([sys.executable, "-c", _PEAK, *command], check=True, cwd=ROOT, capture_output=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout.split()[-1]) * unit / 2**20


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="processes for each time")
    args = parser.parse_args()
    python = [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.new("RGB", (320, 240), (230, 230, 230)).save(picture)
        caption = [*python, "-m", "app", "caption", str(picture)] + (["--model", str(args.model)] if args.model else [])
        figures = {
            "s, python alone": seconds([*python, "-c", "pass"], args.repeat),
            "s, import vlm": seconds([*python, "-c", "import vlm"], args.repeat),
            "s, from vlm import DiffusionVLM": seconds([*python, "-c", "from vlm import DiffusionVLM"], args.repeat),
            "s, import torch": seconds([*python, "-c", "import torch"], args.repeat),
            "s, vlm caption, cold process": seconds(caption, args.repeat),
        }
        figures["MiB peak, import torch"] = peak([*python, "-c", "import torch"])
        figures["MiB peak, vlm caption"] = peak(caption)
    if not args.model:
        figures["MiB peak, demo"] = peak([*python, "-m", "examples.demo"])
        figures["MiB peak, demo besides torch"] = figures["MiB peak, demo"] - figures["MiB peak, import torch"]
    report(args, None, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
