"""Notations of other models: there and back, and what their published outputs look like."""

import pytest

from vlm.errors import OptionError
from vlm.grounding.actions import Action, action_schema, thousandths
from vlm.grounding.formats import FORMATS, read_action, write_action

FRAME = (1344.0, 672.0)
BOX = Action("click", (0.25, 0.5, 0.35, 0.6))


@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name):
    text = write_action(BOX, name, FRAME)
    found = read_action(f"Sure: {text}" if name != "ui-tars" else text, name, FRAME)
    assert found is not None and found.action == "click"
    assert found.point == pytest.approx(BOX.point, abs=0.011)
    if FORMATS[name].boxes:
        assert found.box == pytest.approx(BOX.box, abs=0.006)
    gone = read_action(write_action(Action(box=None), name, FRAME), name, FRAME)
    assert gone is not None and gone.box is None


@pytest.mark.parametrize(
    ("name", "text", "point"),
    [
        ("seeclick", "(0.49,0.40)", (0.49, 0.40)),
        ("os-atlas-7b", "<|object_ref_start|>language switch<|object_ref_end|><|box_start|>(576,12),(592,42)<|box_end|>", (0.584, 0.027)),
        ("uground", "(672, 336)", (0.5, 0.5)),
        ("showui", "[0.29, 0.54]", (0.29, 0.54)),
        ("qwen2.5-vl", '<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [672, 168]}}\n</tool_call>', (0.5, 0.25)),
        ("qwen2.5-vl", '{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [0, 0, 1344, 672]}}', (0.5, 0.5)),
        ("internvl", "button[[100, 200, 300, 400]]", (0.2, 0.3)),
        ("holo1.5", "Click(672, 336)", (0.5, 0.5)),
        ("ui-tars", "Thought: The search box.\nAction: click(start_box='(235,512)')", (0.235, 0.512)),
        ("ui-tars", "Action: left_double(start_box='<point>235 512</point>')", None),
    ],
)
def test_published_outputs(name, text, point):
    found = read_action(text, name, FRAME)
    if point is None:
        assert found is None or found.point is None or found.action == "double_click"
    else:
        assert found is not None and found.point == pytest.approx(point, abs=1e-9)


def test_points_of_the_newer_ui_tars():
    found = read_action("Action: left_double(<point>235 512</point>)", "ui-tars")
    assert found is not None and found.action == "double_click" and found.point == pytest.approx((0.235, 0.512))


@pytest.mark.parametrize("name", ["qwen2.5-vl", "ui-tars"])
def test_typed_text_survives(name):
    text = "it's a \\ \"test\"\nof two lines"
    found = read_action(write_action(Action("type", (0.1, 0.2, 0.1, 0.2), text), name, FRAME), name, FRAME)
    assert found is not None and (found.action, found.text) == ("type", text)


@pytest.mark.parametrize("name", FORMATS)
def test_nonsense_is_no_action(name):
    assert read_action("I am a screen.", name, FRAME) is None
    refused = read_action("The element is not on the screen.", name, FRAME)
    assert refused is not None and refused.box is None


def test_wrong_requests():
    with pytest.raises(OptionError, match="seeclick"):
        write_action(BOX, "peekaboo")
    with pytest.raises(OptionError, match="frame"):
        write_action(BOX, "uground")
    with pytest.raises(OptionError, match="form"):
        action_schema(form="circle")


def test_data():
    assert Action.from_data(BOX.to_data()).box == pytest.approx(BOX.box)
    assert Action.from_data({"action": "hover", "point": [500, 250]}).point == (0.5, 0.25)
    assert Action.from_data({"action": "hover", "bbox": None}).box is None and Action(box=None).to_data()["bbox"] is None
    assert BOX.pixels((200, 100)) == pytest.approx((50, 50, 70, 60))
    assert [thousandths(v) for v in (-0.1, 0.12345, 1.7)] == [0, 123, 1000]
