"""Writing a model in the published layout of its family: single file or shards with an index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from vlm.checkpoints.keymap import to_published
from vlm.checkpoints.load import read_json
from vlm.checkpoints.shards import INDEX, SINGLE
from vlm.families.family import Family, ModelConfig

#: Most bytes in a file.
SHARD_BYTES = 5 << 30
#: Endings and beginnings of the names of files that go along with a checkpoint, unread; and how large one may be.
COMPANION_ENDS = (".json", ".txt", ".jinja", ".model", ".md")
COMPANION_NAMES = ("LICENSE", "NOTICE")
COMPANION_BYTES = 256 << 20


def save_published(
    model: nn.Module, family: Family, config: ModelConfig, folder: str | Path, *, source: str | Path | None = None, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write a model as its family publishes it, bit for bit what was loaded when the dtype was kept.

    Args:
        folder: made if absent. source: a checkpoint folder whose configuration and tokenizer files are copied.
        shard_bytes: a file holds at most so many bytes, or one tensor.

    Returns:
        The weight files written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = to_published(family.weights(config), dict(model.state_dict()))
    files = _write(tensors, target, shard_bytes)
    if source is not None:
        copy_companions(Path(source), target)
    if not (target / "config.json").is_file():
        (target / "config.json").write_text(json.dumps(dict(config.raw), indent=2) + "\n", encoding="utf-8")
    return files


def _write(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int) -> list[Path]:
    keys = list(tensors)
    groups = [[keys[i] for i in group] for group in grouped([tensors[key].nbytes for key in keys], shard_bytes)]
    names = file_names(len(groups))
    for name, group in zip(names, groups, strict=True):
        # cloned one shard at a time: parts of a fused parameter share its memory, which the format does not allow
        partial = folder / f"{name}.partial"
        save_file({key: tensors[key].detach().cpu().contiguous().clone() for key in group}, partial, metadata={"format": "pt"})
        partial.replace(folder / name)  # never in place: parameters may be views of the file that was there
    write_index(folder, names, groups, sum(t.nbytes for t in tensors.values()))
    return [folder / name for name in names]


def grouped(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of things of these sizes, in order, in groups of at most `limit` or one thing; one empty group for none."""
    groups: list[list[int]] = [[]]
    used = 0
    for i, size in enumerate(sizes):
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += size
    return groups


def file_names(count: int) -> list[str]:
    """Names of `count` weight files."""
    return [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_index(folder: Path, names: Sequence[str], keys: Sequence[Sequence[str]], size: int) -> None:
    """The index of several weight files; none for a single one."""
    if len(names) > 1:
        weight_map = {key: name for name, group in zip(names, keys, strict=True) for key in group}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2) + "\n", encoding="utf-8")


def copy_companions(source: Path, target: Path) -> None:
    """Configurations, tokenizers, templates, licences; and the base tower, where config.json names a folder beside it."""
    for file in sorted(source.iterdir()):
        wanted = file.name.endswith(COMPANION_ENDS) or file.name.startswith(COMPANION_NAMES)
        if wanted and file.is_file() and not file.name.endswith(".index.json") and file.stat().st_size <= COMPANION_BYTES:
            shutil.copyfile(file, target / file.name)
    tower = read_json(source / "config.json").get("mm_vision_tower")
    if isinstance(tower, str) and not Path(tower).is_absolute() and ".." not in Path(tower).parts and (source / tower / "config.json").is_file():
        shutil.copytree(source / tower, target / tower, dirs_exist_ok=True, copy_function=shutil.copyfile)
