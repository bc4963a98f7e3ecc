"""ScreenSpot, ScreenSpot-v2 and ScreenSpot-Pro from a folder on disk, and their measure.

A target is hit when the predicted point, or the middle of the predicted box, lies inside it. What cannot be read is a miss and
is counted apart as wrong format; where the target is not on the screen (negatives of Pro), only a refusal is right.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.errors import ConfigError
from vlm.grounding.actions import Action
from vlm.results import Box

PLATFORMS = {
    "windows": "desktop", "macos": "desktop", "ios": "mobile", "android": "mobile", "forum": "web", "gitlab": "web", "shop": "web", "tool": "web",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One instruction.

    Attributes:
        image: its file. instruction: what to find. box: the target as shares of the sides, None where there is none.
        platform: desktop, mobile, web, or the group of applications. kind: 'text' or 'icon'.
    """

    image: Path
    instruction: str
    box: Box | None
    platform: str
    kind: str


def load_items(folder: Path) -> list[Item]:
    """All items of a benchmark's folder: its JSON files, wherever they lie in it, and pictures by name.

    Pixels in ScreenSpot and v2 are x, y, width, height; in Pro, which gives the size of the picture, two corners. Numbers up
    to 1 are shares, as two corners.

    Raises:
        ConfigError: no items, a picture that is missing, a box that is none.
    """
    pictures = {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")}
    items = []
    for file in sorted(folder.rglob("*.json")):
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"is not JSON ({error})", source=str(file), remedy="fetch the benchmark again") from error
        if isinstance(rows, list):
            items += [_item(row, pictures, file) for row in rows if isinstance(row, dict) and "instruction" in row]
    if not items:
        raise ConfigError("holds no items of ScreenSpot", source=str(folder), remedy="name the folder with its JSON files and pictures")
    return items


def _item(row: dict[str, Any], pictures: dict[str, Path], file: Path) -> Item:
    name = str(row.get("img_filename", ""))
    path = pictures.get(Path(name).name)
    if path is None:
        raise ConfigError(f"names the picture {name!r}, which is not in the folder", source=str(file), remedy="add the pictures")
    source = str(row.get("platform") or row.get("data_source") or "")
    platform = str(row.get("group") or PLATFORMS.get(source.lower(), source or "all"))
    kind = str(row.get("ui_type") or row.get("data_type") or "")
    box = None if row.get("gt_type") == "negative" else _box(row, path, file)
    return Item(path, str(row["instruction"]), box, platform, kind)


def _box(row: dict[str, Any], path: Path, file: Path) -> Box:
    try:
        a, b, c, d = (float(v) for v in row["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"has an item without a box of four numbers ({row.get('bbox')!r})", source=str(file), remedy="fetch the benchmark again") from error
    if max(a, b, c, d) <= 1:
        return (a, b, c, d)
    if "img_size" in row:
        width, height = row["img_size"]
    else:
        with Image.open(path) as image:
            width, height = image.size
        c, d = a + c, b + d
    return (a / width, b / height, c / width, d / height)


def is_hit(item: Item, action: Action | None) -> bool:
    """Whether an action (None: could not be read) is right."""
    if action is None:
        return False
    if item.box is None or action.point is None:
        return item.box is None and action.box is None
    x, y = action.point
    return item.box[0] <= x <= item.box[2] and item.box[1] <= y <= item.box[3]


@dataclass(frozen=True)
class Score:
    """Hits of a group: `right` of `count`, `unreadable` of which could not be read."""

    group: str
    right: int
    count: int
    unreadable: int

    @property
    def accuracy(self) -> float:
        """Share of hits."""
        return self.right / max(self.count, 1)


def score(items: Sequence[Item], actions: Iterable[Action | None]) -> list[Score]:
    """Hits of every platform and kind, of every platform, and of all, the last one."""
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for item, action in zip(items, actions, strict=True):
        for group in (f"{item.platform} {item.kind}".strip(), item.platform, "all") if item.kind else (item.platform, "all"):
            counts = tally[group]
            counts[0] += is_hit(item, action)
            counts[1] += 1
            counts[2] += action is None
    order = sorted(tally, key=lambda g: (g == "all", g))
    return [Score(group, *tally[group]) for group in order]
