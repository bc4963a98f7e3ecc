"""Benchmarks on disk, made up here in the three published shapes; boxes on pictures."""

import json

import pytest
from PIL import Image

from vlm import Result
from vlm.errors import ConfigError
from vlm.grounding.actions import Action
from vlm.grounding.answers import merged
from vlm.grounding.overlay import overlay
from vlm.grounding.screenspot import is_hit, load_items, score
from vlm.results import Candidate, FieldInfo


def benchmark(folder):
    (folder / "imgs" / "app").mkdir(parents=True)
    for name, size in (("a.png", (200, 100)), ("app/b.png", (400, 300))):
        Image.new("RGB", size).save(folder / "imgs" / name)
    (folder / "screenspot_desktop.json").write_text(json.dumps([
        {"img_filename": "a.png", "bbox": [20, 10, 40, 20], "instruction": "open", "data_type": "text", "data_source": "windows"},
        {"img_filename": "a.png", "bbox": [0.5, 0.5, 0.75, 0.75], "instruction": "close", "data_type": "icon", "data_source": "ios"},
    ]))  # fmt: skip
    (folder / "annotations").mkdir()
    (folder / "annotations" / "pro.json").write_text(json.dumps([
        {"img_filename": "app/b.png", "bbox": [100, 150, 200, 300], "img_size": [400, 300], "instruction": "draw", "ui_type": "icon", "group": "CAD"},
        {"img_filename": "app/b.png", "img_size": [400, 300], "instruction": "fly", "ui_type": "text", "group": "CAD", "gt_type": "negative"},
    ]))  # fmt: skip
    (folder / "notes.json").write_text('{"about": "not a list"}')
    return folder


def test_items_and_their_score(tmp_path):
    items = sorted(load_items(benchmark(tmp_path)), key=lambda item: item.instruction)
    by_name = {item.instruction: item for item in items}
    assert by_name["open"].box == pytest.approx((0.1, 0.1, 0.3, 0.3)) and by_name["open"].platform == "desktop"
    assert by_name["close"].box == (0.5, 0.5, 0.75, 0.75) and by_name["close"].platform == "mobile"
    assert by_name["draw"].box == pytest.approx((0.25, 0.5, 0.5, 1.0)) and by_name["fly"].box is None
    assert is_hit(by_name["open"], Action.at(0.2, 0.2)) and not is_hit(by_name["open"], Action.at(0.31, 0.2))
    assert is_hit(by_name["fly"], Action(box=None)) and not is_hit(by_name["fly"], Action.at(0.2, 0.2)) and not is_hit(by_name["fly"], None)
    assert not is_hit(by_name["open"], Action(box=None))
    answers = {"open": Action.at(0.2, 0.2), "close": None, "draw": Action.at(0.4, 0.7), "fly": Action.at(0.1, 0.1)}
    found = {s.group: s for s in score(items, [answers[item.instruction] for item in items])}
    assert (found["all"].right, found["all"].count, found["all"].unreadable) == (2, 4, 1)
    assert found["CAD"].accuracy == 0.5 and found["desktop text"].accuracy == 1.0 and found["mobile icon"].right == 0


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="no items"):
        load_items(tmp_path)
    (tmp_path / "x.json").write_text("[{")
    with pytest.raises(ConfigError, match="not JSON"):
        load_items(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": "a", "img_filename": "none.png", "bbox": [0, 0, 1, 1]}]))
    with pytest.raises(ConfigError, match="none.png"):
        load_items(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "none.png")
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": "a", "img_filename": "none.png", "bbox": [0, 0]}]))
    with pytest.raises(ConfigError, match="four numbers"):
        load_items(tmp_path)


def test_overlay_draws_inside_and_leaves_the_picture_alone():
    image = Image.new("RGB", (120, 80), "white")
    result = Result(fields={"/a": FieldInfo("x", 0.9, (10, 10, 40, 30), False, "/a")}, candidates=(Candidate((-5, 60, 500, 90), 0.3),))
    drawn = overlay(image, result)
    assert drawn.size == image.size and image.getcolors() == [(120 * 80, (255, 255, 255))]
    assert drawn.getpixel((25, 30)) != (255, 255, 255) and drawn.getpixel((60, 60)) != (255, 255, 255)
    assert overlay(image, []).getcolors() == image.getcolors()


def test_equal_places_count_together():
    found = merged([((0, 0, 10, 10), 0.2), ((20, 0, 30, 10), 0.5), ((0, 0, 10, 10), 0.4)])
    assert [(c.box, round(c.confidence, 6)) for c in found] == [((0, 0, 10, 10), 0.6), ((20, 0, 30, 10), 0.5)]
    assert len(merged([((0, 0, 10, 10), 0.5), ((0, 0, 10, 9), 0.5)], overlap=0.5)) == 1
