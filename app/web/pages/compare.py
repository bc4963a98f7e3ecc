"""Compare: the same request under two ways of decoding, side by side, one after the other on the same machine."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from app.web import draw
from app.web.controls import Decoding, PictureInput, example, example_buttons
from app.web.pages import Page
from app.web.pages.extract import FORM, RECEIPT
from app.web.pictures import Picture, open_picture
from app.web.runs import FRAME, PRIVATE, QUEUE
from app.web.steps import Trace
from vlm.errors import VLMError
from vlm.results import Result

ASK, EXTRACT = "Ask", "Extract"
SIDES = ("A", "B")
OTHER = "one-by-one"  # preset of side B at the start
EXAMPLES = [
    ("receipt", (example("receipt.png"), 1, EXTRACT, json.dumps({k: RECEIPT[k] for k in ("date", "total")}), '{"date": "2026-03-14", "total": 6.2}')),
    (
        "form",
        (example("form.png"), 1, EXTRACT, json.dumps({k: FORM[k] for k in ("first_name", "role")}), '{"first_name": "Edith", "role": "Reader"}'),
    ),
]

_log = logging.getLogger(__name__)


@dataclass
class Pair:
    """The runs of both sides, and what was expected of them."""

    traces: tuple[Trace, Trace] = field(default_factory=lambda: (Trace(), Trace()))
    expected: str = ""


def build(model: Any) -> None:
    """Lay the page out."""
    gr.Markdown("The same request twice, A first, then B. Times are those of this machine at this moment; forwards do not depend on it.")
    buttons = example_buttons(EXAMPLES, "compare")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            page = PictureInput("compare")
            task = gr.Radio([ASK, EXTRACT], value=EXTRACT, label="Task", elem_id="compare-task")
            words = gr.Textbox(label="Question, or schema", lines=3, elem_id="compare-words")
            expected = gr.Textbox(label="Expected answer or JSON (may be empty)", lines=2, elem_id="compare-expected")
            with gr.Row():
                start = gr.Button("Compare", variant="primary", elem_id="compare-run", min_width=120)
                stop = gr.Button("Stop", elem_id="compare-stop", min_width=80)
            status = gr.HTML(draw.status(""), elem_id="compare-status")
        with gr.Column(scale=4, min_width=280):
            shown = page.view()
    verdict = gr.HTML(_verdict(Pair()), elem_id="compare-verdict")
    with gr.Row(equal_height=False):
        ways, drawn = [], []
        for side, preset in zip(SIDES, (None, OTHER), strict=True):
            with gr.Column(min_width=280):
                ways.append(Decoding(model, f"compare-{side.lower()}", preset=preset, label=f"Decoding {side}"))
                drawn += [gr.HTML(elem_id=f"compare-counters-{side.lower()}"), gr.HTML(draw.canvas(None), elem_id=f"compare-canvas-{side.lower()}")]
    scrubber = gr.Slider(1, 2, value=1, step=1, label="Step of both", interactive=False, elem_id="compare-step")
    pair = gr.State(None, time_to_live=3600)
    outputs = [status, pair, scrubber, verdict, shown, *drawn]
    inputs = [*page.inputs, task, words, expected, *ways[0].inputs, *ways[1].inputs]

    def run(path: str | None, number: float | None, kind: str, said: str | None, wanted: str | None, *how: Any) -> Iterator[list[Any]]:
        found, picture, half = Pair(expected=(wanted or "").strip()), None, len(how) // 2
        try:
            picture = open_picture(path, number)
            options = [Decoding.parse(*how[:half]), Decoding.parse(*how[half:])]
            for i, side in enumerate(SIDES):
                for _ in _recorded(model, found.traces[i], kind, said or "", picture, options[i]):
                    yield _outputs(draw.status(f"{side} is running ..."), found, picture)
        except VLMError as error:
            yield _outputs(draw.status(str(error), "alert"), found, picture)
            return
        except Exception:
            _log.exception("the comparison failed")
            yield _outputs(draw.status("Something unexpected went wrong; the server's log says more.", "alert"), found, picture)
            return
        yield _outputs(draw.status("Done."), found, picture, last=True)

    common: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "show_progress": "hidden", **QUEUE, **PRIVATE}
    events = [start.click(run, **common)]
    events += [button.then([*page.inputs, task, words, expected], run, common) for button in buttons]
    stop.click(lambda found: _outputs(draw.status("Stopped."), found or Pair(), None, last=True), [pair], outputs, cancels=events, queue=False, **PRIVATE)
    scrubber.input(_canvases, [pair, scrubber], drawn, trigger_mode="always_last", queue=False, show_progress="hidden", **PRIVATE)


def _recorded(model: Any, trace: Trace, kind: str, words: str, picture: Picture, options: dict[str, Any]) -> Iterator[None]:
    """Run one side, pausing where the page should be drawn."""
    start = drawn = time.perf_counter()
    if kind == EXTRACT:
        parts = model.stream_extract(picture.image, words, **options)
    else:
        content = [{"type": "image", "image": picture.image}, {"type": "text", "text": words}]
        parts = model.stream([{"role": "user", "content": content}], max_new_tokens=24, **options)
    for _ in trace.record(model, parts, start):
        if time.perf_counter() - drawn >= FRAME:
            drawn = time.perf_counter()
            yield


def _outputs(status: str, pair: Pair, picture: Picture | None, last: bool = False) -> list[Any]:
    count = max(len(trace.steps) for trace in pair.traces)
    scrubber = gr.update(maximum=max(count, 2), value=max(count, 1), interactive=last and count > 1)
    return [status, pair, scrubber, _verdict(pair), gr.skip() if picture is None else picture.drawn(), *_canvases(pair, count)]


def _canvases(pair: Pair | None, place: float) -> list[str]:
    shots = [trace.at(place) for trace in (pair or Pair()).traces]
    return [part for shot in shots for part in (draw.counters(shot), draw.canvas(shot))]


def _verdict(pair: Pair) -> str:
    """What each side cost and gave."""
    shots = [trace.steps[-1] if trace.steps else None for trace in pair.traces]
    rows = []
    for side, shot in zip(SIDES, shots, strict=True):
        if shot is None or shot.result is None:
            continue
        result, usage = shot.result, shot.result.usage
        rate = f"{usage.tokens / usage.forwards:.1f}" if usage.forwards else "-"
        rows.append((side, str(usage.forwards), rate, f"{usage.ms:.0f}", draw.meter(result.confidence), right(result, pair.expected), escape(result.text)))
    heads = ("side", "forwards", "cells a forward", "ms", "confidence", "right", "result")
    return draw.table(heads, rows, "What each side costs and gives appears here.")


def right(result: Result, expected: str) -> str:
    """How much of a result is as expected: fields of an object, or the whole of a text."""
    if not expected:
        return "-"
    try:
        truth = json.loads(expected)
    except ValueError:
        truth = expected
    if isinstance(truth, dict) and isinstance(result.data, dict):
        return f"{sum(result.data.get(key) == value for key, value in truth.items())} of {len(truth)} fields"
    return "yes" if result.text.strip().lower() == expected.lower() else "no"


PAGE = Page("Compare", 60, build)
