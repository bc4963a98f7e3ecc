"""Extract: a page and a schema in, JSON out, slot by slot, with confidences and boxes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.rows import json_line, row_of
from app.web import draw, many
from app.web.controls import Decoding, PictureInput, example, example_buttons
from app.web.pages import Page
from app.web.pictures import open_picture, text_file
from app.web.runs import PRIVATE, Panel, Runner
from app.web.schema_table import HEADS, to_rows, to_schema
from app.web.steps import Snapshot
from vlm.errors import SchemaError
from vlm.results import Result

FORM = {"family_name": "string", "first_name": "string", "birthday": "date", "address": "string", "role": "string", "card_number": "integer"}
RECEIPT = {"date": "date", "receipt_number": "string", "total": "number", "cash": "number", "change": "number"}


def _json(template: dict[str, str]) -> str:
    return json.dumps(template, indent=2)


EXAMPLES = [("form", (example("form.png"), 1, _json(FORM))), ("receipt", (example("receipt.png"), 1, _json(RECEIPT)))]


def build(model: Any) -> None:
    """Lay the page out."""
    gr.Markdown("Give a page and the shape of the JSON you want. The result always satisfies the schema; each field says how sure it is and where it was read.")
    schema = _schema()
    with gr.Tabs():
        with gr.Tab("One page", id="extract-one"):
            _one(model, schema)
        with gr.Tab("Many files", id="extract-many"):
            many.build(model, schema)


def _schema() -> Any:
    """The schema as JSON, with a table beside it for flat ones."""
    with gr.Accordion("Schema", open=True), gr.Tabs():
        with gr.Tab("JSON", id="schema-json"):
            text = gr.Textbox(_json(FORM), label="JSON Schema or short template", lines=8, max_lines=16, elem_id="extract-schema")
        with gr.Tab("Table", id="schema-table") as tab:
            note = gr.HTML(elem_id="extract-table-note")
            grid = gr.Dataframe(headers=HEADS, type="array", label="Fields", interactive=True, column_count=2, row_count=6, buttons=[], elem_id="extract-table")
    tab.select(_as_table, [text], [grid, note], queue=False, show_progress="hidden", **PRIVATE)
    grid.input(_as_json, [grid, text], [text, note], queue=False, show_progress="hidden", **PRIVATE)
    return text


def _as_table(schema: str) -> tuple[Any, str]:
    rows = to_rows(schema)
    if rows is None:
        return gr.update(value=[["", ""]], interactive=False), draw.status("This schema is more than a flat list of fields: edit it as JSON.")
    return gr.update(value=rows, interactive=True), draw.status("Kinds: string, number, integer, boolean, date, time, email, a|b|c; with ! never null.")


def _as_json(rows: list[list[Any]], before: str) -> tuple[str, Any]:
    try:
        return to_schema(rows), gr.skip()
    except SchemaError as error:
        return before, draw.status(str(error), "alert")


def _one(model: Any, schema: Any) -> None:
    buttons = example_buttons(EXAMPLES, "extract")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            page = PictureInput("extract", "Page")
            runner = Runner(model, "extract", label="Extract")
            shown = page.view()
            decoding = Decoding(model, "extract")
        with gr.Column(scale=4, min_width=300):
            table = gr.HTML(draw.fields(None), elem_id="extract-fields")
            code = gr.HTML(draw.json_so_far(None), elem_id="extract-json")
            with gr.Row():
                as_json = gr.DownloadButton("Download JSON", interactive=False, size="sm", elem_id="extract-get-json")
                as_csv = gr.DownloadButton("Download CSV", interactive=False, size="sm", elem_id="extract-get-csv")
            runner.canvas()

    def start(path: str | None, number: float | None, wanted: str, *how: Any) -> tuple[Any, Iterator[Any]]:
        picture = open_picture(path, number)
        return picture, model.stream_extract(picture.image, wanted, **decoding.parse(*how))

    panels = [
        Panel(shown, lambda shot, about: gr.skip() if about is None else about.drawn(draw.marks(shot))),
        Panel(table, lambda shot, _: draw.fields(shot)),
        Panel(code, lambda shot, _: draw.json_so_far(shot)),
        Panel(as_json, lambda shot, about: _offered(shot, about, "json", lambda result: json_line(row_of(result, "extract")) + "\n"), scrubs=False),
        Panel(as_csv, lambda shot, about: _offered(shot, about, "csv", _csv), scrubs=False),
    ]
    runner.wire([*page.inputs, schema, *decoding.inputs], start, panels, examples=buttons, fills=[*page.inputs, schema])


def _offered(shot: Snapshot | None, about: Any, suffix: str, write: Any) -> Any:
    """A download button: live once there is a result."""
    if shot is None or shot.result is None:
        return gr.update(interactive=False)
    name = f"{about.name.rsplit('.', 1)[0]}.{suffix}"
    return gr.update(value=text_file(name, write(shot.result)), interactive=True)


def _csv(result: Result) -> str:
    """A line per field: pointer, value, confidence, repaired, box."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["field", "value", "confidence", "repaired", "x0", "y0", "x1", "y1"])
    for pointer, info in result.fields.items():
        box = [f"{v:.1f}" for v in info.box] if info.box else [""] * 4
        writer.writerow([pointer, "" if info.value is None else info.value, f"{info.confidence:.4f}", info.forced, *box])
    return out.getvalue()


PAGE = Page("Extract", 20, build)
