"""A pocket model of forty thousand random weights: everything runs, nothing is known."""

from pathlib import Path

import torch

from vision.reader import ReaderConfig
from vlm.backbone.config import BackboneConfig
from vlm.backbone.copy_head import CopyHeadConfig
from vlm.checkpoint import POCKET, save_pocket
from vlm.families.pocket import PocketConfig, PocketModel


def tiny_model(seed: int = 0, *, quiet: bool = False) -> PocketModel:
    """A random model; `quiet` makes its tower find hardly anything, so that large pictures stay quick."""
    torch.manual_seed(seed)
    reader = ReaderConfig(stem=(4, 8), width=16, stem_blocks=0, blocks=0)
    backbone = BackboneConfig(
        vocab_size=416, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=48, qk_norm=True, tie_embeddings=True,
        mask_token_id=1, pad_token_id=0, eos_token_id=3, bos_token_id=2, max_position_embeddings=1024, slot_positions=97, copy_head=CopyHeadConfig(16, layer=1),
    )  # fmt: skip
    model = PocketModel(PocketConfig(reader, backbone))
    with torch.no_grad():
        model.tower.head.weight.mul_(3)  # spread what a random tower says
        if quiet:
            model.tower.head.bias.zero_()
            model.tower.head.bias[[0, 1 + len(reader.alphabet)]] = 8.0  # 'no character' in both halves of a cell
    return model


def save_tiny(folder: Path, seed: int = 0, *, quiet: bool = False) -> Path:
    """The model as a checkpoint folder."""
    save_pocket(tiny_model(seed, quiet=quiet), POCKET / "tokenizer.json", folder, torch.float32)
    return folder
