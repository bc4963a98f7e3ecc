"""Captions of scenes of several things: a scaffold lists them, a sentence says the list.

A free caption of many words is the hardest text there is for a small model that writes all letters at once. The same things as
rows of a scaffold, each a choice among colours and kinds, it fills nearly without fault. The sentence adds no word of its own
but articles, numbers and commas.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from vision.reader import SHAPES, ReaderConfig
from vision.reading import Reading
from vision.tokens import THING
from vlm.results import Result

#: Things up to which a scene is listed.
MOST = 24
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def shapes_in(reading: Reading, config: ReaderConfig) -> int:
    """How many coloured things the tower saw, at most MOST."""
    tokens = reading.tokens
    kinds = [i + 1 for i, name in enumerate(config.things) if name in SHAPES]
    return min(MOST, int(((tokens.kind == THING) & np.isin(tokens.classes[:, 0], kinds)).sum()))


def scene_schema(count: int, config: ReaderConfig) -> dict[str, Any]:
    """Up to `count` things, each of a kind and a colour."""
    kinds = [name for name in config.things if name in SHAPES]
    item = {"type": "object", "properties": {"kind": {"enum": [*kinds, None]}, "color": {"enum": [*config.colors, None]}}, "required": ["kind", "color"]}
    return {"type": "object", "properties": {"objects": {"type": "array", "maxItems": count, "items": item}}, "required": ["objects"]}


def in_words(result: Result) -> Result:
    """A filled scene as a caption: 'two red circles and a black square', in the order in which things are first seen."""
    things: Counter[str] = Counter()
    for thing in result.data["objects"]:
        name = " ".join(str(thing[key]) for key in ("color", "kind") if thing[key] is not None)
        if name:
            things[name] += 1
    phrases = [phrase(name, count) for name, count in things.items()]
    text = ", ".join(phrases[:-1]) + (" and " if len(phrases) > 1 else "") + phrases[-1] if phrases else "nothing"
    return replace(result, text=text, data=None, fields={})


def phrase(name: str, count: int) -> str:
    """'a red circle', 'two red circles'."""
    if count == 1:
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {name}s"
