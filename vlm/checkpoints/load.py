"""From a folder of safetensors to a model: configuration, key map, checks, then the data, tensor by tensor."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from vlm.backbone.config import BackboneConfig
from vlm.checkpoints.keymap import KeyDiff, Weight, compare
from vlm.checkpoints.layout import Layout, ignored_in, layout_of, native_weights
from vlm.checkpoints.placement import DeviceMap, Placement, place
from vlm.checkpoints.shards import AGAIN, Shards, Stored, map_tensor, read_into
from vlm.errors import CheckpointError, OptionError, VLMError
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.registry import families, find_family

#: Progress is shown from this many bytes on.
SHOW_FROM = 1 << 30
#: Keys of config.json that count layers, and the most that is believed.
LAYERS = frozenset(("n_layers", "num_layers", "num_hidden_layers", "depth", "encoder_layers"))
MOST_LAYERS = 2000
M = TypeVar("M", bound=nn.Module)


@dataclass
class Loaded:
    """A loaded checkpoint. `generation` is its generation_config.json, {} without one; `notes` is what the user should know."""

    family: Family
    config: ModelConfig
    model: nn.Module
    folder: Path
    diff: KeyDiff
    generation: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class Inspected:
    """A checkpoint as far as its headers tell, nothing allocated. `weights` is the key map of its `layout`."""

    family: Family
    config: ModelConfig
    weights: list[Weight]
    shards: Shards
    diff: KeyDiff
    layout: Layout = "published"


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """An object in a JSON file; {} for an absent one that is not required.

    Raises:
        CheckpointError: no such file, not JSON, or no object.
    """
    if not path.is_file():
        if not required:
            return {}
        raise CheckpointError(f"there is no {path.name}", source=str(path.parent), remedy="name the folder of a checkpoint")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"is not valid JSON ({error})", source=str(path), remedy="fetch the checkpoint again") from error
    if not isinstance(data, dict):
        raise CheckpointError("does not hold an object", source=str(path), remedy="fetch the checkpoint again")
    return data


def inspect(
    path: str | Path, *, family: str | None = None, vocab_rows: int | None = None, head_rows: int | None = None, overrides: Mapping[str, Any] | None = None
) -> Inspected:
    """Read configuration and headers, and compare.

    Args:
        path: folder of the checkpoint. family: by name, when config.json does not tell.
        vocab_rows, head_rows: keep only so many rows of embedding and head (published builders cut to the tokenizer).
        overrides: keys laid over config.json (``mm_vision_tower`` for a base tower in a local folder).

    Raises:
        CheckpointError: no such folder, unknown family, unsupported configuration, damaged files.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", source=str(folder), remedy="name a local checkpoint folder")
    return inspect_shards(folder, Shards.open(folder), family=family, vocab_rows=vocab_rows, head_rows=head_rows, overrides=overrides)


def inspect_shards(
    folder: Path, shards: Shards, *, family: str | None = None, vocab_rows: int | None = None, head_rows: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Inspected:  # fmt: skip
    """Like :func:`inspect`, for weights that need not lie in the `folder` of the configuration."""
    data = {**read_json(folder / "config.json"), **(overrides or {})}
    source = str(folder / "config.json")
    if family is not None and family not in families():
        raise CheckpointError(f"there is no family {family!r}", source=source, remedy=f"known: {', '.join(sorted(families()))}")
    kind = families()[family] if family else find_family(data, source)
    _refuse_absurd(data, source)
    shards = shards if kind.gather is None else kind.gather(shards)
    layout = layout_of(shards)
    try:
        config = kind.configure(Settings(data, source))
        config = fit_vocabulary(config, kind.weights, shards.shapes, vocab_rows, head_rows, layout)
        weights = kind.weights(config)
        if layout == "native":
            weights = native_weights(weights, on_meta(lambda: kind.build(config)))
    except VLMError as error:
        if error.source:
            raise
        raise type(error)(error.message, source=source, remedy=error.remedy) from error
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"does not describe a model of the family {kind.name} ({type(error).__name__}: {error})"
        raise CheckpointError(what, source=source, remedy="fetch the config.json that belongs to the checkpoint") from error
    return Inspected(kind, config, weights, shards, compare(weights, shards.shapes, ignored_in(layout, kind.ignored)), layout)


def _refuse_absurd(data: Any, source: str) -> None:
    """A damaged number of layers must not make us count them."""
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if key in LAYERS and isinstance(value, int) and value > MOST_LAYERS:
            raise CheckpointError(f"{key} is {value}, which no model has", source=source, remedy="fetch the config.json that belongs to the checkpoint")
        _refuse_absurd(value, source)


def load(
    path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None, family: str | None = None,
    vocab_rows: int | None = None, head_rows: int | None = None, overrides: Mapping[str, Any] | None = None,
    device_map: DeviceMap | None = None, max_memory: Mapping[int | str, int | str] | None = None, offload_folder: str | Path | None = None,
    mapped: bool = True,
) -> Loaded:  # fmt: skip
    """Load a published checkpoint.

    Needs the memory of the model plus one tensor: the module is made without memory, shapes are checked against the
    headers, and every tensor is read (and converted) into its place.

    Args:
        path: folder with config.json and safetensors, in the family's layout or ours. dtype: of all floating-point
            parameters; None keeps what is stored.
        device: where parameters go; with a `device_map` what is not spread, by default the map's own choice.
        family, vocab_rows, head_rows, overrides: see :func:`inspect`.
        device_map, max_memory, offload_folder: see :func:`vlm.checkpoints.placement.place`.
        mapped: parameters for the CPU that lie in one piece and in the wanted type stay in their files and are read when they
            are used (``map_tensor``); False reads everything now, for files that will be changed in place.

    Raises:
        CheckpointError: naming file and key, before anything large is allocated.
    """
    if device_map is None and (max_memory is not None or offload_folder is not None):
        raise OptionError("max_memory and offload_folder are for a device_map", remedy="add device_map='auto'")
    found = inspect(path, family=family, vocab_rows=vocab_rows, head_rows=head_rows, overrides=overrides)
    generation = read_json(Path(path) / "generation_config.json", required=False)
    check(found.diff, found.shards, found.family.name)
    if found.family.open is not None:
        if device_map is not None:
            raise OptionError(f"{found.family.name} is not spread by a device_map", remedy="give a device")
        opened = found.family.open(Path(path), found.config, dtype, torch.device(device or "cpu"))
        return Loaded(found.family, found.config, opened.eval(), Path(path), found.diff, generation)
    model = on_meta(lambda: found.family.build(found.config))
    _check_cover(found, model.state_dict())
    _check_lacking(found)
    where = torch.device(device or "cpu")
    placement = None
    if device_map is not None:
        kind = dtype or common_dtype(found.shards)
        given = None if device is None else where
        placement = place(model, device_map, dtype=kind, device=given, max_memory=max_memory, offload_folder=offload_folder)
        where = placement.main
    notes: tuple[str, ...] = ()
    if found.diff.lacking and found.family.complete is not None:  # first: what is nowhere is found out before gigabytes are read
        notes = (found.family.complete(model, found.config, found.diff.lacking, dtype or common_dtype(found.shards), where),)
    fill(model, found.weights, found.shards, dtype, where, placement, mapped=mapped)
    if placement is not None:
        placement.attach(model)
        notes += (placement.summary(),) if placement.summary() else ()
    return Loaded(found.family, found.config, model.eval(), Path(path), found.diff, generation, notes)


def common_dtype(shards: Shards) -> torch.dtype:
    """The floating-point type of most of the data; float32 where there is none."""
    sizes: dict[torch.dtype, int] = {}
    for stored in shards.tensors.values():
        if stored.dtype.is_floating_point:
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.nbytes
    return max(sizes, key=lambda kind: sizes[kind], default=torch.float32)


class _Bare(TorchFunctionMode):
    """Random initialisation does nothing: on the meta device it is useless, and its first use imports half a compiler."""

    FILLS = frozenset((Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.random_))
    MAKERS = frozenset((torch.randn, torch.rand))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in self.FILLS or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        if func in self.MAKERS:
            func = torch.empty
        return func(*args, **named)


def on_meta(build: Callable[[], M]) -> M:
    """A module whose parameters have shapes and no memory."""
    with torch.device("meta"), _Bare():
        return build()


def fit_vocabulary(
    config: ModelConfig, weights: Callable[[ModelConfig], list[Weight]], shapes: Mapping[str, tuple[int, ...]],
    vocab_rows: int | None = None, head_rows: int | None = None, layout: Layout = "published",
) -> ModelConfig:  # fmt: skip
    """The configuration with as many rows of embedding and head as the shards hold, or as asked if that is fewer.

    Fine-tuned checkpoints often have resized embeddings and an old `vocab_size`; the shards are right.
    """
    elastic = {w.name: w.name if layout == "native" else w.parts[0].key for w in weights(config) if w.elastic}
    stored = {name: shapes[key][0] for name, key in elastic.items() if shapes.get(key)}
    backbone: BackboneConfig = config.backbone
    rows = stored.get("backbone.token_embed.weight", backbone.vocab_size)
    rows = min(rows, vocab_rows or rows)
    head = stored.get("backbone.head.weight", rows)
    head = min(head, head_rows or head)
    return replace(config, backbone=replace(backbone, vocab_size=rows, head_size=None if head == rows else head))


def check(diff: KeyDiff, shards: Shards, family: str) -> None:
    """Raise CheckpointError, naming file and key, unless a checkpoint fits its key map."""
    remedy = "use the config.json that belongs to it, or see `vlm info`"
    if diff.mismatched:
        key, (stored, wanted) = next(iter(diff.mismatched.items()))
        more = f" (and {len(diff.mismatched) - 1} more)" if len(diff.mismatched) > 1 else ""
        file = str(shards.tensors[key].file)
        raise CheckpointError(f"{key} has shape {stored}, the {family} of config.json wants {wanted}{more}", source=file, remedy=remedy)
    for keys, what in ((diff.missing, "missing"), (diff.unexpected, "unexpected")):
        if keys:
            named = f"{', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
            raise CheckpointError(f"{len(keys)} {what} keys: {named}", source=str(shards.folder), remedy=remedy)


def _check_lacking(found: Inspected) -> None:
    """Optional keys may be absent together, where the family knows what to do then; some of them are a damaged checkpoint."""
    lacking, optional = found.diff.lacking, sum(len(w.parts) for w in found.weights if not w.required)
    if lacking and (found.family.complete is None or len(lacking) < optional):
        named = f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
        raise CheckpointError(f"{len(lacking)} of {optional} keys that belong together are missing: {named}", source=str(found.shards.folder), remedy=AGAIN)


def _check_cover(found: Inspected, expected: Mapping[str, Tensor]) -> None:
    """A family whose key map and module do not agree is a bug of the family."""
    odd = sorted({w.name for w in found.weights} ^ set(expected))
    if odd:
        raise CheckpointError(f"the key map of family {found.family.name} and its module differ in {', '.join(odd[:5])}", source=str(found.shards.folder))


def fill(
    model: nn.Module, weights: Sequence[Weight], shards: Shards, dtype: torch.dtype | None, device: torch.device, placement: Placement | None = None, *,
    mapped: bool = False,
) -> None:  # fmt: skip
    """Give the parameters of a module on the meta device memory and read them; what the shards lack stays as it is.

    The shards are walked in file order, so each part of a fused parameter is read when its shard comes by.

    Args:
        dtype: of floating-point parameters; None as stored, of differing parts the wider.
        device: where they go; `placement` says it of each, and keeps on disk what belongs there. mapped: see :func:`load`.
    """
    expected = model.state_dict()
    parts = {part.key: (w, part) for w in weights for part in w.parts if part.key in shards.tensors}
    kinds: dict[str, torch.dtype] = {}
    missing: dict[str, int] = {}  # parts still to be read
    for key, (w, _) in parts.items():
        stored_kind = shards.tensors[key].dtype
        kind = dtype if dtype is not None and stored_kind.is_floating_point else stored_kind
        kinds[w.name] = torch.promote_types(kinds[w.name], kind) if w.name in kinds else kind
        missing[w.name] = missing.get(w.name, 0) + 1
    state: dict[str, Tensor] = {}
    size = sum(shards.tensors[key].nbytes for key in parts)
    with _Readers() as readers, tqdm(total=size, unit="B", unit_scale=True, desc="loading", disable=None if size >= SHOW_FROM else True) as bar:
        for stored in shards.in_file_order(parts):
            w, part = parts[stored.key]
            want, kind = expected[w.name], kinds[w.name]
            home = device if placement is None else placement.home(w.name)
            bar.update(stored.nbytes)
            if placement is not None and home is None and placement.refer(w, stored, want.shape, kind):
                state[w.name] = torch.empty(want.shape, dtype=kind, device="meta")
                continue
            if mapped and home is not None and home.type == "cpu" and (run := _in_place(w, shards, want, kind)) is not None:
                if w.name not in state:
                    state[w.name] = map_tensor(run, rows=want.shape[0] if w.elastic else None).view(want.shape)
                continue
            if w.name not in state:
                state[w.name] = torch.empty(want.shape, dtype=kind, device=home or "cpu")
            target, start = state[w.name], 0
            for before in w.parts[: w.parts.index(part)]:
                start += torch.Size(before.shape).numel()
            count = want.numel() if w.elastic else torch.Size(part.shape).numel()
            readers.start(stored, target.view(-1)[start : start + count])
            missing[w.name] -= 1
            if placement is not None and home is None and not missing[w.name]:
                readers.finish()
                placement.spill(w.name, state[w.name])
                state[w.name] = torch.empty(want.shape, dtype=kind, device="meta")
    model.load_state_dict(state, strict=False, assign=True)
    restore_buffers(model, device)


def _in_place(weight: Weight, shards: Shards, want: Tensor, dtype: torch.dtype) -> Stored | None:
    """The piece of a file that a parameter can be a view of; the parts of a fused one may lie one after the other (files are
    in order of names, and gates come just before ups)."""
    found = [shards.tensors.get(part.key) for part in weight.parts]
    if any(stored is None or stored.dtype != dtype for stored in found) or not want.numel():
        return None
    pieces = [stored for stored in found if stored is not None]
    joined = all(a.file == b.file and a.start + a.nbytes == b.start for a, b in pairwise(pieces))
    count = sum(math.prod(piece.shape) for piece in pieces)
    whole = count == want.numel() if len(pieces) > 1 else weight.elastic or count == want.numel()
    if not joined or not whole or pieces[0].start % dtype.itemsize:
        return None
    return pieces[0] if len(pieces) == 1 else replace(pieces[0], shape=(count,))


class _Readers:
    """Reads tensors into their places by a few threads; an error in one of them is raised here."""

    THREADS = 4

    def __enter__(self) -> _Readers:
        self.pool = ThreadPoolExecutor(min(self.THREADS, os.cpu_count() or 1), "loading")
        self.waiting: deque[Future[None]] = deque()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.finish()

    def start(self, stored: Stored, target: Tensor) -> None:
        """Read soon; at most a few tensors are under way."""
        self.waiting.append(self.pool.submit(read_into, stored, target))
        while len(self.waiting) > 2 * self.THREADS:
            self.waiting.popleft().result()

    def finish(self) -> None:
        """Everything is read."""
        while self.waiting:
            self.waiting.popleft().result()


def restore_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers that no checkpoint holds are still on the meta device: have their modules compute them (``fresh_buffer``)."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                fresh: Tensor = module.fresh_buffer(name)  # type: ignore[operator]
                module.register_buffer(name, fresh.to(device), persistent=False)
