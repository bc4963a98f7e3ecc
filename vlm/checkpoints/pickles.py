"""Pickled checkpoints (`.bin`, `.pt`, `.pth`, `.ckpt`): turned into safetensors by a process of their own, weights only.

A pickle is a program. This process never opens one: ``unpickle_process.py`` does, isolated, without this process's environment,
through torch's weights-only loader; what comes over is a safetensors file, whose header is checked like any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm.checkpoints import unpickle_process
from vlm.checkpoints.shards import INDEX, PICKLES, SINGLE, Shards, Stored, read_header
from vlm.errors import CheckpointError

PICKLE_INDEX, PICKLE_SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
#: What trainers leave beside a checkpoint and is no part of it.
_TRAINING = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states", "global_step")
#: Of the environment, what a process needs to start at all.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def has_safetensors(folder: Path) -> bool:
    """Whether a folder holds weights that need no conversion."""
    return (folder / INDEX).is_file() or (folder / SINGLE).is_file()


def pickles_in(folder: Path) -> tuple[Path, ...]:
    """The pickled weight files of a checkpoint folder: those the index names, ``pytorch_model.bin``, or the only one.

    Raises:
        CheckpointError: none, a missing one, or several without an index.
    """
    index = folder / PICKLE_INDEX
    if index.is_file():
        return _indexed(folder, index)
    if (folder / PICKLE_SINGLE).is_file():
        return (folder / PICKLE_SINGLE,)
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in PICKLES and not p.name.startswith(_TRAINING)]
    if not found:
        raise CheckpointError("holds neither safetensors nor pickled weights", source=str(folder), remedy="name the folder of a checkpoint")
    if len(found) > 1:
        named = ", ".join(p.name for p in found[:5])
        raise CheckpointError(f"holds several pickled files and no {PICKLE_INDEX} ({named})", source=str(folder), remedy="leave only the weights there")
    return (found[0],)


def _indexed(folder: Path, index: Path) -> tuple[Path, ...]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"is no index of weights ({error})", source=str(index), remedy="fetch the checkpoint again") from error
    for name in names:
        if Path(name).name != name or Path(name).suffix not in PICKLES:
            raise CheckpointError(f"names the shard {name!r}, which is no pickle file of this folder", source=str(index), remedy="fetch the checkpoint again")
        if not (folder / name).is_file():
            raise CheckpointError(f"shard {name} is missing", source=str(folder), remedy="fetch the checkpoint again")
    if not names:
        raise CheckpointError("names no shard", source=str(index), remedy="fetch the checkpoint again")
    return tuple(folder / name for name in names)


def unpack(folder: Path, pickles: Sequence[Path], into: Path) -> Shards:
    """The pickles of a checkpoint as safetensors in the folder `into`; files that are there already are taken as they are.

    Raises:
        CheckpointError: naming the file, and the key where one is to blame.
    """
    into.mkdir(parents=True, exist_ok=True)
    found: dict[str, Stored] = {}
    for path in tqdm(pickles, desc="unpickling", unit="file", disable=None if len(pickles) > 1 else True):
        target = into / f"{path.name}.safetensors"
        if not target.is_file():
            _run(path, target)
        for stored in read_header(target):
            if stored.key in found:
                raise CheckpointError(f"holds {stored.key}, as {Path(found[stored.key].file).stem} does", source=str(path), remedy="fetch it again")
            found[stored.key] = stored
    return Shards(folder, found)


def _run(path: Path, target: Path) -> None:
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    command = [sys.executable, "-I", unpickle_process.__file__, str(path.resolve()), str(target.resolve())]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    report = _report(done.stdout)
    if done.returncode == 0 and "tensors" in report:
        return
    if "error" in report:
        raise CheckpointError(str(report["error"]), source=str(path), remedy="use a checkpoint in safetensors, or one that holds nothing but tensors")
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise CheckpointError(f"the process that read it died ({how}: {last})", source=str(path), remedy="is there enough memory for one file of the checkpoint?")


def _report(text: str) -> dict[str, Any]:
    try:
        report = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return report if isinstance(report, dict) else {}
