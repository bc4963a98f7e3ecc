"""Key maps of vision towers, and the base tower for checkpoints that lack their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from vlm.checkpoints.keymap import Weight, compare, weight
from vlm.checkpoints.load import check, fill
from vlm.checkpoints.shards import Shards

#: What stands before a tower's keys in repositories that hold it (SigLIP, Qwen-VL of either age).
BASE_PREFIXES = ("vision_model.", "model.visual.", "visual.", "")


def module_weights(module: nn.Module, ours: str, theirs: str, *, required: bool = True) -> list[Weight]:
    """Key map of a module whose state dict has the published names: prefix `ours` in our model, `theirs` in the checkpoint.

    Build the module on the meta device to ask for its shapes.
    """
    return [weight(ours + name, theirs + name, *tensor.shape, required=required) for name, tensor in module.state_dict().items()]


def load_base_tower(
    tower: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", prefixes: Sequence[str] = BASE_PREFIXES
) -> None:
    """Fill a tower from the repository of its base model (a local folder with safetensors), in place.

    For checkpoints whose shards lack the tower; the caller says so to the user. Other keys of the repository, such as a
    text model's, are passed over.

    Args:
        tower: of :func:`vision.towers.build_tower`, on any device, the meta device included.
        dtype: of the parameters, None as stored. prefixes: tried in turn.

    Raises:
        CheckpointError: no such weights, or of other shapes.
    """
    shards = Shards.open(Path(folder))
    maps = [module_weights(tower, "", prefix) for prefix in prefixes]
    weights = next((m for m in maps if all(w.parts[0].key in shards.tensors for w in m)), maps[0])
    wanted = {w.parts[0].key for w in weights}
    check(compare(weights, shards.shapes, [re.escape(key) for key in shards.tensors if key not in wanted]), shards, "tower")
    fill(tower, weights, shards, dtype, torch.device(device))
