"""Ground: a screenshot and an instruction in; what to do, and where, out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from app.web import draw
from app.web.controls import Decoding, PictureInput, example, example_buttons
from app.web.pages import Page, is_pocket
from app.web.pictures import Picture, open_picture
from app.web.runs import Panel, Runner
from app.web.steps import Snapshot

EXAMPLES = [("press a button", (example("screen.png"), 'click the button "Save"'))]
AIM, OTHER = 3, 0  # colours of the box that was chosen, and of the widgets around it


def build(model: Any) -> None:
    """Lay the page out."""
    gr.Markdown("Give a screenshot and say what to do. The box is drawn as soon as the model points.")
    buttons = example_buttons(EXAMPLES, "ground")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            page = PictureInput("ground", "Screenshot")
            said = gr.Textbox(label="Instruction", lines=1, elem_id="ground-say")
            runner = Runner(model, "ground", label="Ground")
            decoding = Decoding(model, "ground")
            action = gr.HTML(_action(None), elem_id="ground-action")
        with gr.Column(scale=4, min_width=300):
            shown = page.view()
            around = gr.HTML(_widgets(None), elem_id="ground-widgets")
            runner.canvas()

    def start(path: str | None, words: str, *how: Any) -> tuple[Any, Iterator[Any]]:
        picture = open_picture(path)
        parts = model.stream_ground(picture.image, words, **decoding.parse(*how))
        return (picture, model.objects(picture.image).items), parts

    panels = [
        Panel(shown, lambda shot, about: gr.skip() if about is None else _page(shot, *about)),
        Panel(around, lambda _, about: _widgets(about)),
        Panel(action, lambda shot, _: _action(shot)),
    ]
    runner.wire([page.file, said, *decoding.inputs], start, panels, enter=[said], examples=buttons, fills=[page.file, said])


def _page(shot: Snapshot | None, picture: Picture, items: Any) -> str:
    marks = [draw.Mark(item.box, f"{i}: {item.kind}", OTHER) for i, item in enumerate(items, 1)]
    if shot is not None and shot.result is not None:
        aims = [shot.result.box]
    else:
        aims = [view.info.box for view in shot.slots if view.pointer == "/target" and view.info is not None] if shot is not None else []
    return picture.drawn([*marks, *(draw.Mark(box, "here", AIM) for box in aims if box is not None)])


def _widgets(about: Any) -> str:
    rows = []
    for i, item in enumerate(about[1] if about is not None else (), 1):
        place = ", ".join(f"{v:.0f}" for v in item.box)
        rows.append((str(i), escape(" ".join(w for w in (item.color, item.kind) if w)), place, draw.meter(item.confidence)))
    return draw.table(("candidate", "what", "box in pixels", "confidence"), rows, "Widgets the model sees appear here.")


def _action(shot: Snapshot | None) -> str:
    if shot is None or shot.result is None:
        return '<pre class="vlm-json vlm-empty">The action appears here as JSON.</pre>'
    return f'<pre class="vlm-json" tabindex="0" aria-label="Action">{escape(json.dumps(shot.result.data, indent=2))}</pre>'


PAGE = Page("Ground", 30, build, fits=is_pocket)
