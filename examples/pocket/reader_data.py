"""Pages and targets for the reader: dense mosaics of text, cut into cells that name the characters they hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from examples.pocket.page import Page, pick_font
from examples.pocket.words import anything
from vision.reader import ALPHABET, STRIDE

CHAR_CLASS = {c: i + 1 for i, c in enumerate(ALPHABET)}


def _inks(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Background and text colour with enough contrast to be read."""
    if rng.random() < 0.65:
        light = int(rng.integers(225, 256))
        dark = int(rng.integers(0, 100))
        return (light, light, light), (dark, dark, dark)
    while True:
        a, b = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        weights = np.array([0.3, 0.59, 0.11])
        if abs(float((a - b) @ weights)) > 90:
            return (int(a[0]), int(a[1]), int(a[2])), (int(b[0]), int(b[1]), int(b[2]))


def mosaic(
    rng: np.random.Generator, held_out: bool = False, width: int = 384, height: int = 320,
    words: Callable[[np.random.Generator, bool], str] = anything, zoom: float = 1.0, sparse: bool = False,
) -> Page:  # fmt: skip
    """A page packed with short pieces of text in many fonts and sizes, or with few of them on much empty paper; now and
    then a rule or a box."""
    background, ink = _inks(rng)
    page = Page(width, height, background)
    steady = rng.random() < 0.5  # half of the pages keep one font, like real documents
    font = pick_font(rng, held_out)
    base = zoom * float(np.exp(rng.uniform(np.log(10.5), np.log(27))))
    y = float(rng.integers(0, 8))
    while True:
        size = round(base if rng.random() < 0.8 else zoom * float(np.exp(rng.uniform(np.log(10), np.log(34)))))
        if not steady:
            font = pick_font(rng, held_out)
        y += size * (rng.uniform(1.0, 5.0) if sparse else rng.uniform(0.85, 1.35))
        if y > height - size * 0.25:
            break
        if not steady and rng.random() < 0.3:
            page.background, ink = page.background, ink
        spacing = float(rng.uniform(0.3, size * 0.15)) if rng.random() < 0.1 else 0.0
        x = float(rng.integers(1, width // 2 if sparse else 30))
        while x < width - size * 1.5:
            text = words(rng, held_out)
            while text and x + page.text_width(text, font, size) + spacing * len(text) > width - 2:
                text = text[:-1].rstrip()
            if not text:
                break
            page.text(x, y, text, font, size, ink, spacing)
            x += page.text_width(text, font, size) + spacing * len(text) + size * rng.uniform(0.4, 2.5)
            if sparse and rng.random() < 0.7:
                break
        if rng.random() < 0.06:
            page.draw.line((0, y + size * 0.3, width, y + size * 0.3), fill=ink, width=int(rng.integers(1, 3)))
            y += size * 0.25
    if rng.random() < 0.1:
        x0 = int(rng.integers(0, width))
        page.draw.line((x0, 0, x0, height), fill=ink, width=1)
    return page


def char_targets(page: Page, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets of the character heads.

    Returns:
        classes: uint8 [2, h, w], 0 = none; boxes: float16 [2, 4, h, w] as in ``ReaderOutput.char_boxes``;
        blanks: uint8 [2, h, w], 1 = a blank follows, 0 = none follows, 2 = end of a run (not supervised).
    """
    h, w = height // STRIDE, width // STRIDE
    classes = np.zeros((2, h, w), np.uint8)
    boxes = np.zeros((2, 4, h, w), np.float16)
    blanks = np.full((2, h, w), 2, np.uint8)
    for run in page.runs:
        for i, g in enumerate(run.glyphs):
            if g is None or g.char not in CHAR_CLASS:
                continue
            cx, cy = (g.x0 + g.x1) / 2, (g.y0 + g.y1) / 2
            column, row = int(cx // 4), int(cy // 8)
            side, col = column % 2, column // 2
            if not (0 <= column < 2 * w and 0 <= row < h) or classes[side, row, col]:
                continue
            classes[side, row, col] = CHAR_CLASS[g.char]
            boxes[side, :, row, col] = (
                (cx - (column * 4 + 2)) / 8, (cy - (row * 8 + 4)) / 8, np.log(max(g.x1 - g.x0, 1) / 8), np.log(max(g.y1 - g.y0, 1) / 8),
            )  # fmt: skip
            if i + 1 < len(run.glyphs):
                blanks[side, row, col] = run.glyphs[i + 1] is None
    return classes, boxes, blanks


def receipt_words(rng: np.random.Generator, held_out: bool) -> str:
    """Pieces as receipts print them: mostly upper case, many amounts and codes."""
    text = anything(rng, held_out)
    return text.upper() if rng.random() < 0.7 else text


def stretch(page: Page, width: int, height: int) -> None:
    """Resize the clean page to `width` x `height`; narrow and wide, tall and flat type come from it."""
    sx, sy = width / page.width, height / page.height
    page.image = page.image.resize((width, height), Image.Resampling.LANCZOS)
    page.draw = ImageDraw.Draw(page.image)
    page.width, page.height = width, height
    for g in page.glyphs():
        g.x0, g.x1, g.y0, g.y1 = g.x0 * sx, g.x1 * sx, g.y0 * sy, g.y1 * sy


def worn(page: Page, rng: np.random.Generator) -> None:
    """Thermal and dot-matrix print: strokes made of dots, thickened or thinned."""
    kind = rng.random()
    if kind < 0.15:  # dot matrix: a grid of light lines over the ink
        step = int(rng.integers(2, 4))
        pixels = np.asarray(page.image, np.float32).copy()
        paper = np.array(page.background, np.float32)
        keep = float(rng.uniform(0.3, 0.7))
        pixels[::step] = pixels[::step] * keep + paper * (1 - keep)
        if rng.random() < 0.5:
            pixels[:, ::step] = pixels[:, ::step] * keep + paper * (1 - keep)
        page.image = Image.fromarray(pixels.astype(np.uint8))
    elif kind < 0.3:
        page.image = page.image.filter(ImageFilter.MinFilter(3))
    elif kind < 0.36:
        page.image = page.image.filter(ImageFilter.MaxFilter(3))


def render_mosaic(seed: int, held_out: bool = False, hard: bool = False, sparse: bool = False) -> tuple[np.ndarray, ...]:
    """Pixels uint8 [H, W, 3] and the targets (:func:`char_targets`) of the page drawn from `seed`.

    Hard pages are drawn large and shrunk unevenly, worn like old receipts, and degraded more.
    """
    rng = np.random.default_rng(seed)
    if not hard:
        page = mosaic(rng, held_out, sparse=sparse)
        pixels = page.finish(rng, hardness=float(rng.choice([0.1, 0.4, 0.7, 1.0])))
        return (pixels, *char_targets(page, page.width, page.height))
    aspect, zoom = float(np.exp(rng.uniform(-0.4, 0.4))), float(rng.uniform(1.0, 1.5))
    width, height = int(384 * zoom * aspect**0.5), int(320 * zoom / aspect**0.5)
    page = mosaic(rng, held_out, width, height, receipt_words if rng.random() < 0.7 else anything, zoom, sparse)
    if rng.random() < 0.6:
        worn(page, rng)
    stretch(page, 384, 320)
    pixels = page.finish(rng, hardness=float(rng.choice([0.4, 0.8, 1.0])), turn=3.0)
    return (pixels, *char_targets(page, page.width, page.height))


def as_image(pixels: np.ndarray) -> Image.Image:
    """The pixels as a PIL image."""
    return Image.fromarray(pixels)
