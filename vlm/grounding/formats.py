"""Actions in the notations of other grounding models, read and written.

Coordinates are relative (0..1 or 0..1000) or pixels; pixels are those of `frame`, the width and height of the picture as that
model saw it (resized, for Qwen2.5-VL and UGround). Reading is forgiving about what surrounds the numbers, as the published
evaluation scripts are, and gives None for what cannot be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm.errors import OptionError
from vlm.grounding.actions import Action
from vlm.results import Box

Frame = tuple[float, float]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_REFUSAL = re.compile(r"\b(?:none|null|not (?:found|visible|present|on (?:this|the) screen)|no such|does not exist|cannot find)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """A notation.

    Attributes:
        name: of the model. scale: what 1 (the whole side) is written as; None: pixels of the frame.
        write, read: (action, width and height of 1) -> text, and back (None: not readable).
        boxes: whether it can say boxes; else the middle is written.
    """

    name: str
    scale: float | None
    write: Callable[[Action, Frame], str]
    read: Callable[[str, Frame], Action | None]
    boxes: bool = False


def write_action(action: Action, name: str, frame: Frame | None = None) -> str:
    """An action in a model's notation; 'none' where it is not on this screen. OptionError: unknown name, no frame."""
    form = _format(name)
    return form.write(action, _unit(form, frame))


def read_action(text: str, name: str, frame: Frame | None = None) -> Action | None:
    """The action a model wrote, with an empty box where it says that there is no such thing; None where it cannot be read."""
    form = _format(name)
    found = form.read(text, _unit(form, frame))
    if found is None and _REFUSAL.search(text):
        return Action(box=None)
    return found


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise OptionError(f"unknown format {name!r}", remedy=f"use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _unit(form: Format, frame: Frame | None) -> Frame:
    if form.scale is not None:
        return (form.scale, form.scale)
    if frame is None:
        raise OptionError(f"{form.name} writes pixels", remedy="give frame, the width and height of the picture as the model saw it")
    return frame


def _numbers(text: str, unit: Frame) -> Box | None:
    """The first four numbers, or two, as shares of the unit."""
    found = [float(n) for n in _NUMBER.findall(text)]
    if len(found) < 2:
        return None
    found = found[:4] if len(found) >= 4 else found[:2] * 2
    x0, y0, x1, y1 = (v / u for v, u in zip(found, (*unit, *unit), strict=True))
    return (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


def _plain(template: str, digits: int | None, box_template: str | None = None, name: str = "", scale: float | None = 1.0) -> Format:
    """A notation of two or four numbers in brackets. digits: behind the point, None for whole numbers."""

    def shown(values: tuple[float, ...], unit: Frame) -> list[str]:
        pairs = zip(values, (*unit, *unit), strict=False)
        return [f"{v * u:.{digits}f}" if digits is not None else str(round(v * u)) for v, u in pairs]

    def write(action: Action, unit: Frame) -> str:
        if action.box is None or action.point is None:
            return "none"
        if box_template is not None:
            return box_template.format(*shown(action.box, unit))
        return template.format(*shown(action.point, unit))

    def read(text: str, unit: Frame) -> Action | None:
        box = _numbers(text, unit)
        return None if box is None else Action(box=box)

    return Format(name, scale, write, read, box_template is not None)


def _qwen_write(action: Action, unit: Frame) -> str:
    if action.point is None:
        return "none"
    names = {"click": "left_click", "hover": "mouse_move", "select": "left_click"}
    place = [round(v * u) for v, u in zip(action.point, unit, strict=True)]
    arguments: dict[str, Any] = {"action": names.get(action.action, action.action), "coordinate": place}
    if action.text is not None:
        arguments["text"] = action.text
    return f"<tool_call>\n{json.dumps({'name': 'computer_use', 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def _qwen_read(text: str, unit: Frame) -> Action | None:
    match = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        arguments = json.loads(match[0])["arguments"] if match else {}
        place = [float(v) for v in arguments["coordinate"]]
    except (ValueError, KeyError, TypeError):
        return None
    box = _numbers(" ".join(f"{v:f}" for v in place), unit)
    names = {"left_click": "click", "mouse_move": "hover"}
    name = str(arguments.get("action", "click"))
    typed = arguments.get("text")
    return None if box is None else Action(names.get(name, name), box, typed if isinstance(typed, str) else None)


_TARS = {"click": "click", "select": "click", "hover": "hover", "type": "type", "double_click": "left_double", "right_click": "right_single"}


def _tars_write(action: Action, unit: Frame) -> str:
    if action.point is None:
        return "Thought: It is not on this screen.\nAction: call_user()"
    place = f"({round(action.point[0] * unit[0])},{round(action.point[1] * unit[1])})"
    if action.action == "type":
        typed = (action.text or "").replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return f"Action: click(start_box='{place}')\n\ntype(content='{typed}')"
    return f"Action: {_TARS.get(action.action, action.action)}(start_box='{place}')"


def _tars_read(text: str, unit: Frame) -> Action | None:
    call = re.search(r"Action:\s*(\w+)\((.*)", text, re.DOTALL)
    if call is None:
        return None
    if call[1] == "call_user":
        return Action(box=None)
    place = re.search(r"start_box='([^']*)'|<point>([^<]*)</point>", call[2])
    box = _numbers((place[1] or place[2]) if place else "", unit)
    typed = re.search(r"type\(content='((?:[^'\\]|\\.)*)'\)", text)
    back = {"left_double": "double_click", "right_single": "right_click"}
    content = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], typed[1]) if typed else None
    return None if box is None else Action("type" if typed else back.get(call[1], call[1]), box, content)


def _named(*forms: Format) -> dict[str, Format]:
    return {form.name: form for form in forms}


#: By model.
FORMATS = _named(
    _plain("({},{})", 2, name="seeclick"),
    _plain("", 2, "({},{},{},{})", name="seeclick-bbox"),
    _plain("({}, {})", 1, name="os-atlas-4b", scale=1000.0),
    _plain("", None, "<|box_start|>({},{}),({},{})<|box_end|>", name="os-atlas-7b", scale=1000.0),
    _plain("({}, {})", None, name="uground", scale=None),
    _plain("[{}, {}]", 2, name="showui"),
    _plain("", None, "({},{}),({},{})", name="qwen2-vl", scale=1000.0),
    Format("qwen2.5-vl", None, _qwen_write, _qwen_read),
    _plain("", None, "[[{}, {}, {}, {}]]", name="internvl", scale=1000.0),
    _plain("", None, "[[{},{},{},{}]]", name="cogagent", scale=1000.0),
    _plain("({}, {})", None, name="aria-ui", scale=1000.0),
    _plain("Click({}, {})", None, name="holo1.5", scale=None),
    Format("ui-tars", 1000.0, _tars_write, _tars_read),
)
