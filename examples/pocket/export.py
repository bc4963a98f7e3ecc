"""Join the averaged weights of reader and backbone into the shipped checkpoint.

``python -m examples.pocket.export --reader runs/reader.pt --backbone runs/backbone.pt --out vlm/pocket``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vlm.checkpoint import POCKET, save_pocket
from vlm.families.pocket import PocketConfig, PocketModel


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--null-bias", type=float, default=4.0)
    args = parser.parse_args()
    model = PocketModel(PocketConfig(null_bias=args.null_bias))
    model.tower.load_state_dict(torch.load(args.reader, weights_only=True)["ema"])
    trained = torch.nn.ModuleDict({name: part for name, part in model.named_children() if name != "tower"})
    trained.load_state_dict(torch.load(args.backbone, weights_only=True)["ema"])
    save_pocket(model, POCKET / "tokenizer.json", args.out)


if __name__ == "__main__":
    main()
