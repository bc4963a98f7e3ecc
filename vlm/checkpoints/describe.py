"""What the headers of a checkpoint tell: family, sizes, how its keys fit, the memory it will need. No weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlm.backbone.config import BackboneConfig
from vlm.checkpoints.keymap import KeyDiff
from vlm.checkpoints.load import Inspected, inspect

#: Bytes of a parameter in the types that ``from_pretrained`` takes.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def describe(folder: str | Path, **options: Any) -> dict[str, Any]:
    """Everything ``vlm info`` says of a published checkpoint, JSON-safe.

    Args:
        options: of :func:`vlm.checkpoints.load.inspect`.

    Raises:
        CheckpointError: no checkpoint, a foreign or damaged one. Keys that do not fit are no error here.
    """
    return summary(inspect(folder, **options))


def summary(found: Inspected) -> dict[str, Any]:
    """Like :func:`describe`, of a checkpoint that was inspected."""
    tensors, backbone, family = found.shards.tensors, found.config.backbone, found.family
    kinds: dict[str, int] = {}
    for stored in tensors.values():
        name = str(stored.dtype).removeprefix("torch.")
        kinds[name] = kinds.get(name, 0) + math.prod(stored.shape)
    parameters = _parameters(found)
    return {
        "name": found.shards.folder.name, "family": family.name, "layout": found.layout,
        "model_type": found.config.raw.get("model_type"), "architectures": found.config.raw.get("architectures"),
        "files": len({stored.file for stored in tensors.values()}), "tensors": len(tensors), "bytes": found.shards.nbytes,
        "parameters": {**parameters, "total": sum(parameters.values())}, "stored": kinds,
        "memory": memory(sum(parameters.values()), found.shards.nbytes, backbone),
        "limits": {
            "context": backbone.max_position_embeddings, "vocab_size": backbone.vocab_size, "layers": backbone.num_layers,
            "hidden_size": backbone.hidden_size, "heads": backbone.num_heads, "kv_heads": backbone.num_kv_heads, "width_per_head": backbone.width_per_head,
        },
        "attention": family.attention, "logit_shift": backbone.logit_shift, "mask_token_id": backbone.mask_token_id,
        "block_length": None if found.config.blocks is None else found.config.blocks.length,
        "fits": found.diff.fits,
        "missing": list(found.diff.missing), "lacking": list(found.diff.lacking), "unexpected": list(found.diff.unexpected),
        "mismatched": {key: [list(shape) for shape in shapes] for key, shapes in found.diff.mismatched.items()},
        "default_preset": family.default_preset, "presets": sorted(family.presets), "variants": sorted(family.variants), "proven": family.proven,
    }  # fmt: skip


def _parameters(found: Inspected) -> dict[str, int]:
    """Parameters of the model by part, those included that the checkpoint lacks."""
    tensors, counts = found.shards.tensors, dict[str, int]()
    for w in found.weights:
        part = w.name.split(".")[0]
        elastic = [tensors[p.key].shape for p in w.parts if w.elastic and p.key in tensors]
        counts[part] = counts.get(part, 0) + sum(math.prod(shape) for shape in (elastic or [p.shape for p in w.parts]))
    return counts


def memory(parameters: int, stored: int, backbone: BackboneConfig) -> dict[str, Any]:
    """Bytes that a model needs: weights as stored and in each type, and of the prefix cache in 16 bits.

    Every entry of prompt and answer has a key and a value in each layer. What a forward needs besides depends on the
    pictures and is not counted.
    """
    entry = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.width_per_head
    return {
        "weights": {"stored": stored, **{name: parameters * size for name, size in BYTES.items()}},
        "kv_cache_per_token": {name: entry * size for name, size in BYTES.items()},
        "kv_cache_full_context": {name: entry * size * backbone.max_position_embeddings for name, size in BYTES.items()},
    }


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def folded(keys: Iterable[str]) -> list[str]:
    """Keys that differ only in numbers as one: ``model.layers.{0-27}.mlp.up_proj.weight``."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for key in keys:
        groups.setdefault(_NUMBER.sub("#", key), []).append(tuple(int(n) for n in _NUMBER.findall(key)))
    found = []
    for shape, numbers in groups.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        if math.prod(map(len, columns)) != len(numbers):  # no full grid: better one by one
            found += [_spelled(shape, [[n] for n in row]) for row in numbers]
        else:
            found.append(_spelled(shape, columns))
    return found


def _spelled(shape: str, columns: Sequence[Sequence[int]]) -> str:
    for column in columns:
        shape = shape.replace("#", str(column[0]) if len(column) == 1 else "{" + _ranges(column) + "}", 1)
    return shape


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def diff_lines(diff: KeyDiff) -> list[str]:
    """The differences for people: one line for all layers, - missing, + unexpected, ~ of another shape."""
    lines = [f"- {key}" for key in folded(diff.missing)] + [f"- {key} (optional)" for key in folded(diff.lacking)]
    lines += [f"+ {key}" for key in folded(diff.unexpected)]
    shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for key, pair in diff.mismatched.items():
        shapes.setdefault(pair, []).append(key)
    for (stored, wanted), keys in shapes.items():
        lines += [f"~ {key}: stored {_times(stored)}, wanted {_times(wanted)}" for key in folded(keys)]
    return lines


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
