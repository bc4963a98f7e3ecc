"""Our checkpoint layout: a folder with config.json, model.safetensors and tokenizer.json. Safetensors only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

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


def is_pocket(path: str | Path) -> bool:
    """Whether a folder holds a checkpoint of our layout; a folder that says nothing, or a damaged one, counts as ours."""
    folder = Path(path)
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return folder.is_dir()
    return not isinstance(data, dict) or data.get("model_type", "pocket") == "pocket"


def load_pocket(path: str | Path | None = None) -> tuple[PocketModel, Tokenizer, str]:
    """(model in float32 and evaluation mode, tokenizer, name) of a pocket checkpoint; None: the shipped one.

    Raises:
        CheckpointError: what is wrong, with file and key.
    """
    folder = POCKET if path is None else Path(path)
    if path is None and not ((folder / "config.json").is_file() and (folder / "model.safetensors").is_file()):
        raise CheckpointError(
            "the weights of the embedded model are not in this installation",
            source="pocket",
            remedy=f"train them (examples/pocket, then python -m examples.pocket.export --out {folder}), or name the folder of a checkpoint",
        )
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", source=str(folder), remedy="name a local checkpoint folder, or none for pocket")
    data = read_json(folder / "config.json")
    if data.get("model_type") != "pocket":
        kind = data.get("model_type")
        raise CheckpointError(f"model_type {kind!r} is not supported yet", source=str(folder / "config.json"), remedy="use a pocket checkpoint")
    try:
        config = PocketConfig.from_dict(data)
        model = on_meta(lambda: PocketModel(config))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"does not describe a pocket model ({type(error).__name__}: {error})"
        raise CheckpointError(reason, source=str(folder / "config.json"), remedy="fetch the checkpoint again") from error
    stored = Shards.open(folder)
    expected = model.state_dict()
    weights = [Weight(name, (Part(name, tuple(tensor.shape)),)) for name, tensor in expected.items()]
    check(compare(weights, stored.shapes), stored, "pocket")
    fill(model, weights, stored, torch.float32, torch.device("cpu"))
    name = "pocket" if path is None else folder.name
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    _check_vocabulary(tokenizer, config, folder)
    return model.eval(), tokenizer, name


def _check_vocabulary(tokenizer: Tokenizer, config: PocketConfig, folder: Path) -> None:
    backbone = config.backbone
    wanted = {"<|mask|>": backbone.mask_token_id, "<|pad|>": backbone.pad_token_id, "<|eos|>": backbone.eos_token_id}
    wrong = [name for name, index in wanted.items() if tokenizer.special.get(name) != index]
    if wrong or tokenizer.vocab_size > backbone.vocab_size:
        what = f"{wrong[0]} is another id" if wrong else f"{tokenizer.vocab_size} tokens for {backbone.vocab_size} embeddings"
        raise CheckpointError(f"does not fit config.json ({what})", source=str(folder / "tokenizer.json"), remedy="use the files of one checkpoint")


#: Values of one tensor that a fingerprint looks at: all of small ones, this many, evenly spaced, of larger ones.
SAMPLED = 1 << 16


@torch.inference_mode()
def fingerprint(model: nn.Module) -> str:
    """16 hex digits that two models share when their weights, rounded to bf16, have the same names, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().reshape(-1)
        if len(values) > SAMPLED:
            values = values[torch.linspace(0, len(values) - 1, SAMPLED, dtype=torch.float64).long().to(values.device)]
        if values.is_floating_point():
            values = values.to(torch.bfloat16).view(torch.int16)
        found.update(values.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
