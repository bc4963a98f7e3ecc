"""Fixtures that several rooms share."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("VLM_CACHE", "0")  # tests leave nothing behind
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Checkpoint folder of a random pocket whose tower sees characters everywhere."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def quiet(tmp_path_factory):
    """Checkpoint folder of a random pocket whose tower sees next to nothing: for large pictures."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("quiet"), quiet=True)


@pytest.fixture(scope="module")
def exact():
    """float32 throughout, for models made in this module: in bf16 a batch may round differently from its rows alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm.engine.fast_bf16", lambda *_: False)
        patch.setattr("vision.reading.fast_bf16", lambda *_: False)
        yield


@pytest.fixture
def picture(tmp_path):
    """Makes small picture files: picture('a.png'), picture('b.jpg', seed=2)."""

    def make(name="a.png", seed=0, size=(64, 48)):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture(scope="session")
def shared():
    """The folder of data and reference numbers beside the project; it may be missing."""
    return SHARED


@pytest.fixture(scope="session")
def robustness():
    """Folder of awkward files; skips where it is not laid out."""
    folder = SHARED / "data" / "robustness"
    if not (folder / "manifest.jsonl").is_file():
        pytest.skip("../shared/data/robustness is not here")
    return folder
