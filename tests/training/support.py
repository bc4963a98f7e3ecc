"""A tiny pocket model and made-up lessons for it."""

from __future__ import annotations

import numpy as np
import torch

from examples.pocket.lessons import NOWHERE, UNKNOWN, Lesson
from vision.reader import ReaderConfig
from vision.tokens import PLACE, VisualTokens
from vlm.backbone.config import BackboneConfig
from vlm.backbone.copy_head import CopyHeadConfig
from vlm.families.pocket import PocketConfig, PocketModel


def tiny_model(seed: int = 0, kv_heads: int = 2) -> PocketModel:
    """Pocket with two layers of width 32 and every part switched on; the adapter's feature path is not zero."""
    torch.manual_seed(seed)
    backbone = BackboneConfig(
        vocab_size=416, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=kv_heads, intermediate_size=48, qk_norm=True, tie_embeddings=True,
        mask_token_id=1, pad_token_id=0, eos_token_id=3, bos_token_id=2, slot_positions=97, copy_head=CopyHeadConfig(key_dim=16),
    )  # fmt: skip
    model = PocketModel(PocketConfig(ReaderConfig(stem=(4, 8), width=12, stem_blocks=1, blocks=1), backbone))
    torch.nn.init.normal_(model.adapter.features.weight, std=0.1)
    return model


def random_tokens(rng: np.random.Generator, n: int) -> VisualTokens:
    """`n` entries of mixed kinds."""
    kind = rng.integers(0, 5, n)
    probs = rng.dirichlet(np.ones(4), n).astype(np.float32)
    classes = np.where((kind == 4)[:, None], rng.integers(1, 40, (n, 4)), rng.integers(1, 90, (n, 4)))
    return VisualTokens(
        kind, classes, probs, rng.integers(0, 10, n), rng.random((n, 4), np.float32) * 90, rng.random((n, PLACE), np.float32),
        rng.integers(0, 10, (n, 3)), np.full(n, -1), np.ones(n, np.float32),
    )  # fmt: skip


def random_lesson(rng: np.random.Generator, entries: int, instruction: list[int]) -> Lesson:
    """A canvas of 6-20 cells, half of them to be answered."""
    n = int(rng.integers(6, 21))
    ids = rng.integers(272, 360, n)
    answer = rng.random(n) < 0.6
    answer[0] = True
    ids[answer & (rng.random(n) < 0.2)] = 0
    pointer = rng.choice([NOWHERE, UNKNOWN, *range(entries)], n)
    return Lesson(instruction, ids, answer, np.where(answer, rng.integers(1, 9, n), 0), pointer, str(rng.choice(["extract", "ask", "read"])))


def random_pages(seed: int = 0, width: int = 12) -> list[tuple[VisualTokens, np.ndarray | None, list[Lesson]]]:
    """Three pages; the first two share one prefix among their lessons, the last has one instruction per lesson."""
    rng = np.random.default_rng(seed)
    pages = []
    for i, n in enumerate((9, 14, 5)):
        instructions = [[280 + j] * (j + 1) if i == 2 else [] for j in range(3)]
        features = rng.random((n, width), np.float32) if i else None
        pages.append((random_tokens(rng, n), features, [random_lesson(rng, n, x) for x in instructions]))
    return pages
