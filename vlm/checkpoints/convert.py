"""Rewriting checkpoints: between the family's layout and ours, from pickles to safetensors, bit for bit.

A file is written under a temporary name and renamed when it is whole, so that a conversion that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from vlm.checkpoints.layout import Layout, Output, outputs
from vlm.checkpoints.load import Inspected, check, inspect, inspect_shards, on_meta, read_json
from vlm.checkpoints.pickles import has_safetensors, pickles_in, unpack
from vlm.checkpoints.shards import Shards
from vlm.checkpoints.write import SHARD_BYTES, copy_companions, file_names, grouped, write_index
from vlm.errors import CheckpointError, OptionError, VLMError

#: What is put before every key by wrappers of modules (data parallel, torch.compile, PEFT).
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
#: Kept in the target until it is whole.
_STATE, _UNPACKED = "convert.partial.json", "convert.unpacked"


@dataclass(frozen=True)
class Converted:
    """What a conversion did. `kept`: files that were whole from an earlier run; `stripped`: what was taken off every key."""

    family: str
    source: Layout
    target: Layout
    files: tuple[Path, ...]
    tensors: int
    nbytes: int
    pickles: tuple[str, ...] = ()
    stripped: str = ""
    kept: tuple[str, ...] = field(default=(), compare=False)


def convert(
    source: str | Path, target: str | Path, *, to: Layout = "native", dtype: torch.dtype | None = None, family: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Converted:  # fmt: skip
    """Write a checkpoint in another layout.

    Args:
        source: folder of a checkpoint: safetensors in either layout, or pickles, which a process of its own reads (weights only).
        target: folder, made if absent; it must be empty, or hold an unfinished run of the same conversion, which goes on.
        to: 'native', our layout, or 'published', the family's own.
        dtype: of floating-point tensors; None keeps them bit for bit. family: by name, when config.json does not tell.
        shard_bytes: a file holds at most so many bytes, or one tensor; that much memory is needed.

    Raises:
        CheckpointError: a damaged or foreign checkpoint. OptionError: the target is in use, an unknown layout.
    """
    if to not in get_args(Layout):
        raise OptionError(f"there is no layout {to!r}", remedy=f"use {' or '.join(get_args(Layout))}")
    if shard_bytes < 1:
        raise OptionError(f"shard_bytes is {shard_bytes}", remedy="use 1 or more")
    folder, out = Path(source), Path(target)
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", source=str(folder), remedy="name a local checkpoint folder")
    read_json(folder / "config.json")  # before anything is written
    pickles = () if has_safetensors(folder) else pickles_in(folder)
    request = {
        "source": str(folder.resolve()), "to": to, "dtype": str(dtype), "family": family, "shard_bytes": shard_bytes,
        "files": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(folder.iterdir()) if file.is_file()},
    }  # fmt: skip
    made, kept = not out.exists(), _begin(out, request)
    try:
        done = _run(folder, out, pickles, to, dtype, family, shard_bytes, kept)
    except VLMError:
        _clear(out, made)
        raise
    shutil.rmtree(out / _UNPACKED, ignore_errors=True)
    (out / _STATE).unlink()
    return done


def _run(
    folder: Path, out: Path, pickles: Sequence[Path], to: Layout, dtype: torch.dtype | None, family: str | None, shard_bytes: int, kept: set[str]
) -> Converted:
    shards = unpack(folder, pickles, out / _UNPACKED) if pickles else Shards.open(folder)
    found, stripped = _unwrapped(folder, shards, family)
    check(found.diff, found.shards, found.family.name)
    if found.family.open is not None and to == "native":
        raise OptionError(f"{found.family.name} has its published layout only", source=str(folder), remedy="use to='published'")
    module = on_meta(lambda: found.family.build(found.config))
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    planned = outputs(found.family.weights(found.config), shapes, found.shards, to, dtype)
    files = _write(planned, out, shard_bytes, kept)
    copy_companions(folder, out)
    check(inspect(out, family=family).diff, found.shards, found.family.name)  # the headers of what was written
    size = sum(output.nbytes for output in planned)
    names = tuple(path.name for path in pickles)
    return Converted(found.family.name, found.layout, to, tuple(files), len(planned), size, names, stripped, tuple(sorted(kept)))


def _clear(out: Path, made: bool) -> None:
    """Take back what a refused conversion has begun, unless some of it is done."""
    if any(out.glob("*.safetensors")):
        return
    shutil.rmtree(out / _UNPACKED, ignore_errors=True)
    (out / _STATE).unlink(missing_ok=True)
    if made:
        out.rmdir()


def _begin(out: Path, request: dict[str, Any]) -> set[str]:
    """Make or take up the target; names of the files that an earlier run of the same request has finished."""
    if out.exists() and not out.is_dir():
        raise OptionError("is a file", source=str(out), remedy="name a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _STATE).is_file() or read_json(out / _STATE) != request:
            raise OptionError("is not empty, and holds no unfinished run of this conversion", source=str(out), remedy="name another folder, or clear it")
        return {file.name for file in out.glob("*.safetensors")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _STATE).write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot be written ({error.strerror or error})", source=str(out), remedy="name another folder") from error
    return set()


def _unwrapped(folder: Path, shards: Shards, family: str | None) -> tuple[Inspected, str]:
    """The checkpoint without what a wrapper put before all of its keys, where it does not fit as it is."""
    found, stripped = inspect_shards(folder, shards, family=family), ""
    while not found.diff.fits:
        prefix = next((p for p in WRAPPERS if found.shards.tensors and all(key.startswith(p) for key in found.shards.tensors)), None)
        if prefix is None:
            break
        stripped += prefix
        found = inspect_shards(folder, found.shards.without_prefix(prefix), family=family)
    return found, stripped


def _write(planned: Sequence[Output], out: Path, shard_bytes: int, kept: set[str]) -> list[Path]:
    groups = grouped([output.nbytes for output in planned], shard_bytes)
    names = file_names(len(groups))
    size = sum(output.nbytes for output in planned)
    with tqdm(total=size, unit="B", unit_scale=True, desc="writing", disable=None if size >= 1 << 30 else True) as bar:
        for name, group in zip(names, groups, strict=True):
            if name not in kept:
                partial = out / f"{name}.partial"
                save_file({planned[i].key: planned[i].read() for i in group}, partial, metadata={"format": "pt"})
                partial.rename(out / name)
            bar.update(sum(planned[i].nbytes for i in group))
    write_index(out, names, [[planned[i].key for i in group] for group in groups], size)
    return [out / name for name in names]
