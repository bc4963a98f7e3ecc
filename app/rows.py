"""Results as rows: JSON lines for programs, text for people."""

from __future__ import annotations

import json
from typing import Any

from vlm.results import Result


def row_of(result: Result, task: str) -> dict[str, Any]:
    """JSON-safe row of a result: source, task and status first."""
    rest = result.to_dict()
    head = {"source": result.source, "task": task, "status": result.status}
    return head | {key: value for key, value in rest.items() if key not in head}


def json_line(row: dict[str, Any]) -> str:
    """One line of JSON that UTF-8 can hold; names of files that are no Unicode come out as escapes."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line


def text_of(result: Result, task: str) -> str:
    """What a person wants to see of a result."""
    if result.status == "error":
        return f"error: {message_of(result)}"
    if task == "extract":
        return json.dumps(result.data, ensure_ascii=False, indent=2)
    if task == "ground":
        action = (result.data or {}).get("action")
        return f"{action} {[round(v) for v in result.box]}" if result.box else f"{action}, but nothing on the screen was pointed at"
    return result.text


def block_of(result: Result, task: str, alone: bool) -> str:
    """Text of one of several results: ``name: text``, or the name above a text of several lines."""
    text = text_of(result, task)
    if alone:
        return text
    return f"{result.source}:\n{text}\n" if "\n" in text else f"{result.source}: {text}"


def message_of(result: Result) -> str:
    """The error of a failed result, in one line."""
    error = result.error or {}
    return " ".join(f"{error.get('type', 'Error')}: {error.get('message', '')}".split())
