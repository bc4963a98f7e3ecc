"""A trained reader, frozen, for making lessons out of drawn pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from examples.pocket.lessons import COLON
from examples.pocket.sample import Sample, render
from vision.reader import ReaderConfig, ReaderTower
from vision.tokens import VisualTokens, assemble, detect, detect_things


class Reader:
    """Tower in evaluation mode with its weights in the working precision."""

    def __init__(self, tower: ReaderTower) -> None:
        self.tower = tower.eval().to(memory_format=torch.channels_last)

    @classmethod
    def from_checkpoint(cls, path: Path) -> Reader:
        """The averaged weights of a ``train_reader`` checkpoint."""
        tower = ReaderTower(ReaderConfig())
        tower.load_state_dict(torch.load(path, weights_only=True)["ema"])
        return cls(tower)

    @torch.no_grad()
    def read(self, image: NDArray[np.uint8]) -> tuple[VisualTokens, NDArray[np.float16]]:
        """Visual tokens of a picture [H, W, 3] and the features [K, F] of their cells."""
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
        pixels = torch.from_numpy(padded).permute(2, 0, 1).unsqueeze(0).float().div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.tower(pixels)
        tokens = assemble(detect(output), detect_things(output), (width, height), COLON)
        maps = output.features[0].float().flatten(1)  # [F, cells]
        features = torch.zeros(len(tokens), maps.shape[0])
        cells = torch.from_numpy(tokens.cells)
        features[cells >= 0] = maps[:, cells[cells >= 0]].T
        return tokens, features.half().numpy()

    def see(self, sample: Sample, rng: np.random.Generator) -> tuple[VisualTokens, NDArray[np.float16]]:
        """Draw, degrade and read a sample; its glyph boxes move along with the page."""
        image = sample.image if sample.image is not None else render(sample, rng, float(rng.choice([0.0, 0.3, 0.6])))
        return self.read(image)
