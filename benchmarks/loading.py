"""Loading a checkpoint: seconds and peak memory, ours against transformers', on the same weight files.

``python -m benchmarks.loading --gb 1``

A random Qwen2 of the wanted size is written once, in bf16 shards. Dream has the same layout, so that its family here and
``AutoModelForCausalLM`` there read the very same files. Every load is a process of its own, the two kinds take turns, and
time ends when every page of every parameter has been read once (both map files lazily where they can). Files are in the page cache
for both. Processor time is what a busy machine does not disturb much.
``--native`` takes ours from our layout (``vlm convert``), which needs no joining of queries, keys and values, gate and up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, median, report

ROOT = Path(__file__).parent.parent
SIZES = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 4096, "vocab_size": 32000}
_COMMON = """
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[3]))
dtype = None if sys.argv[2] == "stored" else getattr(torch, sys.argv[2])
def peak(): return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
def measured(load, warm):
    warm()
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    model = load()
    returned = time.perf_counter() - start
    for p in model.parameters(): p.view(torch.uint8).view(-1)[::512].sum()
    times = {"s": time.perf_counter() - start, "cpu": time.process_time() - cpu, "returned": returned}
    print(json.dumps({**times, "bytes": peak() - before, "dtype": str(next(model.parameters()).dtype)}))
"""
#: Each child makes the module once without memory first, so that imports and kernels' start-up are not counted.
OURS = """
from vlm.checkpoints.load import inspect, load, on_meta
def warm():
    found = inspect(sys.argv[1]); on_meta(lambda: found.family.build(found.config))
measured(lambda: load(sys.argv[1], dtype=dtype).model, warm)
"""
THEIRS = """
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging
logging.disable_progress_bar(); logging.set_verbosity_error()
def warm():
    with torch.device("meta"): AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
measured(lambda: AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype or "auto"), warm)
"""


def write(folder: Path, gigabytes: float) -> int:
    """Two folders, `theirs` and `ours`, over the same shards; returns the bytes of the weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    layer = SIZES["hidden_size"] * (SIZES["hidden_size"] * 2.5 + 3 * SIZES["intermediate_size"])
    rest = 2 * SIZES["vocab_size"] * SIZES["hidden_size"]
    layers = max(1, round((gigabytes * 1e9 / 2 - rest) / layer))
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_hidden_layers=layers, tie_word_embeddings=False)).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    model.save_pretrained(folder / "theirs", max_shard_size=f"{max(50, int(gigabytes * 250))}MB")
    ours = folder / "ours"
    ours.mkdir()
    for file in (folder / "theirs").glob("model*"):
        (ours / file.name).symlink_to(file)
    config = {
        **SIZES, "num_hidden_layers": layers, "model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    (ours / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return sum(p.numel() * 2 for p in model.parameters())


def run(code: str, folder: Path, dtype: str, threads: int) -> dict[str, Any]:
    """One load in a fresh process."""
    command = [sys.executable, "-c", _COMMON + code, str(folder), dtype, str(threads)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the checkpoint in bf16 (default 1)")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of processes for each row")
    parser.add_argument("--native", action="store_true", help="ours from our own layout instead of the published one")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write(folder, args.gb)
        first, second = ("ours", OURS, folder / "ours"), ("transformers", THEIRS, folder / "theirs")
        if args.native:
            from vlm.checkpoints.convert import convert

            convert(folder / "ours", folder / "native")
            first = ("ours, native", OURS, folder / "native")
        figures["GB of weights, bf16"] = size / 1e9
        for dtype, factor in (("stored", 1), ("float32", 2)):
            pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
            for turn in range(args.repeat):
                order = (first, second) if turn % 2 == 0 else (second, first)
                taken = {label: run(code, where, dtype, args.threads) for label, code, where in order}
                pairs.append((taken[first[0]], taken[second[0]]))
                print(f"{dtype}: {pairs[-1]}", file=sys.stderr)
            for i, (label, _, _) in enumerate((first, second)):
                figures[f"{dtype}: s, {label}"] = median([pair[i]["s"] for pair in pairs])
                figures[f"{dtype}: s of processor, {label}"] = median([pair[i]["cpu"] for pair in pairs])
                figures[f"{dtype}: s until it returned, {label}"] = median([pair[i]["returned"] for pair in pairs])
                figures[f"{dtype}: peak added / model, {label}"] = median([pair[i]["bytes"] / (size * factor) for pair in pairs])
            figures[f"{dtype}: time, {first[0]} / {second[0]}, median of pairs"] = median([a["s"] / b["s"] for a, b in pairs])
            figures[f"{dtype}: processor time, {first[0]} / {second[0]}, median of pairs"] = median([a["cpu"] / b["cpu"] for a, b in pairs])
            figures[f"{dtype}: peak, {first[0]} / {second[0]}, median of pairs"] = median([a["bytes"] / b["bytes"] for a, b in pairs])
    report(args, None, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
