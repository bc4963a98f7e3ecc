"""Scenes of coloured shapes: drawn by us, or taken from the easy-VQA (MIT) and NLVR (CC-BY-4.0) training parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from examples.pocket.facts import Rng
from examples.pocket.page import Page, degrade
from examples.pocket.sample import Query, Sample, Thing, Value
from vlm.scenes import NUMBERS, phrase

PALETTE = {
    "black": (15, 15, 15), "gray": (128, 128, 128), "red": (225, 35, 35), "green": (25, 140, 45), "blue": (25, 60, 225), "yellow": (235, 215, 25),
    "teal": (0, 135, 135), "brown": (140, 75, 30), "orange": (245, 140, 20), "purple": (130, 40, 160), "pink": (250, 150, 190),
}  # fmt: skip
VQA_COLORS = ("black", "gray", "red", "green", "blue", "yellow", "teal", "brown")
SHAPES = ("circle", "rectangle", "triangle", "square", "star", "diamond")


def free(task: str, instruction: str, answer: str, reason: list[float] | list[list[float] | None] | None = None) -> Query:
    """A query answered by free text that stands nowhere on the page.

    `reason`: the box of the thing the answer is about, one box (or None) for each character, an empty list where no single
    thing is the reason, None where nothing on the page is.
    """
    boxes: list[Any] = list(reason) if reason and len(reason) == len(answer) and not isinstance(reason[0], float) else [reason] * len(answer)
    return Query(task, instruction, None, answer, {"": Value(answer, [None] * len(answer), boxes)})


def _outline(kind: str, x: float, y: float, w: float, h: float) -> list[tuple[float, float]]:
    if kind == "triangle":
        return [(x + w / 2, y), (x + w, y + h), (x, y + h)]
    if kind == "diamond":
        return [(x + w / 2, y), (x + w, y + h / 2), (x + w / 2, y + h), (x, y + h / 2)]
    points = []
    for i in range(10):
        r = 0.5 if i % 2 == 0 else 0.22
        angle = -np.pi / 2 + i * np.pi / 5
        points.append((x + w / 2 + w * r * np.cos(angle), y + h / 2 + h * r * np.sin(angle)))
    return points


def draw_shape(image: Image.Image, kind: str, box: list[float], color: tuple[int, int, int]) -> None:
    """One antialiased shape that fills its box."""
    scale = 4
    x0, y0, x1, y1 = box
    width, height = int(np.ceil(x1 - x0)) + 2, int(np.ceil(y1 - y0)) + 2
    mask = Image.new("L", (width * scale, height * scale), 0)
    pen = ImageDraw.Draw(mask)
    fx, fy = x0 - int(x0), y0 - int(y0)
    x, y, w, h = fx * scale, fy * scale, (x1 - x0) * scale, (y1 - y0) * scale
    if kind == "circle":
        pen.ellipse((x, y, x + w, y + h), fill=255)
    elif kind in ("rectangle", "square"):
        pen.rectangle((x, y, x + w - 1, y + h - 1), fill=255)
    else:
        pen.polygon(_outline(kind, x, y, w, h), fill=255)
    small = mask.resize((width, height), Image.Resampling.BOX)
    image.paste(Image.new("RGB", (width, height), color), (int(x0), int(y0)), small)


def _tint(name: str, rng: Rng) -> tuple[int, int, int]:
    base = np.array(PALETTE[name]) + rng.integers(-18, 19, 3)
    r, g, b = np.clip(base, 0, 255).tolist()
    return int(r), int(g), int(b)


def _place(rng: Rng, kind: str, width: int, height: int, taken: list[list[float]]) -> list[float] | None:
    for _ in range(20):
        w = float(rng.uniform(12, min(48, width * 0.6)))
        h = w if kind != "rectangle" else float(rng.uniform(12, min(48, height * 0.6)))
        if kind == "rectangle" and 0.8 < w / h < 1.25:
            h = max(10.0, w * 0.55)
        x, y = float(rng.uniform(0, width - w)), float(rng.uniform(0, height - h))
        box = [x, y, x + w, y + h]
        if all(box[2] + 3 < t[0] or t[2] + 3 < box[0] or box[3] + 3 < t[1] or t[3] + 3 < box[1] for t in taken):
            return box
    return None


def make(rng: Rng, held_out: bool = False, kind: str | None = None) -> Sample:
    """A drawn scene: 'single' in the manner of easy-VQA, or 'several' shapes, with questions and a caption."""
    kind = kind or str(rng.choice(["single", "several", "several"]))
    single = kind == "single"
    width = 64 if single else int(rng.integers(8, 25)) * 8
    height = 64 if single else int(rng.integers(8, 25)) * 8
    light = int(rng.integers(200, 256))
    tint = rng.integers(-15, 16, 3) if rng.random() < 0.5 else np.zeros(3, int)
    ground = np.clip(light + tint, 0, 255)
    page = Page(width, height, (int(ground[0]), int(ground[1]), int(ground[2])))
    things: list[Thing] = []
    for _ in range(1 if single else int(rng.integers(1, 7))):
        shape = str(rng.choice(SHAPES[:3] if single else SHAPES, p=None))
        color = str(rng.choice(VQA_COLORS if single else list(PALETTE)))
        box = _place(rng, shape, width, height, [t.box for t in things])
        if box is not None:
            draw_shape(page.image, shape, box, _tint(color, rng))
            things.append(Thing(shape, color, box))
    queries = [*rng.permutation(np.array(vqa_questions(things[0], rng), object))[:3]] if single else []
    queries += count_questions(things, rng)
    queries.append(captioned(things))
    if rng.random() < 0.5:
        queries.append(described(things[0], rng) if single and things else listed(things, rng))
    return Sample(page, None, things, queries, "scene")


def vqa_questions(thing: Thing, rng: Rng) -> list[Query]:
    """Questions in the manner of easy-VQA about the only shape of a picture."""
    out = []
    shape_questions = ["what shape is in the image?", "what shape does the image contain?", "what shape is present?", f"what is the {thing.color} shape?"]
    color_questions = [f"what color is the {thing.kind}?", "what color is the shape?", f"what is the color of the {thing.kind}?", "what is the color of the shape?"]
    out.append(free("ask", str(rng.choice(shape_questions)), thing.kind, thing.box))
    out.append(free("ask", str(rng.choice(color_questions)), str(thing.color), thing.box))
    for _ in range(3):
        if rng.random() < 0.5:
            named = str(thing.color) if rng.random() < 0.45 else str(rng.choice(VQA_COLORS))
            what, there = f"{named} shape", named == thing.color
        else:
            what = thing.kind if rng.random() < 0.45 else str(rng.choice(SHAPES[:3]))
            there = what == thing.kind
        positive = rng.random() < 0.5
        forms = (
            [f"is a {what} present?", f"is there a {what}?", f"does the image contain a {what}?", f"is there a {what} in the image?"]
            if positive
            else [f"does the image not contain a {what}?", f"is there not a {what}?", f"is there not a {what} in the image?", f"is no {what} present?"]
        )
        out.append(free("ask", str(rng.choice(forms)), "yes" if there == positive else "no", thing.box))
    return out


def count_questions(things: list[Thing], rng: Rng) -> list[Query]:
    """How many, is there, what is left of...: questions of our own about several shapes."""
    out = []
    kind, color = str(rng.choice(SHAPES)), str(rng.choice(list(PALETTE)))
    if things and rng.random() < 0.7:
        chosen = things[rng.integers(len(things))]
        kind, color = chosen.kind, str(chosen.color)
    same_kind, same_color = sum(t.kind == kind for t in things), sum(t.color == color for t in things)
    out.append(free("ask", f"how many {kind}s are there?", str(same_kind), []))
    if rng.random() < 0.5:
        out.append(free("ask", f"how many {color} shapes are there?", str(same_color), []))
    else:
        both = [t for t in things if t.kind == kind and t.color == color]
        out.append(free("ask", f"is there a {color} {kind}?", "yes" if both else "no", both[0].box if both else None))
    if same_kind == 1 and rng.random() < 0.5:
        (only,) = [t for t in things if t.kind == kind]
        out.append(free("ask", f"what color is the {kind}?", str(only.color), only.box))
    return out


def in_order(things: list[Thing]) -> list[Thing]:
    """From top to bottom and left to right, about as the tower reports them."""
    return sorted(things, key=lambda t: (round((t.box[1] + t.box[3]) / 2 / 16), t.box[0]))


def caption(things: list[Thing]) -> str:
    """'two red circles and a black square', in the order in which they are first seen."""
    return str(captioned(things).answer)


def captioned(things: list[Thing]) -> Query:
    """The query for a caption; each phrase is about the first of its things."""
    groups: dict[tuple[str, str], list[Thing]] = {}
    for t in in_order(things):
        groups.setdefault((str(t.color), t.kind), []).append(t)
    parts: list[tuple[str, list[float]]] = []
    for (color, kind), members in groups.items():
        parts.append((phrase(f"{color} {kind}", len(members)), members[0].box))
    text, boxes = "", []
    for i, (words, box) in enumerate(parts):
        link = "" if not i else " and " if i == len(parts) - 1 else ", "
        text += link + words
        boxes += [None] * len(link) + [box] * len(words)
    return free("caption", "Describe the image.", text or "nothing", boxes or None)


#: What shape and colour are called in schemas.
_KEYS = {"kind": ("shape", "shape", "kind", "type", "form"), "color": ("color", "color", "colour")}


def _parts(rng: Rng) -> dict[str, tuple[str, dict[str, Any]]]:
    """Key and schema of one or both of shape and colour, in any order."""
    out = {}
    for part in rng.permutation(["kind", "color"])[: 2 if rng.random() < 0.85 else 1]:
        names = list(SHAPES if part == "kind" else PALETTE)
        free_text = {"type": ["string", "null"], "maxLength": 12}
        out[str(part)] = str(rng.choice(_KEYS[part])), {"enum": [*names, None]} if rng.random() < 0.6 else free_text
    return out


def _named(thing: Thing, part: str) -> Value:
    text = str(getattr(thing, part))
    return Value(text, [None] * len(text), [thing.box] * len(text))


def described(thing: Thing, rng: Rng) -> Query:
    """The only thing of a picture as an object of its shape and colour."""
    parts = _parts(rng)
    values: dict[str, Value | None] = {f"/{key}": _named(thing, part) for part, (key, _) in parts.items()}
    answer = {key: str(getattr(thing, part)) for part, (key, _) in parts.items()}
    schema = {"type": "object", "properties": dict(parts.values()), "required": list(answer)}
    return Query("extract", "", schema, answer, values)


def listed(things: list[Thing], rng: Rng) -> Query:
    """All things as an array of objects, :func:`in_order`."""
    parts, name = _parts(rng), str(rng.choice(["objects", "objects", "shapes", "things", "items"]))
    ordered = in_order(things)
    if rng.random() < 0.6:  # the enums name what may be there, not all there is
        for part, (key, told) in parts.items():
            if "enum" in told:
                seen = {str(getattr(t, part)) for t in things} | {str(rng.choice(told["enum"][:-1])) for _ in range(2)}
                parts[part] = key, {"enum": [*sorted(seen), None]}
    most = len(things) + int(rng.integers(0, 4))
    values: dict[str, Value | None] = {}
    for i in range(max(most, 1)):
        for part, (key, _) in parts.items():
            values[f"/{name}/{i}/{key}"] = _named(ordered[i], part) if i < len(ordered) else None
    item = {"type": "object", "properties": dict(parts.values()), "required": [key for key, _ in parts.values()]}
    schema = {"type": "object", "properties": {name: {"type": "array", "maxItems": max(most, 1), "items": item}}, "required": [name]}
    answer = {name: [{key: str(getattr(t, part)) for part, (key, _) in parts.items()} for t in ordered]}
    return Query("extract", "", schema, answer, values)


def load_rows(pack: Path, split: str) -> list[dict[str, Any]]:
    """Rows of a pack's manifest that belong to `split`."""
    with (pack / "manifest.jsonl").open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row.get("split") == split]


def real_sample(pack: Path, row: dict[str, Any], rng: Rng) -> Sample:
    """A picture of easy-VQA or NLVR with its labelled objects; questions from the pack and of our own."""
    image = np.asarray(Image.open(pack / row["file"]).convert("RGB"))
    page = Page(row["width"], row["height"])
    if "object" in row:
        o = row["object"]
        things = [Thing(o["shape"], o["color"], [float(v) for v in o["bbox"]])]
        picked = rng.permutation(len(row["qa"]))[:4]
        queries = [free("ask", row["qa"][i]["question"], row["qa"][i]["answer"], things[0].box) for i in picked]
        queries.append(captioned(things) if rng.random() < 0.6 else described(things[0], rng))
        return Sample(page, image, things, queries, "easy_vqa")
    things = [Thing(o["type"], o["color"], [float(v) for v in o["bbox"]]) for box in row["boxes"] for o in box]
    queries = []
    if row["sentence"] and row["label"] is not None:
        queries += [free("ask", f"true or false: {row['sentence']}", "true" if row["label"] else "false", [])] * 2
    sentence, truth = nlvr_sentence(row["boxes"], rng)
    queries.append(free("ask", f"true or false: {sentence}", "true" if truth else "false", []))
    queries.append(count_questions(things, rng)[0])
    if rng.random() < 0.5:
        queries.append(listed(things, rng))
    return Sample(page, image, things, queries, "nlvr")


def nlvr_sentence(boxes: list[list[dict[str, Any]]], rng: Rng) -> tuple[str, bool]:
    """A sentence of our own about three boxes, and whether it is true."""
    color, kind = str(rng.choice(["black", "blue", "yellow"])), str(rng.choice(["circle", "square", "triangle"]))
    n = int(rng.integers(1, 6))
    word = str(rng.choice([NUMBERS[n], str(n)]))
    what, test = [
        (f"{color} item", lambda o: o["color"] == color),
        (kind, lambda o: o["type"] == kind),
        (f"{color} {kind}", lambda o: o["color"] == color and o["type"] == kind),
    ][rng.integers(3)]
    per_box = [sum(map(test, box)) for box in boxes]
    plural = what if n == 1 else f"{what}s"
    forms: list[tuple[str, bool]] = [
        (f"There is a box with exactly {word} {plural}", n in per_box),
        (f"There is a box with at least {word} {plural}", max(per_box) >= n),
        (f"There are exactly {word} {plural}" if n > 1 else f"There is exactly one {what}", sum(per_box) == n),
        (f"There are at least {word} {plural}" if n > 1 else f"There is at least one {what}", sum(per_box) >= n),
        (f"There is a {what}", sum(per_box) > 0),
        (f"There is a box without a {what}", min(per_box) == 0),
        (f"There is a box with {word} items", any(len(box) == n for box in boxes)),
        (f"There is a box with only {color} items", any(box and all(o["color"] == color for o in box) for box in boxes)),
        (f"All boxes contain a {what}", min(per_box) > 0),
        (f"There is a box with {word} items of which one is {color}", any(len(b) == n and sum(o["color"] == color for o in b) == 1 for b in boxes)),
        (f"There is a {what} touching the wall", any(test(o) and _touches(o, i) for i, box in enumerate(boxes) for o in box)),
    ]
    sentence, truth = forms[rng.integers(len(forms))]
    return sentence + ("." if rng.random() < 0.5 else ""), bool(truth)


def _touches(o: dict[str, Any], box: int) -> bool:
    """Whether an NLVR object touches an edge of its box (boxes are 100 px wide, 50 px apart)."""
    x0, y0, x1, y1 = o["bbox"]
    left = box * 150
    return bool(x0 <= left or x1 >= left + 100 or y0 <= 0 or y1 >= 100)


def picture(sample: Sample, rng: Rng) -> np.ndarray:
    """The sample's picture, slightly degraded if it was drawn by us."""
    if sample.image is None:
        assert sample.page is not None
        sample.image = degrade(sample.page.image, rng, float(rng.choice([0.0, 0.0, 0.15])))
    return sample.image
