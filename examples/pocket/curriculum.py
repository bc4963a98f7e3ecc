"""What is drawn when: the mixture of samples that pocket learns from."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from examples.pocket import documents, first_pages, scenes, screens
from examples.pocket.sample import Sample


@functools.lru_cache(maxsize=2)
def _rows(pack: str) -> list[dict]:  # type: ignore[type-arg]
    folder = Path(os.environ.get("POCKET_DATA", "../shared/data")) / pack
    return scenes.load_rows(folder, "train") if folder.exists() else []


def draw(rng: np.random.Generator) -> Sample:
    """One training sample: about half documents, the rest first lessons, screens and scenes."""
    kind = rng.random()
    if kind < 0.28:
        return first_pages.make(rng)
    if kind < 0.74:
        return documents.make(rng)
    if kind < 0.88:
        return screens.make(rng)
    pack = str(rng.choice(["easy_vqa", "nlvr"]))
    rows = _rows(pack)
    if kind < 0.92 or not rows:
        return scenes.make(rng)
    folder = Path(os.environ.get("POCKET_DATA", "../shared/data")) / pack
    return scenes.real_sample(folder, rows[rng.integers(len(rows))], rng)
