"""Ground: a screenshot and an instruction in; what to do, and where, out."""

from __future__ import annotations

import json
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

EXAMPLES = [("press a button", (example("screen.png"), 1, 'click the button "Save"'))]
AIM, OTHER = 3, 0  # colours of the box that was chosen, and of other candidates
CANDIDATES = 5


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
            around = gr.HTML(_candidates(None), elem_id="ground-candidates")
            runner.canvas()

    def start(path: str | None, number: float | None, words: str, *how: Any) -> tuple[Any, Iterator[Any]]:
        picture = open_picture(path, number)
        return picture, model.stream_ground(picture.image, words, candidates=CANDIDATES, **decoding.parse(*how))

    panels = [
        Panel(shown, lambda shot, about: gr.skip() if about is None else about.drawn(_marks(shot))),
        Panel(around, lambda shot, _: _candidates(shot)),
        Panel(action, lambda shot, _: _action(shot)),
    ]
    runner.wire([*page.inputs, said, *decoding.inputs], start, panels, enter=[said], examples=buttons, fills=[*page.inputs, said])


def _marks(shot: Snapshot | None) -> list[draw.Mark]:
    """The box as soon as it is known; with the result, the other candidates as well."""
    if shot is None:
        return []
    if shot.result is None:
        boxes = [view.info.box for view in shot.slots if view.pointer == "/target" and view.info is not None]
        return [draw.Mark(box, "here", AIM) for box in boxes if box is not None]
    others = [draw.Mark(c.box, f"candidate {i}", OTHER) for i, c in enumerate(shot.result.candidates, 1) if c.box != shot.result.box]
    return others + ([draw.Mark(shot.result.box, "here", AIM)] if shot.result.box is not None else [])


def _candidates(shot: Snapshot | None) -> str:
    found = shot.result.candidates if shot is not None and shot.result is not None else ()
    rows = [(str(i), ", ".join(f"{v:.0f}" for v in c.box), draw.meter(c.confidence)) for i, c in enumerate(found, 1)]
    return draw.table(("candidate", "box in pixels", "share of the probability"), rows, "Candidates appear here (of models that point).")


def _action(shot: Snapshot | None) -> str:
    if shot is None or shot.result is None:
        return '<pre class="vlm-json vlm-empty">The action appears here as JSON.</pre>'
    return f'<pre class="vlm-json" tabindex="0" aria-label="Action">{escape(json.dumps(shot.result.data, indent=2))}</pre>'


PAGE = Page("Ground", 30, build)
