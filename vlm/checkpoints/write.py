"""Writing a model in the published layout of its family: single file or shards with an index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from vlm.checkpoints.keymap import to_published
from vlm.checkpoints.shards import INDEX, SINGLE
from vlm.families.family import Family, ModelConfig

#: Files of a checkpoint folder that go along unchanged.
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


def save_published(
    model: nn.Module, family: Family, config: ModelConfig, folder: str | Path, *, source: str | Path | None = None, shard_bytes: int = 5 << 30
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
        for name in COMPANIONS:
            if (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, target / name)
    if not (target / "config.json").is_file():
        (target / "config.json").write_text(json.dumps(dict(config.raw), indent=2) + "\n", encoding="utf-8")
    return files


def _write(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int) -> list[Path]:
    groups: list[dict[str, Tensor]] = [{}]
    used = 0
    for key, tensor in tensors.items():
        if groups[-1] and used + tensor.nbytes > shard_bytes:
            groups.append({})
            used = 0
        groups[-1][key] = tensor
        used += tensor.nbytes
    names = [SINGLE] if len(groups) == 1 else [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        # cloned one shard at a time: parts of a fused parameter share its memory, which the format does not allow
        save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in group.items()}, folder / name, metadata={"format": "pt"})
    if len(groups) > 1:
        weight_map = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]
