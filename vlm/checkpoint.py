"""Our checkpoint layout: a folder with config.json, model.safetensors and tokenizer.json. Safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlm.errors import CheckpointError
from vlm.families.pocket import PocketConfig, PocketModel
from vlm.processor.tokenizer import Tokenizer

POCKET = Path(__file__).parent / "pocket"
_OTHER_CONFIG = "use the config.json that belongs to it"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder.

    Raises:
        CheckpointError: no folder, no file, not JSON, or not an object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError("there is no config.json", source=str(folder), remedy="name the folder of a checkpoint")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"is not valid JSON ({error})", source=str(path), remedy="fetch the checkpoint again") from error
    if not isinstance(data, dict):
        raise CheckpointError("does not hold an object", source=str(path), remedy="fetch the checkpoint again")
    return data


def load_state(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a safetensors file, checked against the expected names and shapes before anything is read.

    Raises:
        CheckpointError: naming file and key.
    """
    if not path.is_file():
        raise CheckpointError("there is no such file", source=str(path), remedy="fetch the checkpoint again")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing, extra = sorted(set(expected) - names), sorted(names - set(expected))
            if missing or extra:
                parts = [f"missing {', '.join(missing[:5])}" if missing else "", f"unexpected {', '.join(extra[:5])}" if extra else ""]
                raise CheckpointError(f"does not fit the model: {'; '.join(p for p in parts if p)}", source=str(path), remedy=_OTHER_CONFIG)
            for name, tensor in expected.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise CheckpointError(f"{name} has shape {shape}, the model wants {tuple(tensor.shape)}", source=str(path), remedy=_OTHER_CONFIG)
            return {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"is damaged or no safetensors file ({error})", source=str(path), remedy="fetch the checkpoint again") from error


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
    if path is None and not ((folder / "config.json").is_file() and (folder / "model.safetensors").is_file()):
        raise CheckpointError(
            "the weights of the embedded model are not in this installation",
            source="pocket",
            remedy=f"train them (examples/pocket, then python -m examples.pocket.export --out {folder}), or name the folder of a checkpoint",
        )
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", source=str(folder), remedy="name a local checkpoint folder, or none for pocket")
    data = read_config(folder)
    if data.get("model_type") != "pocket":
        kind = data.get("model_type")
        raise CheckpointError(f"model_type {kind!r} is not supported yet", source=str(folder / "config.json"), remedy="use a pocket checkpoint")
    try:
        config = PocketConfig.from_dict(data)
        with torch.device("meta"):
            model = PocketModel(config)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"does not describe a pocket model ({type(error).__name__}: {error})"
        raise CheckpointError(reason, source=str(folder / "config.json"), remedy="fetch the checkpoint again") from error
    state = load_state(folder / "model.safetensors", dict(model.state_dict()))
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, assign=True)
    _restore_buffers(model)
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


def _restore_buffers(model: nn.Module) -> None:
    """Buffers that no checkpoint holds are still on the meta device: compute them anew."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, module.fresh_buffer(name), persistent=False)  # type: ignore[operator]
