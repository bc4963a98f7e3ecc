"""A trained reader, frozen, for making lessons out of drawn pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.pocket.lessons import COLON
from examples.pocket.sample import Sample, render
from vision.reader import ReaderConfig, ReaderTower
from vision.reading import fast_bf16, read_picture
from vision.tokens import VisualTokens


class Reader:
    """The tower as the product reads with it (:meth:`ReaderTower.folded`)."""

    def __init__(self, tower: ReaderTower) -> None:
        self.tower = tower.folded(torch.bfloat16 if fast_bf16() else torch.float32)

    @classmethod
    def from_checkpoint(cls, path: Path) -> Reader:
        """The averaged weights of a ``train_reader`` checkpoint."""
        tower = ReaderTower(ReaderConfig())
        tower.load_state_dict(torch.load(path, weights_only=True)["ema"])
        return cls(tower)

    def read(self, image: NDArray[np.uint8]) -> tuple[VisualTokens, NDArray[np.float16]]:
        """Visual tokens of a picture [H, W, 3] and the features [K, F] of their cells, as the product reads them at first look."""
        reading = read_picture(self.tower, Image.fromarray(image), COLON, pooled=False)
        return reading.tokens, reading.features.half().numpy()

    def see(self, sample: Sample, rng: np.random.Generator) -> tuple[VisualTokens, NDArray[np.float16]]:
        """Draw, degrade and read a sample; its glyph boxes move along with the page."""
        image = sample.image if sample.image is not None else render(sample, rng, float(rng.choice([0.0, 0.3, 0.6])))
        return self.read(image)
