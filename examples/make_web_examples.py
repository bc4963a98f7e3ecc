"""Draw the pictures of ``app/web/examples``, the first things a visitor of ``vlm demo`` can click.

``python -m examples.make_web_examples`` needs the Lato and DejaVu fonts (``fc-list``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

OUT = Path(__file__).parents[1] / "app" / "web" / "examples"
LATO = "Lato-Regular.ttf"
LATO_BOLD = "Lato-Bold.ttf"
SANS = "DejaVuSans.ttf"


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(name, size)


def form() -> Image.Image:
    """A filled form with labels over their values."""
    page = Image.new("RGB", (560, 420), "#fbfbfb")
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, 560, 48), fill="#24406b")
    draw.text((18, 10), "Library Card", "white", _font(SANS, 22))
    rows = [
        ("Family name", "Marlowe"), ("First name", "Edith"), ("Date of birth", "1984-03-09"),
        ("Address", "17 Harbour Lane"), ("Role", "Reader"), ("Card number", "40718"),
    ]  # fmt: skip
    for i, (label, value) in enumerate(rows):
        draw.text((20, 62 + 58 * i), label, "#666666", _font(SANS, 14))
        draw.text((20, 80 + 58 * i), value, "black", _font(LATO, 20))
    return page


def receipt() -> Image.Image:
    """A short receipt."""
    page = Image.new("RGB", (380, 360), "white")
    draw = ImageDraw.Draw(page)
    font, bold = _font(SANS, 17), _font(SANS, 22)
    draw.text((110, 18), "NORTH CAFE", "black", bold)
    rows = [
        ("Date: 2026-03-14", ""), ("Receipt No: 58213", ""), ("", ""), ("Tea", "2.40"), ("Cake", "3.80"), ("", ""), ("TOTAL", "6.20"), ("Cash", "10.00"),
        ("Change", "3.80"),
    ]  # fmt: skip
    for i, (left, right) in enumerate(rows):
        draw.text((24, 64 + 30 * i), left, "black", font)
        draw.text((290, 64 + 30 * i), right, "black", font)
    return page


def screen() -> Image.Image:
    """A small application window."""
    page = Image.new("RGB", (480, 320), "#fafafa")
    draw = ImageDraw.Draw(page)
    font = _font(LATO_BOLD, 15)
    draw.rectangle((0, 0, 480, 36), fill="#2a6f97")
    draw.text((16, 9), "Orders", "white", font)
    draw.text((96, 9), "Messages", "white", font)
    for i, word in enumerate(("Reports", "Pricing", "Gallery", "Settings")):
        draw.text((12, 56 + 34 * i), word, "black", font)
    draw.line((113, 37, 113, 320), fill="#bbbbbb")
    draw.text((130, 56), "Customer", "black", font)
    draw.rounded_rectangle((130, 78, 360, 106), 4, outline="#777777", fill="white")
    draw.text((130, 124), "Amount", "black", font)
    draw.rounded_rectangle((130, 146, 360, 174), 4, outline="#777777", fill="white")
    draw.rounded_rectangle((130, 204, 210, 236), 6, fill="#2a6f97")
    draw.text((155, 211), "Save", "white", font)
    draw.rounded_rectangle((226, 204, 316, 236), 6, fill="#dddddd")
    draw.text((248, 211), "Cancel", "black", font)
    return page


def shapes() -> Image.Image:
    """Coloured shapes on a plain ground."""
    page = Image.new("RGB", (200, 160), "#ececec")
    draw = ImageDraw.Draw(page)
    draw.rectangle((20, 20, 62, 58), fill="#0b8f7a")
    draw.ellipse((110, 84, 154, 128), fill="#e23b3b")
    draw.rectangle((126, 22, 172, 54), fill="#e8c21a")
    draw.ellipse((34, 96, 66, 128), fill="#1c39c4")
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for draw in (form, receipt, screen, shapes):
        draw().save(out / f"{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
