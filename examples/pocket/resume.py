"""Checkpoints to train on from, out of a shipped model: its weights, fresh optimisers.

``python -m examples.pocket.resume --out runs`` writes ``runs/reader.pt`` and ``runs/backbone.pt``; then run
``train_reader`` and ``train_backbone`` with these as ``--out``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from vlm.checkpoint import load_pocket
from vlm.training.optim import Optimisers
from vlm.training.trainer import save_atomically


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="folder of a pocket checkpoint; the shipped one by default")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, _, _ = load_pocket(args.model)
    _save(model.tower, model.tower, args.out / "reader.pt")
    model.tower.requires_grad_(False)
    _save(model, nn.ModuleDict({name: part for name, part in model.named_children() if name != "tower"}), args.out / "backbone.pt")


def _save(model: nn.Module, averaged: nn.Module, path: Path) -> None:
    save_atomically({"model": model.state_dict(), "ema": averaged.state_dict(), "optim": Optimisers(model).state_dict(), "step": 0}, path)


if __name__ == "__main__":
    main()
