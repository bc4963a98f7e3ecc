"""A schema as a small table and back: name and kind of each field, for people who do not write JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vlm.errors import SchemaError

HEADS = ["field", "kind"]


def to_rows(schema: str) -> list[list[str]] | None:
    """Rows of a flat short template; None for a schema that a table cannot hold."""
    try:
        found = json.loads(schema)
    except ValueError:
        return None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return None
    return [[name, kind] for name, kind in found.items()]


def to_schema(rows: Sequence[Sequence[Any]]) -> str:
    """The short template of a table; rows without a name are left out.

    Raises:
        SchemaError: a field that is there twice.
    """
    template: dict[str, str] = {}
    for row in rows:
        name, kind = (str(cell or "").strip() for cell in (*row, "", "")[:2])
        if not name:
            continue
        if name in template:
            raise SchemaError(f"the field {name!r} is there twice", source="table", remedy="give it another name")
        template[name] = kind or "string"
    return json.dumps(template, ensure_ascii=False, indent=2)
