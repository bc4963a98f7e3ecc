"""Checkpoints to train on from, out of a shipped model: its weights, fresh optimisers.

``python -m examples.pocket.resume --out runs`` writes ``runs/reader.pt`` and ``runs/backbone.pt``; then run
``train_reader`` and ``train_backbone`` with these as ``--out``. Layers that today's pocket has and the shipped one lacks
are added; they begin by changing nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from vision.reader import ReaderConfig
from vlm.checkpoint import POCKET
from vlm.errors import CheckpointError
from vlm.families.pocket import PocketConfig, PocketModel
from vlm.training.optim import Optimisers
from vlm.training.trainer import save_atomically


def grown(folder: Path) -> PocketModel:
    """Today's pocket with all the weights of the checkpoint in `folder`."""
    config = PocketConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = PocketModel(PocketConfig(ReaderConfig(), config.backbone, config.first_char))
    found = model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}, strict=False)
    if found.unexpected_keys:
        raise CheckpointError(
            f"today's pocket has no {found.unexpected_keys[0]}", source=str(folder), remedy="train it on with the version that it was trained with"
        )
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of a pocket checkpoint; the shipped one by default")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = grown(args.model)
    _save(model.tower, model.tower, args.out / "reader.pt")
    model.tower.requires_grad_(False)
    _save(model, nn.ModuleDict({name: part for name, part in model.named_children() if name != "tower"}), args.out / "backbone.pt")


def _save(model: nn.Module, averaged: nn.Module, path: Path) -> None:
    save_atomically({"model": model.state_dict(), "ema": averaged.state_dict(), "optim": Optimisers(model).state_dict(), "step": 0}, path)


if __name__ == "__main__":
    main()
