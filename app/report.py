"""A report of rows for people: one HTML file that needs nothing else, with thumbnails and the boxes of fields."""

from __future__ import annotations

import base64
import heapq
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from app.inputs import Input
from app.journal import WriteError, read_rows
from app.pages import PageOptions, Pages
from app.rows import confidence_of
from app.tables import beside

TEMPLATE = Path(__file__).parent / "report.html"
#: Pages of a report at most, the least sure first: a page with its thumbnail takes about 50 kB.
LIMIT = 500
#: Longest side of a thumbnail.
SIDE = 720
#: What the page needs of a row.
_SHOWN = ("id", "source", "page", "n_pages", "status", "data", "fields", "error", "warnings", "text")


def write_report(rows: Path, out: Path, files: Sequence[Input] | None = None, options: PageOptions | None = None, *, limit: int = LIMIT) -> int:
    """Write a report of a file of rows; returns the number of pages in it.

    Args:
        rows: JSONL file of pages. out: the HTML file.
        files: what the rows were made from; by default the files that their sources name. They are opened again for the
            thumbnails; one that is gone has its rows without picture.
        options: how the files are opened. limit: of pages; errors and the least sure ones come first.

    Raises:
        OptionError: `rows` is no file of rows. WriteError: `out` cannot be written.
    """
    counts: Counter[str] = Counter()

    def ranked() -> Iterable[tuple[float, int, dict[str, Any]]]:
        for order, row in enumerate(read_rows(rows)):
            counts[row["status"]] += 1
            sure = confidence_of(row)
            yield (-1.0 if row["status"] == "error" else 2.0 if sure is None else sure), order, row

    chosen = heapq.nsmallest(limit, ranked(), key=lambda item: item[:2])
    shown = [{key: row[key] for key in _SHOWN if key in row} | {"confidence": confidence_of(row), "order": order} for _, order, row in chosen]
    _add_thumbnails(shown, files, options or PageOptions())
    data = {"title": rows.name, "total": sum(counts.values()), "counts": dict(counts), "rows": shown}
    text = json.dumps(data).replace("<", "\\u003c")  # within a script element nothing may look like a tag
    page = TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", text)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with beside(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise WriteError(f"cannot be written ({error.strerror or error})", source=str(out), remedy="name another file with --report") from error
    return len(shown)


def _add_thumbnails(rows: list[dict[str, Any]], files: Sequence[Input] | None, options: PageOptions) -> None:
    """Open the pages of rows again and add what they look like, as far as they are still there."""
    wanted = {(row["source"], row["page"]): row for row in rows if row["page"] is not None and row["status"] != "error"}
    files = files_of(list(wanted.values()), files)
    again = replace(options, pages=None)
    pages = Pages(files, lambda _, page: str(page), again, has_row=lambda page, source: (source, int(page)) not in wanted)
    for page in pages:
        row = wanted.get((page.source, page.page))
        if row is not None and page.image is not None and "thumbnail" not in row:
            row["size"] = page.image.rgb.size
            row["thumbnail"] = thumbnail(page.image.rgb)


def files_of(rows: Sequence[Mapping[str, Any]], files: Sequence[Input] | None) -> list[Input]:
    """Those of the files (by default: those that the sources name) that hold pages of the rows."""
    named = {row["source"] for row in rows}
    if files is None:
        files = [Input(path) for path in dict.fromkeys(_file_of(row["source"]) for row in rows)]
    archives = {source.partition("!")[0] for source in named}
    return [given for given in files if given.error is None and (given.path in named or given.path in archives)]


def _file_of(source: str) -> str:
    """The file of a source: the archive of a member, else the source itself."""
    if Path(source).exists():
        return source
    archive, mark, _ = source.partition("!")
    return archive if mark else source


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG as data address."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
