"""What pocket's tower says by itself: lines of text, and things."""

from __future__ import annotations

from vision.reader import ReaderConfig
from vision.reading import Reading
from vision.tokens import THING, text_of
from vlm.results import Item, Line, Result, Usage


def lines_of(reading: Reading, config: ReaderConfig) -> Result:
    """The text of a picture, with its lines."""
    lines = tuple(Line(text, box, sure) for text, box, sure in text_of(reading.tokens, config.alphabet))
    total = sum(len(line.text) for line in lines)
    sure = sum(line.confidence * len(line.text) for line in lines) / total if total else 1.0
    return Result("\n".join(line.text for line in lines), lines=lines, confidence=sure, usage=Usage(tokens=total))


def items_of(reading: Reading, config: ReaderConfig) -> Result:
    """The things on a picture, from top to bottom; its text names them."""
    tokens, items = reading.tokens, []
    for i in range(len(tokens)):
        if tokens.kind[i] != THING:
            continue
        x0, y0, x1, y1 = tokens.boxes[i].tolist()
        color = config.colors[tokens.color[i] - 1] if tokens.color[i] else None
        items.append(Item(config.things[tokens.classes[i, 0] - 1], color, (x0, y0, x1, y1), float(tokens.score[i])))
    sure = min((item.confidence for item in items), default=1.0)
    return Result(", ".join(f"{i.color or ''} {i.kind}".strip() for i in items), items=tuple(items), confidence=sure)
