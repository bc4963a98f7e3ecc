"""A tiny pocket model and made-up lessons for it."""

from __future__ import annotations

import numpy as np
import torch

from examples.pocket.lessons import Lesson
from vision.reader import ALPHABET, ReaderConfig
from vision.tokens import CHAR, GAP, PLACE, THING, VisualTokens
from vision.words import Lexicon, features_of
from vlm.backbone.config import BackboneConfig
from vlm.backbone.copy_head import CopyHeadConfig
from vlm.backbone.slots import KEY_WORDS, SlotTable
from vlm.families.pocket import PocketConfig, PocketModel
from vlm.training.losses import NOWHERE, UNKNOWN

WORDS = ("total", "name", "tax", "due", "city")


def tiny_model(seed: int = 0, kv_heads: int = 2) -> PocketModel:
    """Pocket with two layers of width 32 and every part switched on; what begins with zero weights has others."""
    torch.manual_seed(seed)
    backbone = BackboneConfig(
        vocab_size=416, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=kv_heads, intermediate_size=48, qk_norm=True, tie_embeddings=True,
        mask_token_id=1, pad_token_id=0, eos_token_id=3, bos_token_id=2, slot_positions=97, copy_head=CopyHeadConfig(key_dim=16, layer=1),
    )  # fmt: skip
    model = PocketModel(PocketConfig(ReaderConfig(stem=(4, 8), width=12, stem_blocks=1, blocks=1), backbone))
    for layer in (model.adapter.features, model.mentions.seen, model.mentions.told):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def random_tokens(rng: np.random.Generator, n: int) -> VisualTokens:
    """`n` entries of mixed kinds on two rows."""
    kind = rng.integers(0, 5, n)
    probs = rng.dirichlet(np.ones(4), n).astype(np.float32)
    classes = np.where((kind == THING)[:, None], rng.integers(1, 40, (n, 4)), rng.integers(1, 90, (n, 4)))
    boxes = np.sort(rng.random((n, 2, 2), np.float32) * 90, axis=1).reshape(n, 4)
    chars = [ALPHABET[c - 1] if k == CHAR else "" for k, c in zip(kind, classes[:, 0], strict=True)]
    lexicon = Lexicon.of(chars, boxes, np.arange(n) // (n // 2 + 1), kind == THING, kind >= GAP, np.zeros(n, bool))
    return VisualTokens(
        kind, classes, probs, rng.integers(0, 10, n), boxes, rng.random((n, PLACE), np.float32), rng.integers(0, 10, (n, 3)),
        np.full(n, -1), np.ones(n, np.float32), lexicon,
    )  # fmt: skip


def random_lesson(rng: np.random.Generator, entries: int, instruction: list[int]) -> Lesson:
    """A canvas of two to four slots of 1-5 cells, with literals between them."""
    index: list[int] = []
    slot: list[int] = []
    count = int(rng.integers(2, 5))
    for number in range(1, count + 1):
        gap, size = int(rng.integers(0, 4)), int(rng.integers(1, 6))
        index += [0] * gap + list(range(1, size + 1))
        slot += [0] * gap + [number] * size
    n = len(index)
    ids = rng.integers(272, 360, n)
    answer = np.array(index) > 0
    ids[answer & (rng.random(n) < 0.2)] = 0
    keys = np.array([[features_of(str(rng.choice(WORDS))) for _ in range(KEY_WORDS)] for _ in range(count + 1)])
    keys[0] = 0
    table = SlotTable(np.array(slot), keys, np.array([0, *rng.integers(1, 5, count)]), np.array([0, 1, 2, 3, 4][: count + 1]), np.array([0, 0, 1, 2, 3][: count + 1]))
    pointer = rng.choice([NOWHERE, UNKNOWN, *range(entries)], n)
    return Lesson(instruction, ids, answer, np.array(index), pointer, str(rng.choice(["extract", "ask", "read"])), table)


def random_pages(seed: int = 0, width: int = 12) -> list[tuple[VisualTokens, np.ndarray | None, list[Lesson]]]:
    """Three pages; the first two share one prefix among their lessons, the last has one instruction per lesson."""
    rng = np.random.default_rng(seed)
    pages = []
    for i, n in enumerate((9, 14, 5)):
        instructions = [[int(t) for _ in range(j) for t in (rng.integers(337, 363), 280)] if i == 2 else [] for j in range(3)]  # letters and marks
        features = rng.random((n, width), np.float32) if i else None
        pages.append((random_tokens(rng, n), features, [random_lesson(rng, n, x) for x in instructions]))
    return pages
