"""Rows of pages to rows of documents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.journal import read_rows
from app.pages import digest
from vlm.structure.conjunction import escape


def merge_documents(path: Path) -> Iterator[dict[str, Any]]:
    """A row for each document of a file of rows, in the order in which documents first appear there.

    A value comes from the page that is surest of it; lists are joined in the order of pages; ``page`` in `fields` says where
    each came from. Where pages differ, a warning names what was not taken. status: 'error' when every page failed, 'partial'
    when some did, else the least sure of the pages'. ``page`` of the row is None, ids are made of the pages' ids.
    """
    places: dict[tuple[str, int | None], list[int]] = {}  # where the rows of a document begin; retried ones come late
    start = 0
    with open(path, "rb") as lines:
        for row, line in zip(read_rows(path), lines, strict=True):
            places.setdefault((row["source"], row["n_pages"]), []).append(start)
            start += len(line)
    with open(path, "rb") as file:
        for starts in places.values():
            pages = []
            for place in starts:
                file.seek(place)
                pages.append(json.loads(file.readline()))
            yield _document(sorted(pages, key=lambda row: row["page"] or 0))


def _document(pages: list[Mapping[str, Any]]) -> dict[str, Any]:
    good = [row for row in pages if row["data"] is not None]
    merger = _Merger()
    data = merger.merge(good, "", {row["page"]: "" for row in good}, {row["page"]: row["data"] for row in good}) if good else None
    statuses = Counter(row["status"] for row in pages)
    failed = [row for row in pages if row["status"] == "error"]
    status = next((s for s in ("partial", "forced", "ok", "skipped") if statuses[s]), "error")
    if failed:
        status = "partial" if good else "error"
    usage = {key: sum(row["usage"][key] for row in pages) for key in pages[0]["usage"]}
    document = {
        "id": digest(" ".join(row["id"] for row in pages).encode())[:32], "source": pages[0]["source"], "page": None, "n_pages": pages[0]["n_pages"],
        "status": status, "data": data, "fields": merger.fields, "error": failed[0]["error"] if failed else pages[0]["error"],
        "usage": usage, "versions": pages[0]["versions"],
    }  # fmt: skip
    warnings = [f"page {row['page']}: {note}" for row in pages for note in row.get("warnings", ())] + merger.notes
    warnings += [f"page {row['page']}: {row['error']['message']}" for row in failed]
    return document | ({"warnings": warnings} if warnings else {})


class _Merger:
    """Collects fields and notes while values are merged."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.notes: list[str] = []

    def merge(self, rows: list[Mapping[str, Any]], pointer: str, at: dict[int, str], values: dict[int, Any]) -> Any:
        """One value from those of pages; `at` is where each page has it, `pointer` where it goes."""
        some = next((value for value in values.values() if value is not None), None)
        if isinstance(some, dict):
            names = dict.fromkeys(name for value in values.values() if isinstance(value, dict) for name in value)
            return {
                name: self.merge(
                    rows, f"{pointer}/{escape(name)}", {p: f"{at[p]}/{escape(name)}" for p in values},
                    {p: value[name] for p, value in values.items() if isinstance(value, dict) and name in value},
                )
                for name in names
            }  # fmt: skip
        if isinstance(some, list):
            return self._join(rows, pointer, at, values)
        return self._surest(rows, pointer, at, values)

    def _join(self, rows: list[Mapping[str, Any]], pointer: str, at: dict[int, str], values: dict[int, Any]) -> list[Any]:
        joined: list[Any] = []
        for page, value in values.items():
            for index, item in enumerate(value or ()):
                joined.append(self.merge(rows, f"{pointer}/{len(joined)}", {page: f"{at[page]}/{index}"}, {page: item}))
        return joined

    def _surest(self, rows: list[Mapping[str, Any]], pointer: str, at: dict[int, str], values: dict[int, Any]) -> Any:
        fields = {row["page"]: row["fields"].get(at[row["page"]]) for row in rows if row["page"] in values}
        known = {page: field for page, field in fields.items() if field is not None}
        if not known:
            return next(iter(values.values()), None)
        best = max(known, key=lambda page: (values[page] is not None, known[page]["confidence"], -page))
        self.fields[pointer] = {**known[best], "page": best}
        for page, value in values.items():
            if value is not None and value != values[best]:
                self.notes.append(f"{pointer}: page {page} says {value!r}, page {best} was surer")
        return values[best]
