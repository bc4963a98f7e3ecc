"""Ask: a conversation about pictures, with the canvas of the answer as it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.web import draw
from app.web.controls import Decoding, example, example_buttons
from app.web.pages import Page
from app.web.pictures import SUFFIXES, open_picture
from app.web.runs import PRIVATE, Panel, Runner
from app.web.steps import Snapshot
from vlm.errors import PromptError

#: (button, pictures, question)
EXAMPLES = [
    ("count shapes", ["shapes.png"], "how many red shapes are there?"),
    ("is it there?", ["shapes.png"], "is there a blue circle?"),
]


def build(model: Any) -> None:
    """Lay the page out."""
    gr.Markdown("Ask about one or several pictures. Cells of the answer are filled in any order, many at a time.")
    buttons = example_buttons([(label, (_value(files, text), [])) for label, files, text in EXAMPLES], "ask")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            chat = gr.Chatbot(label="Conversation", height=360, render_markdown=False, elem_id="ask-chat", feedback_options=None, buttons=["copy"])
            said = gr.MultimodalTextbox(
                label="Question", placeholder="Question, with pictures", file_types=SUFFIXES, file_count="multiple", submit_btn=False, elem_id="ask-say"
            )
            runner = Runner(model, "ask", label="Ask")
            clear = gr.Button("New conversation", size="sm", elem_id="ask-clear")
        with gr.Column(scale=4, min_width=300):
            runner.canvas()
            length = gr.Slider(4, 128, value=24, step=1, label="Cells of the answer", elem_id="ask-length")
            decoding = Decoding(model, "ask")

    def start(value: dict[str, Any] | None, turns: list[dict[str, Any]], cells: int, *how: Any) -> tuple[Any, Iterator[Any]]:
        turn = _turn(value)
        messages = [*_messages(turns), turn]
        about = (turns, _shown(value))
        return about, model.stream(messages, max_new_tokens=int(cells), **decoding.parse(*how))

    def drawn(shot: Snapshot | None, about: Any) -> Any:
        if about is None:
            return gr.skip()
        turns, asked = about
        answer = "..." if shot is None else (shot.result.text or "(empty)" if shot.result is not None else shot.text)
        return [*turns, *asked, {"role": "assistant", "content": answer}]

    def emptied(shot: Snapshot | None, about: Any) -> Any:
        return None if about is not None and shot is not None and shot.step == 1 else gr.skip()

    panels = [Panel(chat, drawn, scrubs=False), Panel(said, emptied, scrubs=False)]
    runner.wire([said, chat, length, *decoding.inputs], start, panels, enter=[said], examples=buttons, fills=[said, chat])
    clear.click(lambda: ([], None, draw.status("")), None, [chat, said, runner.status], queue=False, show_progress="hidden", **PRIVATE)


def _value(files: list[str], text: str) -> dict[str, Any]:
    return {"text": text, "files": [example(name) for name in files]}


def _turn(value: dict[str, Any] | None) -> dict[str, Any]:
    """A message of the library from what was typed; pictures are checked here."""
    text, files = str((value or {}).get("text") or "").strip(), list((value or {}).get("files") or [])
    if not text:
        raise PromptError("the question is empty", remedy="write one, or click an example")
    pictures = [{"type": "image", "image": open_picture(path).image} for path in files]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def _shown(value: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The same for the conversation on the page."""
    found = value or {}
    pictures = [{"role": "user", "content": {"path": path}} for path in found.get("files") or []]
    return [*pictures, {"role": "user", "content": str(found.get("text") or "").strip()}]


def _messages(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of the library from the conversation on the page; neighbours of one role are one turn."""
    out: list[dict[str, Any]] = []
    for turn in turns:
        parts = [_part(part) for part in (turn["content"] if isinstance(turn["content"], list) else [turn["content"]])]
        if out and out[-1]["role"] == turn["role"]:
            out[-1]["content"] += parts
        else:
            out.append({"role": turn["role"], "content": parts})
    return out


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.get("type") == "text":
        return {"type": "text", "text": part["text"]}
    file = part.get("file", part)
    return {"type": "image", "image": open_picture(file["path"]).image}


PAGE = Page("Ask", 10, build)
