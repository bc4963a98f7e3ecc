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


#: Shares of first pages, documents, screens and scenes in each stage; the last is what remains.
STAGES = {"first": (0.9, 0.0, 0.05), "full": (0.06, 0.52, 0.16)}


def draw(rng: np.random.Generator, stage: str = "full") -> Sample:
    """One training sample. Stage 'first' has small pages, where finding and copying is learned fast; 'full' everything."""
    first, documented, screened = STAGES[stage]
    kind = rng.random()
    if kind < first:
        return first_pages.make(rng)
    if kind < first + documented:
        return documents.make(rng)
    if kind < first + documented + screened:
        return screens.make(rng)
    pack = str(rng.choice(["easy_vqa", "nlvr"]))
    rows = _rows(pack)
    if rng.random() < 0.45 or not rows:
        return scenes.make(rng)
    folder = Path(os.environ.get("POCKET_DATA", "../shared/data")) / pack
    return scenes.real_sample(folder, rows[rng.integers(len(rows))], rng)
