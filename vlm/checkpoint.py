"""Our checkpoint layout: a folder with config.json, model.safetensors and tokenizer.json. Safetensors only."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from vlm.checkpoints.keymap import Part, Weight, compare
from vlm.checkpoints.load import check, fill, on_meta, read_json
from vlm.checkpoints.shards import Shards
from vlm.errors import CheckpointError
from vlm.families.pocket import PocketConfig, PocketModel
from vlm.processor.tokenizer import Tokenizer

POCKET = Path(__file__).parent / "pocket"


def save_pocket(model: PocketModel, tokenizer_file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a pocket checkpoint; matrices in `dtype`, norms and statistics in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, tensor in model.state_dict().items():
        keep = tensor.ndim < 2 or not tensor.is_floating_point()
        state[name] = (tensor if keep else tensor.to(dtype)).contiguous().clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    target = folder / "tokenizer.json"
    if tokenizer_file.resolve() != target.resolve():
        target.write_bytes(tokenizer_file.read_bytes())


def load_pocket(path: str | Path | None = None) -> tuple[PocketModel, Tokenizer, str]:
    """(model in float32 and evaluation mode, tokenizer, name) of a pocket checkpoint; None: the shipped one.

    Raises:
        CheckpointError: what is wrong, with file and key.
    """
    folder = POCKET if path is None else Path(path)
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", source=str(folder), remedy="name a local checkpoint folder, or none for pocket")
    data = read_json(folder / "config.json")
    if data.get("model_type") != "pocket":
        raise CheckpointError(f"model_type {data.get('model_type')!r} is not supported yet", source=str(folder / "config.json"), remedy="use a pocket checkpoint")
    try:
        config = PocketConfig.from_dict(data)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"does not describe a pocket model ({error})", source=str(folder / "config.json")) from error
    model = on_meta(lambda: PocketModel(config))
    stored = Shards.open(folder)
    expected = model.state_dict()
    weights = [Weight(name, (Part(name, tuple(tensor.shape)),)) for name, tensor in expected.items()]
    check(compare(weights, stored.shapes), stored, "pocket")
    fill(model, weights, stored, torch.float32, torch.device("cpu"))
    name = "pocket" if path is None else folder.name
    return model.eval(), Tokenizer.from_file(folder / "tokenizer.json"), name
