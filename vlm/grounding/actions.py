"""An action on a screen, and the schema that makes a model write one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlm.errors import OptionError
from vlm.results import Box

ACTIONS = ("click", "type", "hover", "select")
#: Coordinates are whole numbers of thousandths of the picture's width and height.
SCALE = 1000


@dataclass(frozen=True)
class Action:
    """What to do, and where.

    Attributes:
        action: one of a schema's actions, 'click' where a format does not say.
        box: x0, y0, x1, y1 as shares of width and height, 0..1; a point is a box without size; None: not on this screen.
        text: what to type. confidence: 0..1.
    """

    action: str = "click"
    box: Box | None = None
    text: str | None = None
    confidence: float = 1.0

    @property
    def point(self) -> tuple[float, float] | None:
        """The middle of the box."""
        return None if self.box is None else ((self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2)

    @classmethod
    def at(cls, x: float, y: float, action: str = "click", text: str | None = None) -> Action:
        """A point."""
        return cls(action, (x, y, x, y), text)

    @classmethod
    def from_data(cls, data: Mapping[str, Any], confidence: float = 1.0) -> Action:
        """From data that satisfies :func:`action_schema`."""
        place = data.get("bbox", data.get("point"))
        if place is None:
            box = None
        else:
            x0, y0, x1, y1 = (v / SCALE for v in (place if len(place) == 4 else (*place, *place)))
            box = (x0, y0, x1, y1)
        return cls(str(data.get("action", "click")), box, data.get("text"), confidence)

    def to_data(self, form: Literal["bbox", "point"] = "bbox") -> dict[str, Any]:
        """As in :func:`action_schema`."""
        place = self.box if form == "bbox" else self.point
        return {"action": self.action, form: None if place is None else [thousandths(v) for v in place], "text": self.text}

    def pixels(self, size: tuple[int, int]) -> Box | None:
        """The box in pixels of a picture of that width and height."""
        width, height = size
        return None if self.box is None else (self.box[0] * width, self.box[1] * height, self.box[2] * width, self.box[3] * height)


def thousandths(share: float) -> int:
    """A share of a side as a coordinate."""
    return min(SCALE, max(0, round(SCALE * share)))


def action_schema(
    actions: Sequence[str] = ACTIONS, form: Literal["bbox", "point"] = "bbox", *, may_be_absent: bool = True, text: bool = True
) -> dict[str, Any]:
    """{action, bbox or point, text} with whole numbers from 0 to 1000, relative to the full picture.

    The far corner of a box may not lie before the near one, so the near one is decoded first (`x-at-least`): anchor before
    extent, as in the grounding work on LLaDA-V (arXiv:2603.26211). `may_be_absent` lets the place be null: not on this screen.
    """
    if form not in ("bbox", "point"):
        raise OptionError(f"unknown form {form!r}", remedy="use 'bbox' or 'point'")
    number = {"type": "integer", "minimum": 0, "maximum": SCALE}
    places = [number, number] if form == "point" else [number, number, {**number, "x-at-least": 0}, {**number, "x-at-least": 1}]
    place: dict[str, Any] = {"type": "array", "prefixItems": places, "items": False, "minItems": len(places), "maxItems": len(places)}
    properties: dict[str, Any] = {"action": {"enum": list(actions)}, form: {"anyOf": [place, {"type": "null"}]} if may_be_absent else place}
    if text:
        properties["text"] = {"type": ["string", "null"], "maxLength": 64}
    return {"type": "object", "properties": properties, "required": list(properties)}
