"""From filled grounding scaffolds to results: for the embedded model, which points, and for others, which write numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vision.reading import Reading
from vision.tokens import THING
from vlm.grounding.actions import Action, thousandths
from vlm.metrics import box_iou
from vlm.results import Box, Candidate, Result

#: What pocket's backbone fills in for a grounding request; the box is where its copy head points.
POINTING_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"enum": ["click", "type", "hover", "select"]},
        "target": {"type": "string", "maxLength": 9},
    },
    "required": ["action", "target"],
}
#: What models that write numbers are told.
REQUEST = (
    "{instruction}\nAnswer with one JSON object: the action, the box of the element as [left, top, right, bottom] in thousandths of the "
    "picture's width and height, null if it is not on this screen, and the text to type, null for none."
)


def pointed(result: Result, reading: Reading, places: Sequence[tuple[Box, float]], count: int, least: float) -> Result:
    """Action and box from what pocket filled in.

    Args:
        result: of the scaffold of POINTING_SCHEMA. places: what its target may be, with probabilities.
        count: candidates to give. least: confidence below which nothing counts as found.
    """
    target = result.fields.get("/target")
    action = result.data.get("action") if isinstance(result.data, dict) else None
    sure = result.fields["/action"].confidence if "/action" in result.fields else 0.0
    candidates = merged([(widget_around(box, reading), chance) for box, chance in places])[:count]
    if target is None or target.box is None or min(sure, target.confidence) < least:
        data = {"action": action, "bbox": None}
        return replace(result, data=data, text=json.dumps(data), status="partial", confidence=0.0, fields={}, candidates=candidates)
    box = widget_around(target.box, reading)
    width, height = reading.size
    bbox = [thousandths(v / side) for v, side in zip(box, (width, height, width, height), strict=True)]
    data = {"action": action, "bbox": bbox}
    fields = {
        "/action": result.fields["/action"],
        "/bbox": replace(target, value=bbox, box=box, pointer="/bbox"),
    }
    found = replace(result, data=data, text=json.dumps(data), box=box, fields=fields, confidence=min(sure, target.confidence), status="ok")
    return replace(found, candidates=candidates)


def written(result: Result, size: tuple[int, int], draws: Sequence[Result], count: int, least: float) -> Result:
    """Action and box from the numbers that a model wrote, with candidates from further draws."""
    action = Action.from_data(result.data)
    box = action.pixels(size)
    places = [Action.from_data(draw.data).pixels(size) for draw in draws]
    candidates = merged([(place, 1 / len(places)) for place in places if place is not None], overlap=0.5)[:count]
    if box is None or result.confidence < least:
        data = {**result.data, "bbox": None}
        return replace(result, data=data, text=json.dumps(data, ensure_ascii=False), status="partial", candidates=candidates)
    return replace(result, box=box, candidates=candidates)


def merged(places: Sequence[tuple[Box, float]], overlap: float = 0.999) -> tuple[Candidate, ...]:
    """Places that are the same (that overlap so much) as one, with their probabilities together; the likeliest first."""
    found: list[tuple[Box, float]] = []
    for box, chance in places:
        at = next((i for i, (other, _) in enumerate(found) if other == box or box_iou(other, box) >= overlap), None)
        if at is None:
            found.append((box, chance))
        else:
            found[at] = (found[at][0], found[at][1] + chance)
    return tuple(Candidate(box, min(chance, 1.0)) for box, chance in sorted(found, key=lambda f: -f[1]))


def widget_around(box: Box, reading: Reading) -> Box:
    """The smallest widget found that holds the middle of `box`, else the box itself."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    best, size = box, float("inf")
    tokens = reading.tokens
    for i in range(len(tokens)):
        if tokens.kind[i] != THING:
            continue
        x0, y0, x1, y1 = tokens.boxes[i].tolist()
        area = (x1 - x0) * (y1 - y0)
        if x0 <= cx <= x1 and y0 <= cy <= y1 and area < size:
            best, size = (x0, y0, x1, y1), area
    return best
