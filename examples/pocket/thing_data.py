"""Reader pages with objects and widgets: sheets of scenes, and screens.

``python -m examples.pocket.thing_data --out runs/reader_mix --data ../shared/data --pages 1200``
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from examples.pocket import documents, scenes, screens
from examples.pocket.facts import Rng
from examples.pocket.page import Page
from examples.pocket.reader_data import char_targets, stretch, worn
from examples.pocket.sample import Sample, Thing, render
from vision.reader import COLORS, STRIDE, THINGS
from vision.tokens import ANCHOR

_CLASS = {name: i + 1 for i, name in enumerate(THINGS)}
_COLOR = {name: i + 1 for i, name in enumerate(COLORS)}


def thing_targets(things: list[Thing], width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets of the thing heads: classes [h, w], colours [h, w], boxes [4, h, w] as in ``ReaderOutput.thing_boxes``."""
    h, w = height // STRIDE, width // STRIDE
    classes, colors = np.zeros((h, w), np.uint8), np.zeros((h, w), np.uint8)
    boxes = np.zeros((4, h, w), np.float16)
    for t in things:
        x0, y0, x1, y1 = t.box
        ax, cy = x0 + min((x1 - x0) / 2, ANCHOR), (y0 + y1) / 2
        column, row = int(ax // STRIDE), int(cy // STRIDE)
        if not (0 <= column < w and 0 <= row < h):
            continue
        classes[row, column] = _CLASS.get(t.kind, _CLASS["icon:other"])
        colors[row, column] = _COLOR.get(t.color or "", 0)
        boxes[:, row, column] = (
            (x0 - (column * 8 + 4)) / 8, (cy - (row * 8 + 4)) / 8, np.log(max(x1 - x0, 1) / 8), np.log(max(y1 - y0, 1) / 8),
        )  # fmt: skip
    return classes, colors, boxes


def sheet(samples: list[Sample], rng: Rng, width: int, height: int) -> tuple[np.ndarray, list[Thing]]:
    """Pictures set side by side on one page, row by row."""
    shade = int(rng.integers(0, 256))
    page = np.full((height, width, 3), shade, np.uint8)
    things: list[Thing] = []
    x = y = tall = 0
    for sample in samples:
        image = scenes.picture(sample, rng)
        h, w = image.shape[:2]
        if x + w > width:
            x, y, tall = 0, y + tall, 0
        if y + h > height:
            break
        page[y : y + h, x : x + w] = image
        things += [Thing(t.kind, t.color, [t.box[0] + x, t.box[1] + y, t.box[2] + x, t.box[3] + y]) for t in sample.things]
        x, tall = x + w, max(tall, h)
    return page, things


def _arrays(pixels: np.ndarray, page: Page, things: list[Thing]) -> dict[str, np.ndarray]:
    height, width = pixels.shape[:2]
    classes, boxes, blanks = char_targets(page, width, height)
    kinds, colors, thing_boxes = thing_targets(things, width, height)
    return {"pixels": pixels, "classes": classes, "boxes": boxes, "blanks": blanks, "things": kinds, "colors": colors, "thing_boxes": thing_boxes}


def draw(job: tuple[str, int, str]) -> dict[str, np.ndarray]:
    """One page of the kind 'vqa', 'nlvr', 'drawn', 'screen' or 'document' from a seed."""
    kind, seed, root = job
    rng = np.random.default_rng((seed, 77))
    if kind == "screen":
        return _screen(rng)
    if kind == "document":
        return _document(rng)
    if kind == "drawn":
        pixels, things = sheet([scenes.make(rng) for _ in range(40)], rng, 384, 320)
    else:
        pack = Path(root) / ("easy_vqa" if kind == "vqa" else "nlvr")
        rows = _rows(str(pack))
        picked = rng.integers(0, len(rows), 30 if kind == "vqa" else 3)
        size = (384, 320) if kind == "vqa" else (400, 320)
        pixels, things = sheet([scenes.real_sample(pack, rows[i], rng) for i in picked], rng, *size)
    return _arrays(pixels, Page(8, 8), things)


def _window(page: Page, zoom: float, rng: Rng, width: int, height: int) -> tuple[int, int]:
    """Make the page a window of itself, `zoom` times as large; returns the window's corner."""
    stretch(page, max(8, int(page.width * zoom)), max(8, int(page.height * zoom)))
    x, y = (int(rng.integers(min(0, have - want), max(0, have - want) + 1)) for have, want in ((page.width, width), (page.height, height)))
    page.image = page.image.transform((width, height), Image.Transform.EXTENT, (x, y, x + width, y + height), fillcolor=page.background)
    page.draw = ImageDraw.Draw(page.image)
    page.width, page.height = width, height
    for g in page.glyphs():
        g.x0, g.x1, g.y0, g.y1 = g.x0 - x, g.x1 - x, g.y0 - y, g.y1 - y
    return x, y


def _screen(rng: Rng, width: int = 512, height: int = 384) -> dict[str, np.ndarray]:
    """A window of a screen at one of the sizes that screens are shown at."""
    zoom = 1.0 if rng.random() < 0.5 else float(np.exp(rng.uniform(-0.25, 0.6)))
    sample = screens.make(rng)
    page = sample.page
    assert page is not None
    sx, sy = (int(side * zoom) / side for side in (page.width, page.height))
    x, y = _window(page, zoom, rng, width, height)
    for thing in sample.things:
        x0, y0, x1, y1 = thing.box
        thing.box[:] = x0 * sx - x, y0 * sy - y, x1 * sx - x, y1 * sy - y
    pixels = render(sample, rng, float(rng.choice([0.0, 0.0, 0.2])))
    return _arrays(pixels, page, sample.things)


def _document(rng: Rng, width: int = 384, height: int = 320) -> dict[str, np.ndarray]:
    """A window of a document, worn and degraded like a hard reader page: real layouts, with all their empty paper."""
    page = documents.make(rng).page
    assert page is not None
    _window(page, float(rng.uniform(0.75, 1.3)), rng, width, height)
    if rng.random() < 0.4:
        worn(page, rng)
    pixels = page.finish(rng, hardness=float(rng.choice([0.2, 0.6, 1.0])), turn=2.5)
    return _arrays(pixels, page, [])


_CACHE: dict[str, list] = {}


def _rows(pack: str) -> list:
    if pack not in _CACHE:
        _CACHE[pack] = scenes.load_rows(Path(pack), "train")
    return _CACHE[pack]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=300, help="pages per shard")
    parser.add_argument("--kinds", default="vqa,drawn,nlvr,screen,screen,screen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    with multiprocessing.Pool(args.workers) as pool:
        for number, kind in enumerate(args.kinds.split(",")):
            jobs = [(kind, args.seed + number * 100_000 + i, str(args.data)) for i in range(args.pages)]
            rows = list(tqdm(pool.imap(draw, jobs, chunksize=8), total=len(jobs), disable=None))
            target = args.out / f"shard-9{args.seed % 10}{number:03d}.npz"
            partial = target.with_suffix(".tmp.npz")
            np.savez(partial, **{k: np.stack([r[k] for r in rows]) for k in rows[0]})  # type: ignore[arg-type]
            partial.rename(target)


if __name__ == "__main__":
    main()
