"""Safetensors on disk: one file or many behind an index, their headers checked before a byte of data is read.

Tensors are read straight into the memory of the parameter they belong to, so that loading needs the model plus one
tensor, never a second copy of a shard.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vlm.errors import CheckpointError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
#: Longest header the format allows.
MAX_HEADER = 100_000_000
DTYPES = MappingProxyType(
    {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
        "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }
)  # fmt: skip
AGAIN = "fetch the checkpoint again"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where it lies, `start` bytes into the file."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """All tensors of a checkpoint by key, none of them read yet.

    Attributes:
        folder: of the checkpoint; tensors: key -> Stored.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Stored]) -> None:
        self.folder, self.tensors = folder, dict(tensors)

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """The safetensors of a folder: those the index names, or the single file.

        Raises:
            CheckpointError: no weights, only pickle files, a missing or damaged shard, a key in no shard.
        """
        index = folder / INDEX
        if index.is_file():
            return cls._indexed(folder, index)
        if (folder / SINGLE).is_file():
            return cls(folder, {s.key: s for s in read_header(folder / SINGLE)})
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES) if folder.is_dir() else []
        if pickles:
            raise CheckpointError(
                f"holds only pickle files ({', '.join(pickles[:3])}), which can run code when they are opened",
                source=str(folder), remedy="fetch the safetensors of the checkpoint, or run `vlm convert` on the folder",
            )  # fmt: skip
        raise CheckpointError(f"there is neither {SINGLE} nor {INDEX}", source=str(folder), remedy="name the folder of a checkpoint")

    @classmethod
    def _indexed(cls, folder: Path, index: Path) -> Shards:
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = {str(key): str(name) for key, name in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"is no index of safetensors ({error})", source=str(index), remedy=AGAIN) from error
        found: dict[str, Stored] = {}
        for name in sorted(set(names.values())):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"names the shard {name!r}, which is no safetensors file of this folder", source=str(index), remedy=AGAIN)
            if not (folder / name).is_file():
                keys = [key for key, file in names.items() if file == name]
                raise CheckpointError(f"shard {name} is missing ({len(keys)} tensors, first {keys[0]})", source=str(folder), remedy=AGAIN)
            found.update({s.key: s for s in read_header(folder / name) if names.get(s.key, name) == name})
        lost = sorted(set(names) - set(found))
        if lost:
            raise CheckpointError(f"{names[lost[0]]} does not hold {lost[0]}, which the index places there", source=str(index), remedy=AGAIN)
        return cls(folder, found)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape as stored."""
        return {key: stored.shape for key, stored in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Size of all data."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def in_file_order(self, keys: Mapping[str, Any]) -> Iterator[Stored]:
        """The named tensors, file by file and front to back."""
        return iter(sorted((self.tensors[key] for key in keys), key=lambda s: (str(s.file), s.start)))

    def without_prefix(self, prefix: str) -> Shards:
        """The same tensors, `prefix` taken off every key."""
        return Shards(self.folder, {key[len(prefix) :]: replace(stored, key=key[len(prefix) :]) for key, stored in self.tensors.items()})


def read_header(path: Path) -> list[Stored]:
    """What a safetensors file holds, checked against the size of the file.

    Raises:
        CheckpointError: no safetensors file, truncated, unknown dtype, tensors that overlap or leave gaps.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
            length = int.from_bytes(head[:8], "little")
            _refuse_foreign(path, head, size, length)
            file.seek(8)
            header = json.loads(file.read(length), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read as safetensors ({error})", source=str(path), remedy=AGAIN) from error
    if not isinstance(header, dict):
        raise CheckpointError("the header is no JSON object", source=str(path), remedy=AGAIN)
    header.pop("__metadata__", None)
    stored = [_entry(path, key, entry, 8 + length) for key, entry in header.items()]
    end = 8 + length
    for item in sorted(stored, key=lambda s: (s.start, s.nbytes)):
        if item.start != end:
            raise CheckpointError(f"the data of {item.key} do not follow the tensor before it", source=str(path), remedy=AGAIN)
        end = item.start + item.nbytes
        if end > size:
            raise CheckpointError(f"ends {end - size} bytes before {item.key} does: the file is truncated", source=str(path), remedy=AGAIN)
    return stored


def _refuse_foreign(path: Path, head: bytes, size: int, length: int) -> None:
    if len(head) == 9 and head[8:] == b"{" and length <= MAX_HEADER:
        if 8 + length > size:
            raise CheckpointError("ends inside its header: the file is truncated", source=str(path), remedy=AGAIN)
        return
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise CheckpointError("is a pickle file, which can run code when it is opened", source=str(path), remedy="fetch the safetensors of the checkpoint")
    if head.startswith(b"version "):
        raise CheckpointError("is a pointer of git-lfs, not the file itself", source=str(path), remedy="run `git lfs pull` in the checkpoint folder")
    raise CheckpointError("is no safetensors file", source=str(path), remedy=AGAIN)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key that is there twice would hide a tensor."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"{numbers!r} is no list of sizes")
    return tuple(numbers)


def _entry(path: Path, key: str, entry: Any, base: int) -> Stored:
    try:
        dtype, shape = DTYPES[entry["dtype"]], _whole(entry["shape"])
        start, end = _whole(entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the entry of {key} makes no sense ({error})", source=str(path), remedy=AGAIN) from error
    stored = Stored(path, key, dtype, shape, base + start)
    if stored.nbytes != end - start:
        raise CheckpointError(f"{key} of shape {shape} does not fill bytes {start} to {end}", source=str(path), remedy=AGAIN)
    return stored


def read_into(stored: Stored, target: Tensor, *, first: int = 0) -> None:
    """Read a tensor, or a run of its elements, into contiguous memory.

    Args:
        target: as many elements as are wanted, of any dtype and device; converted on the way if it differs from what is stored.
        first: element of the stored tensor, in row-major order, to begin with.

    Raises:
        CheckpointError: the file ends too early, or cannot be read.
    """
    if target.device.type != "cpu" or target.dtype != stored.dtype or not target.is_contiguous():
        target.copy_(_view(stored, first, target.numel()).view(target.shape))  # memory for what is stored would cost more than the conversion
    elif target.numel():
        view = memoryview(target.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        try:
            with stored.file.open("rb") as file:
                file.seek(stored.start + first * stored.dtype.itemsize)
                count = file.readinto(view)
        except OSError as error:
            raise CheckpointError(f"{stored.key} cannot be read ({error.strerror or error})", source=str(stored.file), remedy=AGAIN) from error
        if count != len(view):
            raise CheckpointError(f"ends inside {stored.key}: the file is truncated", source=str(stored.file), remedy=AGAIN)


def map_tensor(stored: Stored, *, rows: int | None = None) -> Tensor:
    """The tensor (or its first `rows` rows) as a view of its file: nothing is read until it is used, and nothing is written back.

    The file must not be changed in place while the tensor lives; deleting or replacing it is harmless.

    Raises:
        CheckpointError: the file cannot be opened, or ends too early.
    """
    shape = stored.shape if rows is None else (rows, *stored.shape[1:])
    return _view(stored, 0, math.prod(shape)).view(shape)


def _view(stored: Stored, first: int, count: int) -> Tensor:
    """[count] elements of a stored tensor from `first` on, as a private view of the file."""
    if not count:
        return torch.empty(0, dtype=stored.dtype)
    start = stored.start + first * stored.dtype.itemsize
    begin = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        with stored.file.open("rb") as file:
            view = mmap.mmap(file.fileno(), start - begin + count * stored.dtype.itemsize, access=mmap.ACCESS_COPY, offset=begin)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{stored.key} cannot be read ({error})", source=str(stored.file), remedy=AGAIN) from error
    return torch.frombuffer(view, dtype=stored.dtype, count=count, offset=start - begin)


def read_tensor(stored: Stored) -> Tensor:
    """The tensor as stored, on the CPU."""
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    read_into(stored, tensor)
    return tensor
