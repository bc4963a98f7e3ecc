"""From a folder of safetensors to a model: configuration, key map, checks, then the data, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from vlm.backbone.config import BackboneConfig
from vlm.checkpoints.keymap import KeyDiff, Weight, compare
from vlm.checkpoints.shards import Shards, read_into
from vlm.errors import CheckpointError
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.registry import families, find_family

#: Progress is shown from this many bytes on.
SHOW_FROM = 1 << 30
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
    """A checkpoint as far as its headers tell, nothing allocated."""

    family: Family
    config: ModelConfig
    weights: list[Weight]
    shards: Shards
    diff: KeyDiff


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
    except (ValueError, OSError) as error:
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
    data = {**read_json(folder / "config.json"), **(overrides or {})}
    source = str(folder / "config.json")
    if family is not None and family not in families():
        raise CheckpointError(f"there is no family {family!r}", source=source, remedy=f"known: {', '.join(sorted(families()))}")
    kind = families()[family] if family else find_family(data, source)
    shards = Shards.open(folder)
    shards = shards if kind.gather is None else kind.gather(shards)
    config = kind.configure(Settings(data, source))
    config = fit_vocabulary(config, kind.weights, shards.shapes, vocab_rows, head_rows)
    weights = kind.weights(config)
    return Inspected(kind, config, weights, shards, compare(weights, shards.shapes, kind.ignored))


def load(
    path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", family: str | None = None,
    vocab_rows: int | None = None, head_rows: int | None = None, overrides: Mapping[str, Any] | None = None,
) -> Loaded:  # fmt: skip
    """Load a published checkpoint.

    Needs the memory of the model plus one tensor: the module is made without memory, shapes are checked against the
    headers, and every tensor is read (and converted) into its place.

    Args:
        path: folder with config.json and safetensors. dtype: of all floating-point parameters; None keeps what is stored.
        device: where parameters go. family, vocab_rows, head_rows, overrides: see :func:`inspect`.

    Raises:
        CheckpointError: naming file and key, before anything large is allocated.
    """
    found = inspect(path, family=family, vocab_rows=vocab_rows, head_rows=head_rows, overrides=overrides)
    check(found.diff, found.shards, found.family.name)
    generation = read_json(Path(path) / "generation_config.json", required=False)
    if found.family.open is not None:
        opened = found.family.open(Path(path), found.config, dtype, torch.device(device))
        return Loaded(found.family, found.config, opened.eval(), Path(path), found.diff, generation)
    model = on_meta(lambda: found.family.build(found.config))
    _check_cover(found, model.state_dict())
    if found.diff.lacking and found.family.complete is None:
        raise CheckpointError(f"missing keys: {', '.join(found.diff.lacking[:5])}", source=str(path))
    fill(model, found.weights, found.shards, dtype, torch.device(device))
    notes: tuple[str, ...] = ()
    if found.diff.lacking and found.family.complete is not None:
        notes = (found.family.complete(model, found.config, found.diff.lacking, dtype, torch.device(device)),)
    return Loaded(found.family, found.config, model.eval(), Path(path), found.diff, generation, notes)


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
    vocab_rows: int | None = None, head_rows: int | None = None,
) -> ModelConfig:  # fmt: skip
    """The configuration with as many rows of embedding and head as the shards hold, or as asked if that is fewer.

    Fine-tuned checkpoints often have resized embeddings and an old `vocab_size`; the shards are right.
    """
    stored = {w.name: shapes[w.parts[0].key][0] for w in weights(config) if w.elastic and shapes.get(w.parts[0].key)}
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


def _check_cover(found: Inspected, expected: Mapping[str, Tensor]) -> None:
    """A family whose key map and module do not agree is a bug of the family."""
    odd = sorted({w.name for w in found.weights} ^ set(expected))
    if odd:
        raise CheckpointError(f"the key map of family {found.family.name} and its module differ in {', '.join(odd[:5])}", source=str(found.shards.folder))


def fill(model: nn.Module, weights: Sequence[Weight], shards: Shards, dtype: torch.dtype | None, device: torch.device) -> None:
    """Give the parameters of a module on the meta device memory and read them; what the shards lack stays as it is.

    The shards are walked in file order, so each part of a fused parameter is read when its shard comes by.
    """
    expected = model.state_dict()
    parts = {part.key: (w, part) for w in weights for part in w.parts if part.key in shards.tensors}
    state: dict[str, Tensor] = {}
    size = sum(shards.tensors[key].nbytes for key in parts)
    with tqdm(total=size, unit="B", unit_scale=True, desc="loading", disable=None if size >= SHOW_FROM else True) as bar:
        for stored in shards.in_file_order(parts):
            w, part = parts[stored.key]
            want = expected[w.name]
            if w.name not in state:
                kind = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype
                state[w.name] = torch.empty(want.shape, dtype=kind, device=device)
            target, start = state[w.name], 0
            for before in w.parts[: w.parts.index(part)]:
                start += torch.Size(before.shape).numel()
            rows = want.shape[0] if w.elastic else None
            count = want.numel() if w.elastic else torch.Size(part.shape).numel()
            read_into(stored, target.view(-1)[start : start + count], rows=rows)
            bar.update(stored.nbytes)
    model.load_state_dict(state, strict=False, assign=True)
    restore_buffers(model, device)


def restore_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers that no checkpoint holds are still on the meta device: have their modules compute them (``fresh_buffer``)."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                fresh: Tensor = module.fresh_buffer(name)  # type: ignore[operator]
                module.register_buffer(name, fresh.to(device), persistent=False)
