"""The tab for many files: the schema of the page, all files, one growing result file that a later run can go on with."""

from __future__ import annotations

import csv
import io
import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.rows import json_line
from app.web import draw, jobs
from app.web.controls import Decoding, example
from app.web.pictures import SUFFIXES, cache_folder, text_file
from app.web.runs import PRIVATE, QUEUE
from vlm.errors import PromptError, VLMError

SHOWN = 50  # rows on the page; the file has all
EXAMPLES = ["form.png", "receipt.png"]

_log = logging.getLogger(__name__)


def build(model: Any, schema: Any) -> None:
    """Lay the tab out; `schema` is the text box of the page."""
    gr.Markdown("All files with the schema above. Each row is written as soon as it is known; give the result file of a stopped run to go on with it.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            files = gr.File(label="Files", file_count="multiple", file_types=SUFFIXES, height=160, elem_id="many-files")
            before = gr.File(label="Result file to go on with (may be left out)", file_types=[".jsonl"], height=110, elem_id="many-before")
            with gr.Row():
                start = gr.Button("Extract all", variant="primary", elem_id="many-run", min_width=120)
                stop = gr.Button("Stop", elem_id="many-stop", min_width=80)
            filled = gr.Button("Example: two pages", size="sm", elem_id="many-example")
            decoding = Decoding(model, "many")
        with gr.Column(scale=4, min_width=300):
            status = gr.HTML(draw.status(""), elem_id="many-status")
            bar = gr.HTML(elem_id="many-progress")
            with gr.Row():
                as_jsonl = gr.DownloadButton("Download JSONL", interactive=False, size="sm", elem_id="many-get-jsonl")
                as_csv = gr.DownloadButton("Download CSV", interactive=False, size="sm", elem_id="many-get-csv")
            table = gr.HTML(_table([]), elem_id="many-rows")
    out = gr.State("")
    outputs = [status, bar, table, as_jsonl, as_csv, out]

    def run(paths: list[str] | None, earlier: str | None, wanted: str, *how: Any) -> Iterator[list[Any]]:
        try:
            if not paths:
                raise PromptError("there are no files", remedy="upload some, or click the example")
            path = _result_file(earlier)
            yield [draw.status("Working ..."), _bar(jobs.Progress(len(paths))), _table([]), *[gr.update(interactive=False)] * 2, str(path)]
            for progress in jobs.run(model, paths, wanted, decoding.parse(*how), path):
                yield [draw.status(f"{progress.done} of {progress.total} files"), _bar(progress), _table(progress.rows), gr.skip(), gr.skip(), gr.skip()]
        except VLMError as error:
            yield [draw.status(str(error), "alert"), *[gr.skip()] * 5]
            return
        except Exception:
            _log.exception("the job failed")
            yield [draw.status("Something unexpected went wrong; the server's log says more.", "alert"), *[gr.skip()] * 5]
            return
        yield [draw.status(_said(progress)), _bar(progress), _table(progress.rows), *_downloads(path), gr.skip()]

    common: dict[str, Any] = {"inputs": [files, before, schema, *decoding.inputs], "outputs": outputs, "show_progress": "hidden", **QUEUE, **PRIVATE}
    events = [start.click(run, **common)]
    events.append(filled.click(lambda: [example(name) for name in EXAMPLES], None, [files], queue=False, show_progress="hidden", **PRIVATE).then(run, **common))
    stop.click(_stopped, [out], [status, as_jsonl, as_csv], cancels=events, queue=False, show_progress="hidden", **PRIVATE)


def _result_file(earlier: str | None) -> Path:
    """A new result file, with the whole rows of an earlier one."""
    path = cache_folder(f"job {uuid.uuid4()}") / "results.jsonl"
    kept = jobs.rows_of(Path(earlier)) if earlier else []
    path.write_text("".join(json_line(row) + "\n" for row in kept), encoding="utf-8")
    return path


def _stopped(out: str) -> list[Any]:
    path = Path(out) if out else None
    if path is None or not path.is_file():
        return [draw.status("Stopped."), gr.skip(), gr.skip()]
    return [draw.status(f"Stopped; the {len(jobs.rows_of(path))} rows so far are in the result file."), *_downloads(path)]


def _downloads(path: Path) -> list[Any]:
    rows = jobs.rows_of(path)
    return [gr.update(value=str(path), interactive=True), gr.update(value=text_file("results.csv", to_csv(rows)), interactive=True)]


def _said(progress: jobs.Progress) -> str:
    counts = ", ".join(f"{n} {status}" for status, n in progress.statuses.items()) or "nothing left to do"
    before = f"; {progress.before} rows were there before" if progress.before else ""
    return f"Done: {counts}{before}."


def _bar(progress: jobs.Progress) -> str:
    label = f"{progress.done} of {progress.total} files, {progress.statuses['error']} failed"
    return f'<label>{label} <progress max="{progress.total}" value="{progress.done}">{label}</progress></label>'


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return draw.table(("file", "status", "data", "confidence"), [_row(row) for row in rows[-SHOWN:]], "Rows appear here.")


def _row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if row["status"] == "error":
        return escape(row["source"]), "error", escape(str((row.get("error") or {}).get("message", ""))), ""
    return escape(row["source"]), escape(row["status"]), escape(json.dumps(row["data"], ensure_ascii=False)), draw.meter(row.get("confidence", 0.0))


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """A line a row: file, status, error, and a column for each top-level key; what is nested stays JSON."""
    keys = list(dict.fromkeys(key for row in rows if isinstance(row.get("data"), dict) for key in row["data"]))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["source", "status", "error", "confidence", *keys])
    for row in rows:
        data = row["data"] if isinstance(row.get("data"), dict) else {}
        values = [data.get(key) for key in keys]
        cells = ["" if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        writer.writerow([row.get("source"), row.get("status"), (row.get("error") or {}).get("message", ""), row.get("confidence", ""), *cells])
    return out.getvalue()
