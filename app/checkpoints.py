"""``vlm info`` and ``vlm convert``: what a checkpoint is, and its other layout."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from app.commands import load_model, log
from vlm.errors import OptionError


def info(args: argparse.Namespace) -> int:
    """Describe a model and the environment; exit code 1 if a checkpoint's keys do not fit its configuration."""
    import platform

    import torch

    from vlm.checkpoint import is_pocket
    from vlm.decoding.presets import PRESETS
    from vlm.version import VERSION

    if args.checkpoint is not None and args.model is not None:
        raise OptionError("two checkpoints are named", source=f"{args.checkpoint}, --model {args.model}", remedy="name one")
    args.model = args.checkpoint or args.model
    published = args.model is not None and not is_pocket(args.model)
    model = _published(args.model) if published else load_model(args).info()
    details = {
        "version": VERSION, "python": platform.python_version(), "torch": torch.__version__, "threads": args.threads or torch.get_num_threads(),
        "presets": list(PRESETS), "model": model,
    }  # fmt: skip
    if args.json:
        print(json.dumps(details, indent=2))
    else:
        for line in _page(model) if published else [line for key, value in details.items() for line in _lines(key, value)]:
            print(line)
    return 0 if model.get("fits", True) else 1


def _published(name: str) -> dict[str, Any]:
    """What the headers of a published checkpoint say; no weight is read."""
    from vlm.checkpoints.describe import diff_lines, summary
    from vlm.checkpoints.hub import find_headers
    from vlm.checkpoints.load import inspect_shards
    from vlm.published import variant_overrides

    folder, shards = find_headers(name)
    found = inspect_shards(folder, shards, overrides=variant_overrides(folder, name, None))
    return {**summary(found), "name": name, "folder": str(folder), "diff": diff_lines(found.diff)}


def _page(model: dict[str, Any]) -> list[str]:
    """The description for people."""
    memory, limits, parts = model["memory"], model["limits"], model["parameters"]
    each = ", ".join(f"{part} {_count(n)}" for part, n in parts.items() if part != "total")
    stored = ", ".join(kind if len(model["stored"]) == 1 else f"{_count(n)} in {kind}" for kind, n in model["stored"].items())
    cache, full = memory["kv_cache_per_token"]["bfloat16"], memory["kv_cache_full_context"]["bfloat16"]
    rows = [
        ("checkpoint", model["name"]),
        ("family", f"{model['family']}, in {'its published layout' if model['layout'] == 'published' else 'our layout'}"),
        ("parameters", f"{_count(parts['total'])} ({each})"),
        ("stored", f"{model['files']} {'file' if model['files'] == 1 else 'files'}, {model['tensors']} tensors, {_bytes(model['bytes'])}, {stored}"),
        ("weights in memory", ", ".join(f"{kind} {_bytes(n)}" for kind, n in memory["weights"].items() if kind != "stored")),
        ("prefix cache", f"{_bytes(cache)} a token, {_bytes(full)} at full context (bfloat16)"),
        ("context", f"{limits['context']} positions, prompt, pictures and answer together"),
        ("sizes", f"{limits['layers']} layers, width {limits['hidden_size']}, {limits['heads']} heads over {limits['kv_heads']}, {limits['vocab_size']} ids"),
        ("attention", model["attention"] + (f", blocks of {model['block_length']}" if model["block_length"] else "")),
        ("presets", ", ".join([f"{model['default_preset']} (default)", *(p for p in model["presets"] if p != model["default_preset"])])),
        *([("variants", ", ".join(model["variants"]))] if model["variants"] else []),
        ("proven", model["proven"]),
        ("keys", ("all fit" if not model["diff"] else "fit, but for:" if model["fits"] else "do not fit:")),
    ]
    return [f"{name:<18} {value}" for name, value in rows] + [f"  {line}" for line in model["diff"]]


def _count(n: int) -> str:
    return next((f"{n / size:.2f} {name}" for size, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")) if n >= size), str(n))


def _bytes(n: int) -> str:
    return next((f"{n / size:.2f} {name}" for size, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if n >= size), f"{n} B")


def _lines(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [line for k, v in value.items() for line in _lines(f"{key}.{k}", v)]
    return [f"{key:<28} {', '.join(map(str, value)) if isinstance(value, list) else value}"]


def convert(args: argparse.Namespace) -> int:
    """Write a checkpoint in another layout."""
    from dataclasses import asdict

    from vlm.checkpoint import is_pocket
    from vlm.checkpoints.convert import convert as run
    from vlm.checkpoints.hub import find_weights
    from vlm.published import DTYPES

    if is_pocket(args.source):
        raise OptionError("is a pocket checkpoint, which has one layout only", source=args.source, remedy="name a published checkpoint")
    if args.shard_gb <= 0:
        raise OptionError(f"--shard-gb is {args.shard_gb}", remedy="use a positive number")
    start = time.perf_counter()
    dtype = None if args.dtype is None else DTYPES[args.dtype]
    done = run(find_weights(args.source), args.target, to=args.to, dtype=dtype, family=args.family, shard_bytes=int(args.shard_gb * 10**9))
    if args.json:
        print(json.dumps({**asdict(done), "files": [str(file) for file in done.files], "seconds": time.perf_counter() - start}))
    elif not args.quiet:
        origin = f"{len(done.pickles)} pickled files" if done.pickles else f"{done.source} layout"
        log(f"{done.family}: {origin} -> {done.target} layout, {done.tensors} tensors, {_bytes(done.nbytes)} in {len(done.files)} files in {args.target}")
        if done.stripped:
            log(f"taken off every key: {done.stripped}")
        if done.kept:
            log(f"{len(done.kept)} files were whole already")
    return 0
