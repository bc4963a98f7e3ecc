"""Pages drawn with known answers: every glyph's box is known, so every stage of the model can be supervised.

A :class:`Page` is a picture under construction. Text is drawn run by run; for each visible character a
:class:`Glyph` records where it is. ``Page.finish`` turns the page through a small angle, degrades it the way
scanners and phones do, and moves the glyph boxes along.
"""

from __future__ import annotations

import functools
import io
import math
import subprocess
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

#: Families no training page ever uses: the fonts of every held-out figure.
HELD_OUT_FAMILIES = frozenset(
    {
        "Carlito", "PT Sans", "PT Sans Caption", "Noto Serif", "Courier Prime", "Courier Prime Sans", "Courier Prime Code",
        "Hack", "Andika", "Cabin", "Charis SIL", "URW Gothic", "Nimbus Sans Narrow", "Roboto Condensed",
    }
)  # fmt: skip
#: Families whose Latin letters are symbols, script faces nobody prints forms with, small capitals, which do not say what case
#: they are, and old-style figures, whose 0 is an o.
_EXCLUDED = frozenset(
    {
        "Standard Symbols PS", "D050000L", "Z003", "Linux Biolinum Keyboard O", "DejaVu Math TeX Gyre", "Latin Modern Mono Caps",
        "Latin Modern Roman Caps", "EB Garamond", "Vollkorn",
    }
)  # fmt: skip
#: Weights too thin for print of a few pixels.
_TOO_THIN = ("Hairline", "Thin")


@dataclass(frozen=True)
class FontFile:
    """One font file: path, face index, family, and whether every character has the same advance."""

    path: str
    index: int
    family: str
    mono: bool


@functools.lru_cache(maxsize=1)
def all_fonts() -> tuple[FontFile, ...]:
    """Latin text fonts that fontconfig knows (``fc-list``), symbol and script faces left out."""
    listing = subprocess.run(
        ["fc-list", ":lang=en", "--format", "%{file}\t%{index}\t%{family[0]}\t%{spacing}\n"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    fonts = set()
    for line in listing.splitlines():
        path, index, family, spacing = [*line.split("\t"), "", ""][:4]
        if family in _EXCLUDED or not path.lower().endswith((".ttf", ".otf", ".ttc", ".pfb", ".t1")):
            continue
        if any(weight in path.rsplit("/", 1)[-1] for weight in _TOO_THIN):
            continue
        if int(index or 0) > 0xFFFF:  # named instances of variable fonts
            continue
        fonts.add(FontFile(path, int(index or 0), family, spacing == "100" or "Mono" in family))
    return tuple(sorted(fonts, key=lambda f: (f.family, f.path, f.index)))


@functools.lru_cache(maxsize=4)
def families(held_out: bool) -> tuple[tuple[FontFile, ...], ...]:
    """Fonts grouped by family: the training families, or those kept for evaluation."""
    groups: dict[str, list[FontFile]] = {}
    for font in all_fonts():
        if (font.family in HELD_OUT_FAMILIES) == held_out:
            groups.setdefault(font.family, []).append(font)
    return tuple(tuple(g) for g in groups.values())


def pick_font(rng: np.random.Generator, held_out: bool = False, mono: float = 0.25) -> FontFile:
    """A font drawn family first, so that families with many weights do not dominate."""
    groups = families(held_out)
    if rng.random() < mono:
        fixed = tuple(g for g in groups if g[0].mono)
        groups = fixed or groups
    group = groups[rng.integers(len(groups))]
    return group[rng.integers(len(group))]


@functools.lru_cache(maxsize=4096)
def load_font(font: FontFile, size: int) -> ImageFont.FreeTypeFont:
    """The font at `size` pixels per em."""
    return ImageFont.truetype(font.path, size, index=font.index, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=200_000)
def _ink(font: FontFile, size: int, char: str) -> tuple[float, float]:
    """Left and right edge of the character's ink relative to the pen, in pixels."""
    x0, _, x1, _ = load_font(font, size).getbbox(char, anchor="ls")
    return float(x0), float(x1)


@functools.lru_cache(maxsize=100_000)
def _cap_height(font: FontFile, size: int) -> float:
    return float(-load_font(font, size).getbbox("H", anchor="ls")[1])


@dataclass
class Glyph:
    """A visible character: its ink from left to right, its line from the top of a capital down to the baseline."""

    char: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass
class Run:
    """Text drawn in one go; ``glyphs[i]`` is None where ``text[i]`` is a blank."""

    text: str
    glyphs: list[Glyph | None]

    def box(self, start: int = 0, stop: int | None = None) -> tuple[float, float, float, float]:
        """Union box of the characters ``start:stop`` in page pixels."""
        seen = [g for g in self.glyphs[start:stop] if g is not None]
        return (min(g.x0 for g in seen), min(g.y0 for g in seen), max(g.x1 for g in seen), max(g.y1 for g in seen))


@dataclass
class Page:
    """A picture under construction.

    Attributes:
        image: RGB PIL image, drawn on in place.
        runs: every run of text, in drawing order.
    """

    width: int
    height: int
    background: tuple[int, int, int] = (255, 255, 255)
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.width, self.height), self.background)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, baseline: float, text: str, font: FontFile, size: int,
        color: tuple[int, int, int] = (0, 0, 0), spacing: float = 0.0,
    ) -> Run:  # fmt: skip
        """Draw `text` with its pen at (`x`, `baseline`); `spacing` extra pixels after each character."""
        face = load_font(font, size)
        cap = _cap_height(font, size)
        glyphs: list[Glyph | None] = []
        if not spacing:
            self.draw.text((x, baseline), text, font=face, fill=color, anchor="ls")
        pen = float(x)
        for i, char in enumerate(text):
            if spacing:
                self.draw.text((pen, baseline), char, font=face, fill=color, anchor="ls")
            if char.isspace():
                glyphs.append(None)
            else:
                left, right = _ink(font, size, char)
                glyphs.append(Glyph(char, pen + left, baseline - cap, pen + max(right, left + 1), baseline))
            pen = pen + face.getlength(char) + spacing if spacing else x + face.getlength(text[: i + 1])
        run = Run(text, glyphs)
        self.runs.append(run)
        return run

    @staticmethod
    def text_width(text: str, font: FontFile, size: int) -> float:
        """Advance of `text` in pixels."""
        return load_font(font, size).getlength(text)

    def glyphs(self) -> list[Glyph]:
        """Every visible character of the page."""
        return [g for run in self.runs for g in run.glyphs if g is not None]

    def finish(self, rng: np.random.Generator, hardness: float = 0.5, turn: float = 2.5, boxes: list[list[float]] | None = None) -> np.ndarray:
        """Turn and degrade the page. Returns uint8 [H, W, 3]; glyph boxes (and `boxes`, in place) move along.

        `hardness` in 0..1 scales how often and how strongly pages are degraded; `turn` is the largest angle in degrees.
        """
        if turn and rng.random() < 0.5 * hardness + 0.1:
            self._turn(rng.uniform(-turn, turn), boxes or [])
        return degrade(self.image, rng, hardness)

    def _turn(self, degrees: float, boxes: list[list[float]]) -> None:
        radians = math.radians(degrees)
        cos, sin = math.cos(radians), math.sin(radians)
        cx, cy = self.width / 2, self.height / 2
        self.image = self.image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=self.background)
        self.draw = ImageDraw.Draw(self.image)

        def moved(x: float, y: float) -> tuple[float, float]:
            # PIL turns counter-clockwise in a frame whose y axis points down
            dx, dy = x - cx, y - cy
            return cx + cos * dx + sin * dy, cy - sin * dx + cos * dy

        for g in self.glyphs():
            mx, my = moved((g.x0 + g.x1) / 2, (g.y0 + g.y1) / 2)
            w, h = (g.x1 - g.x0) / 2, (g.y1 - g.y0) / 2
            g.x0, g.y0, g.x1, g.y1 = mx - w, my - h, mx + w, my + h
        for box in boxes:
            mx, my = moved((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            w, h = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
            box[:] = [mx - w, my - h, mx + w, my + h]


def degrade(image: Image.Image, rng: np.random.Generator, hardness: float) -> np.ndarray:
    """Blur, low resolution, gradient, contrast, noise, faded dots, inversion and JPEG, each with its own chance."""
    width, height = image.size

    def chance(p: float) -> bool:
        return bool(rng.random() < p * hardness * 2)

    if chance(0.2):
        factor = rng.uniform(0.55, 0.95)
        small = image.resize((max(8, int(width * factor)), max(8, int(height * factor))), Image.Resampling.BILINEAR)
        image = small.resize((width, height), Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR)
    if chance(0.2):
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0)))
    elif chance(0.08):
        image = image.filter(ImageFilter.UnsharpMask(1, int(rng.uniform(50, 200))))
    array = np.asarray(image, dtype=np.float32)
    if chance(0.15):  # faded print: ink lost in dots
        dots = rng.random((height, width, 1), dtype=np.float32) < rng.uniform(0.02, 0.25)
        array = np.where(dots, array * 0.3 + 178.0, array)
    if chance(0.25):
        low, high = rng.uniform(0, 90), rng.uniform(190, 255)
        array = low + array * ((high - low) / 255.0)
    if chance(0.25):
        ramp_x = np.linspace(rng.uniform(0.7, 1.05), rng.uniform(0.7, 1.05), width, dtype=np.float32)[None, :, None]
        ramp_y = np.linspace(rng.uniform(0.8, 1.05), rng.uniform(0.8, 1.05), height, dtype=np.float32)[:, None, None]
        array = array * ramp_x * ramp_y
    if chance(0.3):
        array = array + rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(2, 18)
    if chance(0.06):
        array = 255.0 - array
    out = np.clip(array, 0, 255).astype(np.uint8)
    if chance(0.35):
        buffer = io.BytesIO()
        Image.fromarray(out).save(buffer, "JPEG", quality=int(rng.integers(18, 85)))
        out = np.asarray(Image.open(buffer).convert("RGB"))
    return out
