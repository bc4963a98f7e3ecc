"""Results as rows: JSON lines for programs, text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlm.results import FieldInfo, Result

STATUSES = ("ok", "partial", "forced", "error", "skipped")


def row_of(
    result: Result, task: str, *, id: str = "", page: int | None = 1, n_pages: int | None = 1, versions: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """JSON-safe row of a page.

    Of ``extract``: id, source, page (from 1; None where the file could not be opened), n_pages, status, data, fields (JSON
    pointer -> confidence, p_valid, forced, box in pixels of the page), error (type, message, stage), usage (forwards,
    tokens, ms), versions. Other tasks add task, text, confidence, and what they found besides. Warnings only where there are any.
    """
    usage = result.usage
    row: dict[str, Any] = {
        "id": id, "source": result.source, "page": page, "n_pages": n_pages, "status": result.status, "data": result.data,
        "fields": {pointer: field_of(info) for pointer, info in result.fields.items()}, "error": result.error,
        "usage": {"forwards": usage.forwards, "tokens": usage.tokens, "ms": round(usage.ms, 1)}, "versions": dict(versions or {}),
    }  # fmt: skip
    if task != "extract":
        row |= {"task": task, "text": result.text, "confidence": result.confidence}
        full = result.to_dict()
        row |= {key: full[key] for key in ("box", "lines", "items") if key in full}
    if result.warnings:
        row["warnings"] = list(result.warnings)
    return row


def field_of(info: FieldInfo) -> dict[str, Any]:
    """What a row says of a leaf of its data; p_valid is None where the decoder does not tell it."""
    p_valid = getattr(info, "p_valid", None)
    return {
        "confidence": round(info.confidence, 6), "p_valid": None if p_valid is None else round(p_valid, 6), "forced": info.forced,
        "box": None if info.box is None else [round(v, 1) for v in info.box],
    }  # fmt: skip


def confidence_of(row: Mapping[str, Any]) -> float | None:
    """The lowest confidence of a row's fields, or that of its text; None where there is nothing to be sure of."""
    sure = [field["confidence"] for field in row["fields"].values()]
    return min(sure) if sure else row.get("confidence") if row["status"] not in ("error", "skipped") else None


def json_line(row: Mapping[str, Any]) -> str:
    """One line of JSON that UTF-8 can hold; names of files that are no Unicode come out as escapes."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line


def place_of(row: Mapping[str, Any]) -> str:
    """Source, and page where there are several."""
    return f"{row['source']} page {row['page']}" if row["page"] and (row["n_pages"] or 1) > 1 else str(row["source"])


def text_of(result: Result, task: str) -> str:
    """What a person wants to see of a result."""
    if result.error is not None:
        return f"{result.status}: {message_of(result.error)}"
    if task == "extract":
        return json.dumps(result.data, ensure_ascii=False, indent=2)
    if task == "ground":
        action = (result.data or {}).get("action")
        return f"{action} {[round(v) for v in result.box]}" if result.box else f"{action}, but nothing on the screen was pointed at"
    return result.text


def block_of(text: str, place: str, alone: bool) -> str:
    """Text of one of several results: ``name: text``, or the name above a text of several lines."""
    if alone:
        return text
    return f"{place}:\n{text}\n" if "\n" in text else f"{place}: {text}"


def message_of(error: Mapping[str, str]) -> str:
    """The error of a row, in one line."""
    return " ".join(f"{error.get('type', 'Error')}: {error.get('message', '')}".split())
