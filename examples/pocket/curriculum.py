"""What is drawn when: the mixture of samples that pocket learns from."""

from __future__ import annotations

import numpy as np

from examples.pocket import documents, first_pages
from examples.pocket.sample import Sample


def draw(rng: np.random.Generator) -> Sample:
    """One training sample."""
    if rng.random() < 0.25:
        return first_pages.make(rng)
    return documents.make(rng)
