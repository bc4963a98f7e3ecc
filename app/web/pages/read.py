"""Read: the text of a page or of a part of it, with the place of each line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from app.web import draw
from app.web.controls import PictureInput, example, example_buttons
from app.web.pages import Page, is_pocket
from app.web.pictures import Picture, open_picture
from app.web.runs import Panel, Runner
from app.web.steps import Snapshot
from vlm.errors import OptionError

WHOLE = (0, 0, 100, 100)
EXAMPLES = [("receipt", (example("receipt.png"), 1, *WHOLE)), ("part of a form", (example("form.png"), 1, 0, 12, 60, 60))]


@dataclass(frozen=True)
class Part:
    """A picture and the part of it that is read, in its pixels."""

    picture: Picture
    box: tuple[int, int, int, int]

    @property
    def image(self) -> Any:
        """The part alone, RGB."""
        return self.picture.image.crop(self.box)

    def moved(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """A box of the part as a box of the whole picture."""
        x, y = self.box[:2]
        return (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def build(model: Any) -> None:
    """Lay the page out."""
    gr.Markdown("The reading tower at work, without the language model: print in Latin script, line by line.")
    buttons = example_buttons(EXAMPLES, "read")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            page = PictureInput("read", "Page")
            with gr.Accordion("Only a part of the page (percent of its sides)", open=False):
                labels = ("left", "top", "right", "bottom")
                sides = [gr.Slider(0, 100, value=v, step=1, label=label, elem_id=f"read-{label}") for label, v in zip(labels, WHOLE, strict=True)]
            runner = Runner(model, "read", label="Read", steps=False)
            shown = page.view()
        with gr.Column(scale=4, min_width=300):
            text = gr.Textbox(label="Text", lines=10, max_lines=24, interactive=False, buttons=["copy"], elem_id="read-text")
            lines = gr.HTML(_lines(None, None), elem_id="read-lines")

    def start(path: str | None, number: float | None, *percent: float) -> tuple[Any, Any]:
        part = part_of(open_picture(path, number), percent)
        return part, model.read(part.image)

    panels = [
        Panel(shown, lambda shot, about: gr.skip() if about is None else about.picture.drawn(_marks(shot, about))),
        Panel(text, lambda shot, _: "" if shot is None or shot.result is None else shot.result.text),
        Panel(lines, _lines),
    ]
    runner.wire([*page.inputs, *sides], start, panels, examples=buttons, fills=[*page.inputs, *sides])


def part_of(picture: Picture, percent: Sequence[float]) -> Part:
    """The part between four sides in percent; raises OptionError when nothing is left."""
    width, height = picture.size
    left, top, right, bottom = (round(p / 100 * side) for p, side in zip(percent, (width, height, width, height), strict=True))
    if right - left < 8 or bottom - top < 8:
        raise OptionError("the part of the page is empty", remedy="put right beyond left, and bottom below top")
    return Part(picture, (left, top, right, bottom))


def _marks(shot: Snapshot | None, part: Part) -> list[draw.Mark]:
    found = [] if part.box == (0, 0, *part.picture.size) else [draw.Mark(part.box, "the part that was read", 3)]
    if shot is None or shot.result is None:
        return found
    return found + [draw.Mark(part.moved(line.box), line.text, 0) for line in shot.result.lines]


def _lines(shot: Snapshot | None, part: Part | None) -> str:
    rows = []
    if shot is not None and shot.result is not None and part is not None:
        for line in shot.result.lines:
            rows.append((escape(line.text), ", ".join(f"{v:.0f}" for v in part.moved(line.box)), draw.meter(line.confidence)))
    return draw.table(("line", "box in pixels", "confidence"), rows, "Lines appear here.")


PAGE = Page("Read", 50, build, fits=is_pocket)
