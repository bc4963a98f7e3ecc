"""The seam between the page for many files and the batch runner: files in, a row for each out, kept in a file that grows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import batch
from app.inputs import Input
from app.rows import json_line, row_of
from vlm.results import Result


@dataclass
class Progress:
    """How far a job is: `done` of `total` files have rows, `before` of them from an earlier run; the last rows."""

    total: int
    done: int = 0
    before: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    rows: list[dict[str, Any]] = field(default_factory=list)


def run(model: Any, files: Sequence[str], schema: Any, decoding: dict[str, Any], out: Path) -> Iterator[Progress]:
    """Extract from every file; rows that `out` holds already are kept, new ones are appended, each as soon as it is known.

    Args:
        model: its ``batch_size`` files are computed together. out: JSON lines.

    Raises:
        SchemaError, OptionError: the request itself cannot be met; `out` is then untouched.
    """
    names = [Path(file).name for file in files]
    known = [row for row in rows_of(out) if row.get("source") in set(names) and row.get("status") != "error"]
    done = {row["source"] for row in known}
    progress = Progress(len(files), len(done), len(done), rows=known)
    left = [Input(file) for file, name in zip(files, names, strict=True) if name not in done]
    results = batch.run(left, lambda paths: model.extract(paths, schema, on_error="row", **decoding), model.batch_size)
    yield progress
    with open(out, "a", encoding="utf-8") as file:
        for result in results:
            row = _row(result)
            print(json_line(row), file=file, flush=True)
            progress.rows.append(row)
            progress.done += 1
            progress.statuses[row["status"]] += 1
            yield progress


def _row(result: Result) -> dict[str, Any]:
    """A row that names the file as the visitor knows it, not where the server keeps it."""
    name = Path(result.source).name
    row = {**row_of(result, "extract"), "source": name}
    if result.error is not None:
        row["error"] = {**result.error, "message": result.error["message"].replace(result.source, name)}
    return row


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; a torn last line counts as not there."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
