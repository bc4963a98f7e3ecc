"""Captions of scenes: listed by a scaffold, said in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from vision.reader import SHAPES, ReaderConfig
from vlm.model import DiffusionVLM
from vlm.results import FieldInfo, Result
from vlm.scenes import MOST, in_words, scene_schema, shapes_in
from vlm.structure.schema import parse_schema

SHAPES_PNG = Path(__file__).parents[2] / "app" / "web" / "examples" / "shapes.png"


@pytest.fixture(scope="module")
def pocket():
    return DiffusionVLM.from_pretrained()


def listed(*things):
    data = {"objects": [{"kind": kind, "color": color} for color, kind in things]}
    return Result("{}", data, confidence=0.5, fields={"/objects/0/kind": FieldInfo("circle", 0.5, None, False, "/objects/0/kind")})


@pytest.mark.parametrize(
    ("things", "text"),
    [
        ([], "nothing"),
        ([("red", "circle")], "a red circle"),
        ([("orange", "square"), ("teal", "star")], "an orange square and a teal star"),
        ([("red", "star"), ("blue", "circle"), ("red", "star"), ("gray", "square")], "two red stars, a blue circle and a gray square"),
        ([(None, "circle"), ("red", None), (None, None)], "a circle and a red"),
        ([("red", "circle")] * 9, "9 red circles"),
    ],
)
def test_a_list_in_words(things, text):
    result = in_words(listed(*things))
    assert result.text == text and result.data is None and not result.fields and result.confidence == 0.5


def test_the_schema_knows_shapes_and_colours():
    config = ReaderConfig()
    item = parse_schema(scene_schema(3, config)) and scene_schema(3, config)["properties"]["objects"]
    assert item["maxItems"] == 3 and item["items"]["properties"]["kind"]["enum"] == [*SHAPES, None]
    assert item["items"]["properties"]["color"]["enum"] == [*config.colors, None]


def scene(count):
    """Circles in a row."""
    image = Image.new("RGB", (60 * max(count, 1), 64), (238, 238, 238))
    for i in range(count):
        ImageDraw.Draw(image).ellipse((60 * i + 12, 14, 60 * i + 48, 50), fill=[(225, 35, 35), (25, 60, 225)][i % 2])
    return image


def test_pocket_says_what_is_there(pocket):
    config = pocket.engine.model.config.reader
    assert [shapes_in(pocket.engine.see(scene(n)), config) for n in (0, 1, 2, 4)] == [0, 1, 2, 4]
    assert shapes_in(pocket.engine.see(scene(40)), config) == MOST
    assert pocket.caption(scene(2)).text == "a red circle and a blue circle"
    phrase = r"(an? [a-z]+ [a-z]+|[a-z]+ [a-z]+ [a-z]+s)"
    result = pocket.caption(SHAPES_PNG)
    assert re.fullmatch(f"{phrase}(, {phrase})* and {phrase}", result.text) and "blue circle" in result.text
    assert result.usage.forwards >= 1 and 0 < result.confidence <= 1 and result.status == "ok"


def test_scenes_and_other_pictures_in_one_list(pocket):
    pictures = [scene(3), Image.new("RGB", (64, 64), "white"), scene(2), scene(3)]
    together = pocket.caption(pictures, max_new_tokens=8)
    for picture, result in zip(pictures, together, strict=True):
        assert pocket.caption(picture, max_new_tokens=8).text == result.text
