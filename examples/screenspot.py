"""Score a model on ScreenSpot, ScreenSpot-v2 or ScreenSpot-Pro from a folder on disk.

``python -m examples.screenspot FOLDER --model CHECKPOINT --limit 100 --overlays out/``

Prints hits by platform and kind. ``--overlays`` writes pictures with what was found in red and the target in blue.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from vlm.grounding.actions import Action
from vlm.grounding.overlay import overlay
from vlm.grounding.screenspot import Item, load_items, score
from vlm.model import DiffusionVLM
from vlm.results import Box, Result


def action_of(result: Result) -> Action | None:
    """A result of ``ground`` as an action; None for a picture that could not be used."""
    return None if result.status == "error" else Action.from_data(result.data, result.confidence)


def draw(item: Item, action: Action | None, file: Path) -> None:
    """A picture with what was found and the target."""
    with Image.open(item.image) as image:
        found = action.pixels(image.size) if action is not None else None
        target = Action(box=item.box).pixels(image.size)
        boxes: list[tuple[Box, str]] = [(box, label) for box, label in ((found, "found"), (target, "target")) if box is not None]
        overlay(image, boxes).save(file)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="checkpoint folder or Hub id; the shipped pocket by default")
    parser.add_argument("--limit", type=int, help="most items, spread evenly")
    parser.add_argument("--overlays", type=Path, help="folder for pictures")
    args = parser.parse_args(argv)
    items = load_items(args.folder)
    if args.limit is not None and len(items) > args.limit:
        items = [items[i * len(items) // args.limit] for i in range(args.limit)]
    model = DiffusionVLM.from_pretrained(args.model)
    actions = []
    for number, item in enumerate(tqdm(items, disable=None)):
        actions.append(action_of(model.ground(item.image, item.instruction, on_error="row")))
        if args.overlays is not None:
            args.overlays.mkdir(parents=True, exist_ok=True)
            draw(item, actions[-1], args.overlays / f"{number:05d}.png")
    for line in score(items, actions):
        print(f"{line.group:24s} {line.accuracy:6.1%}  {line.right} of {line.count}, {line.unreadable} not readable")
    return 0


if __name__ == "__main__":
    sys.exit(main())
