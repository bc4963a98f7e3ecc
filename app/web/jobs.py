"""The seam between the page for many files and the batch runner: files in, a row for each page out, kept in a file that grows."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.batch import Job
from app.inputs import Input
from app.journal import Journal, read_rows
from app.requests import Request
from app.tables import write_csv
from vlm.errors import OptionError
from vlm.structure.schema import parse_schema

SHOWN = 50  # rows that are kept for the page; the file has all


@dataclass
class Progress:
    """How far a job is: `done` of the `total` pages that are known of have rows, `before` of them from an earlier run.

    `statuses` count the rows of this run; `rows` are its last ones.
    """

    total: int
    done: int = 0
    before: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    rows: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=SHOWN))


def request_of(schema: str, decoding: dict[str, Any]) -> Request:
    """What is asked of every page. The schema is JSON and nothing else: what a visitor types is never a path or a class.

    Raises:
        SchemaError: a schema that cannot be used.
    """
    parse_schema(schema)
    return Request.extract(json.loads(schema), decoding)


def run(model: Any, files: Sequence[str], request: Request, out: Path) -> Iterator[Progress]:
    """Extract from every page of the files; pages that have rows in `out` are left out, new rows are appended.

    Args:
        out: JSON lines, those of an earlier run perhaps.

    Raises:
        OptionError: `out` holds something else than rows of this request and model. SchemaError, OptionError: the request cannot be met.
    """
    job = Job(model, request, [Input(file) for file in files])
    try:
        journal = _Journal(out, job.versions)
    except OptionError as error:
        remedy = "give the file of the same schema, decoding and model, or none"
        raise OptionError(error.message, source="the result file to go on with", remedy=remedy) from error
    progress = Progress(len(files), statuses=job.summary.statuses)
    yield progress
    with journal:
        for outcome in job.run(journal):
            progress.rows.append(outcome.row)
            _count(progress, job, len(files))
            yield progress
    _count(progress, job, len(files))
    yield progress


def _count(progress: Progress, job: Job, files: int) -> None:
    progress.before = job.summary.done
    progress.done = job.summary.done + job.summary.rows
    progress.total = max(files + (job.pages.extra if job.pages is not None else 0), progress.done)


class _Journal(Journal):
    """Names files as the visitor knows them, not where the server keeps them."""

    def has_row(self, id: str, source: str) -> bool:
        """See :class:`Journal`."""
        return super().has_row(id, Path(source).name)

    def put(self, row: Mapping[str, Any]) -> None:
        """See :class:`Journal`; the row itself is renamed as well."""
        source = row["source"]
        assert isinstance(row, dict)
        row["source"] = Path(source).name
        if row["error"]:
            row["error"] = {**row["error"], "message": row["error"]["message"].replace(source, row["source"])}
        if "warnings" in row:
            row["warnings"] = [warning.replace(source, row["source"]) for warning in row["warnings"]]
        super().put(row)


def rows_in(path: Path) -> int:
    """Whole rows of a result file, which may still be growing."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def csv_of(path: Path, request: Request) -> Path:
    """The rows as CSV beside the result file."""
    table = path.with_suffix(".csv")
    write_csv(read_rows(path), table, request.tree)
    return table
