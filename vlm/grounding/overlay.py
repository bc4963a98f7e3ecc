"""Boxes drawn on a picture, to look at what a model found."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vlm.results import Box, Result

COLORS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#aa6e28", "#800000")


def boxes_of(result: Result) -> list[tuple[Box, str]]:
    """The boxes of a result with what to write beside them: fields, candidates, items and lines, whatever it has."""
    found = [(info.box, f"{pointer} {info.confidence:.2f}") for pointer, info in result.fields.items() if info.box is not None]
    found += [(c.box, f"{i + 1}: {c.confidence:.2f}") for i, c in enumerate(result.candidates)]
    found += [(item.box, item.kind) for item in result.items] + [(line.box, "") for line in result.lines]
    if not found and result.box is not None:
        found = [(result.box, f"{result.confidence:.2f}")]
    return found


def overlay(image: Image.Image, boxes: Result | Sequence[tuple[Box, str]]) -> Image.Image:
    """A copy of a picture with boxes (pixels) and labels drawn on it; what sticks out is clipped."""
    out = image.convert("RGB")
    out = out.copy() if out is image else out
    draw = ImageDraw.Draw(out)
    width = max(1, round(min(out.size) / 300))
    font = ImageFont.load_default(max(10, round(min(out.size) / 50)))
    for index, (box, label) in enumerate(boxes_of(boxes) if isinstance(boxes, Result) else boxes):
        color = COLORS[index % len(COLORS)]
        x0, y0 = (min(max(v, 0.0), side - 1) for v, side in zip(box[:2], out.size, strict=True))
        x1, y1 = (min(max(v, low), side - 1) for v, low, side in zip(box[2:], (x0, y0), out.size, strict=True))
        draw.rectangle((x0, y0, x1, y1), outline=color, width=width)
        if label:
            left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
            tall, wide = bottom - top, right - left
            y = y0 - tall - 4 if y0 >= tall + 4 else y1 + 2
            x = min(x0, max(out.size[0] - wide - 4, 0))
            draw.rectangle((x, y, x + wide + 4, y + tall + 4), fill=color)
            draw.text((x + 2 - left, y + 2 - top), label, fill="white", font=font)
    return out
