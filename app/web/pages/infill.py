"""Infill: a text with blanks, filled from both sides at once."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from app.web import draw
from app.web.controls import Decoding, PictureInput, example, example_buttons
from app.web.pages import Page
from app.web.pictures import open_picture
from app.web.runs import Panel, Runner
from app.web.steps import Snapshot

EXAMPLES = [
    ("a sentence", (example("form.png"), 1, "Family name: [[16]], first name: [[12]], born on [[birthday:10:date]].", "")),
    ("a receipt", (example("receipt.png"), 1, "Total: [[total:8:number]], date: [[date:10:date]], receipt number: [[receipt number:8]].", "")),
]
HELP = (
    "Write text with blanks: `[[16]]` is sixteen cells, `[[total:8]]` has a name, `[[total:8:number]]` a constraint: `string`, `number`, "
    "`integer`, `date`, `time`, `email`, `yes|no`, or a regular expression `/[A-Z]{2}\\d+/`. What stands before and behind a blank "
    "counts; pocket looks for the blank's name on the picture."
)


def build(model: Any) -> None:
    """Lay the page out."""
    gr.Markdown(HELP)
    buttons = example_buttons(EXAMPLES, "infill")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            text = gr.Textbox(label="Text with blanks", lines=4, elem_id="infill-text")
            page = PictureInput("infill", "Picture (may be left out)")
            words = gr.Textbox(label="What to tell the model besides (may be empty)", lines=1, elem_id="infill-say")
            runner = Runner(model, "infill", label="Fill in")
            decoding = Decoding(model, "infill")
        with gr.Column(scale=4, min_width=300):
            runner.canvas()
            filled = gr.HTML(_filled(None), elem_id="infill-filled")
            table = gr.HTML(draw.fields(None), elem_id="infill-fields")
            shown = page.view()

    def start(path: str | None, number: float | None, blanks: str, prompt: str | None, *how: Any) -> tuple[Any, Iterator[Any]]:
        picture = open_picture(path, number) if path else None
        return picture, model.stream_infill(blanks, picture.image if picture else None, prompt=prompt or "", **decoding.parse(*how))

    panels = [
        Panel(filled, lambda shot, _: _filled(shot)),
        Panel(table, lambda shot, _: draw.fields(shot)),
        Panel(shown, lambda shot, about: gr.skip() if about is None else about.drawn(draw.marks(shot))),
    ]
    runner.wire([*page.inputs, text, words, *decoding.inputs], start, panels, examples=buttons, fills=[*page.inputs, text, words])


def _filled(shot: Snapshot | None) -> str:
    text = "The text appears here." if shot is None else shot.result.text if shot.result is not None else shot.text
    return f'<pre class="vlm-json" tabindex="0" aria-label="Text">{escape(text)}</pre>'


PAGE = Page("Infill", 40, build, local_only=True)
