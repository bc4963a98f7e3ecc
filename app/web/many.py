"""The tab for many files: the schema of the page, all files, one growing result file that a later run can go on with."""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.requests import Request
from app.rows import confidence_of, place_of
from app.web import draw, jobs
from app.web.controls import Decoding, example
from app.web.pictures import SUFFIXES, cache_folder
from app.web.runs import PRIVATE, QUEUE
from vlm.errors import PromptError, VLMError

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
            request, path = jobs.request_of(wanted, decoding.parse(*how)), _result_file(earlier)
            yield [draw.status("Working ..."), _bar(jobs.Progress(len(paths))), _table([]), *[gr.update(interactive=False)] * 2, str(path)]
            for progress in jobs.run(model, paths, request, path):
                yield [draw.status(f"{progress.done} of {progress.total} pages"), _bar(progress), _table(progress.rows), gr.skip(), gr.skip(), gr.skip()]
        except VLMError as error:
            yield [draw.status(str(error), "alert"), *[gr.skip()] * 5]
            return
        except Exception:
            _log.exception("the job failed")
            yield [draw.status("Something unexpected went wrong; the server's log says more.", "alert"), *[gr.skip()] * 5]
            return
        yield [draw.status(_said(progress)), _bar(progress), _table(progress.rows), *_downloads(path, request), gr.skip()]

    common: dict[str, Any] = {"inputs": [files, before, schema, *decoding.inputs], "outputs": outputs, "show_progress": "hidden", **QUEUE, **PRIVATE}
    events = [start.click(run, **common)]
    events.append(filled.click(lambda: [example(name) for name in EXAMPLES], None, [files], queue=False, show_progress="hidden", **PRIVATE).then(run, **common))
    stop.click(_stopped, [out, schema], [status, as_jsonl, as_csv], cancels=events, queue=False, show_progress="hidden", **PRIVATE)


def _result_file(earlier: str | None) -> Path:
    """A new result file, with the rows of an earlier one."""
    path = cache_folder(f"job {uuid.uuid4()}") / "results.jsonl"
    if earlier:
        shutil.copyfile(earlier, path)
    return path


def _stopped(out: str, schema: str) -> list[Any]:
    path = Path(out) if out else None
    if path is None or not path.is_file():
        return [draw.status("Stopped."), gr.skip(), gr.skip()]
    words = f"Stopped; the {jobs.rows_in(path)} rows so far are in the result file."
    try:
        return [draw.status(words), *_downloads(path, jobs.request_of(schema, {}))]
    except VLMError:  # the schema was changed meanwhile, or the last row is still being written
        return [draw.status(words), gr.update(value=str(path), interactive=True), gr.skip()]


def _downloads(path: Path, request: Request) -> list[Any]:
    return [gr.update(value=str(path), interactive=True), gr.update(value=str(jobs.csv_of(path, request)), interactive=True)]


def _said(progress: jobs.Progress) -> str:
    counts = ", ".join(f"{n} {status}" for status, n in progress.statuses.items() if n) or "nothing left to do"
    before = f"; {progress.before} rows were there before" if progress.before else ""
    return f"Done: {counts}{before}."


def _bar(progress: jobs.Progress) -> str:
    label = f"{progress.done} of {progress.total} pages, {progress.statuses.get('error', 0)} failed"
    return f'<label>{label} <progress max="{progress.total}" value="{progress.done}">{label}</progress></label>'


def _table(rows: Iterable[dict[str, Any]]) -> str:
    return draw.table(("page", "status", "data", "confidence"), [_row(row) for row in rows], "Rows appear here.")


def _row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if row["error"]:
        return escape(place_of(row)), row["status"], escape(row["error"]["message"]), ""
    return escape(place_of(row)), row["status"], escape(json.dumps(row["data"], ensure_ascii=False)), draw.meter(confidence_of(row) or 0.0)
