"""Batches: pictures come in one by one, are looked at together, run by length, and results keep their order."""

import pytest
from PIL import Image

import vlm.batching as batching
from vision.loading import LoadedImage
from vlm.batching import Batches, Seen
from vlm.errors import ImageError
from vlm.results import Result


class Fake:
    """A model for which a picture is as long as its width says; it notes what it looks at and runs together."""

    def __init__(self, size=4, as_rows=True, breaks=()):
        self.looked, self.ran, self.breaks = [], [], breaks
        self.batches = Batches(self.load, self.look, self.run, size, as_rows)

    def load(self, image):
        if isinstance(image, str):
            raise ImageError("is no picture", source=image)
        return LoadedImage(image, str(image.width))

    def look(self, pictures):
        self.looked.append([picture.rgb.width for picture in pictures])
        if any(picture.rgb.width in self.breaks for picture in pictures):
            raise RuntimeError("cannot look at this")
        return [Seen(picture.source, (), "x" * picture.rgb.width, 1.0) for picture in pictures]

    def run(self, readings):
        self.ran.append([len(reading) for reading in readings])
        return [Result(str(len(reading))) for reading in readings]

    def __call__(self, *widths):
        images = (w if isinstance(w, (str, Exception)) else Image.new("RGB", (w, 10)) for w in widths)
        return [result.text if result.status == "ok" else result.error["type"] for result in self.batches(images)]


def test_pictures_are_looked_at_together_and_keep_their_order():
    model = Fake()
    assert model(5, 1, "bad", 9, 2, 7, ImageError("gone"), 3) == ["5", "1", "ImageError", "9", "2", "7", "ImageError", "3"]
    assert model.looked == [[5, 1, 9, 2], [7, 3]]
    assert model.ran == [[1, 2, 3, 5], [7, 9]]


def test_windows_end_and_begin_anew():
    model = Fake(size=1)
    widths = list(range(1, 12))
    assert model(*widths) == [str(w) for w in widths]
    assert model.ran == [[w] for w in widths] and model.looked == [[w] for w in widths]
    assert Fake()() == []
    assert Fake(size=1)(*["bad"] * 40) == ["ImageError"] * 40


def test_large_pictures_do_not_wait(monkeypatch):
    monkeypatch.setattr(batching, "TOGETHER", 1000)
    model = Fake()
    model(10, 101, 50, 60, 5)
    assert model.looked == [[10, 101], [50, 60], [5]]


def test_a_picture_that_cannot_be_looked_at_does_not_take_others_along():
    model = Fake(breaks=(7,))
    assert model(5, 7, 6) == ["5", "RuntimeError", "6"]
    assert model.looked == [[5, 7, 6], [5], [7], [6]]
    with pytest.raises(RuntimeError, match="cannot look"):
        Fake(breaks=(7,), as_rows=False)(5, 7)
    with pytest.raises(ImageError, match="no picture"):
        Fake(as_rows=False)(5, "bad")
    alone = Fake(breaks=(7,), as_rows=False)
    with pytest.raises(RuntimeError, match="cannot look"):
        alone(7)
    assert alone.looked == [[7]]
