"""Rows as CSV and Parquet, made from the JSONL file when it is complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.rows import confidence_of
from vision.errors import DependencyError
from vlm.structure.fields import ArrayField, BooleanField, Field, NumberField, ObjectField, Schema, is_leaf, is_text

if TYPE_CHECKING:
    import pyarrow

#: Columns of every CSV file, before those of the data.
HEAD = ("id", "source", "page", "n_pages", "status", "error", "confidence")
#: Rows that are turned into a Parquet row group at once.
GROUP = 5000
#: Text that spreadsheets take for a formula when it begins a cell; it is written behind an apostrophe.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def is_struct(field: Field) -> bool:
    """An object whose properties are known by name: it becomes several columns. Every other value is one."""
    return isinstance(field, ObjectField) and bool(field.members) and not field.entries


def columns_of(schema: Schema | None) -> list[tuple[str, ...]]:
    """Names along the way to each leaf of a schema; lists and the like are leaves. Of text (None): nothing."""
    if schema is None:
        return []

    def walk(field: Field, way: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(field, ObjectField) and is_struct(field):
            for member in field.members:
                yield from walk(member.field, (*way, member.name))
        else:
            yield way

    return list(walk(schema.root, ()))


def column_name(way: tuple[str, ...]) -> str:
    """``address/city``: the JSON pointer without its first slash; ``data`` of a schema that is no object."""
    return "data" if not way else "/".join(name.replace("~", "~0").replace("/", "~1") for name in way)


def write_csv(rows: Iterable[Mapping[str, Any]], path: Path, tree: Schema | None) -> None:
    """One line a row: HEAD, a column for each leaf of the schema with lists as JSON, and a column ``leaf#confidence`` for each that is no list.

    Text that looks like a formula begins with an apostrophe. Written beside `path` and put in its place when complete.
    """
    ways = columns_of(tree)
    names = [column_name(way) for way in ways]
    text = ["text"] if tree is None else []
    with beside(path) as temporary, open(temporary, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([*HEAD, *text, *names, *(f"{name}#confidence" for name in names)])
        for row in rows:
            error = row["error"]["message"] if row["error"] else ""
            sure = confidence_of(row)
            head = [row["id"], row["source"], row["page"], row["n_pages"], row["status"], error, sure]
            said = [row.get("text", "")] if text else []
            fields = [row["fields"].get(f"/{name}", {}).get("confidence") for name in names]
            writer.writerow([_cell(value) for value in (*head, *said, *(_at(row["data"], way) for way in ways), *fields)])
        file.flush()
        os.fsync(file.fileno())


def _at(data: Any, way: tuple[str, ...]) -> Any:
    for name in way:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def from_cell(cell: str) -> str:
    """The text of a cell as it was before it was guarded against being a formula."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path, tree: Schema | None) -> None:
    """Rows with the data as a typed struct, lists included; fields, error, usage and versions beside it.

    Raises:
        DependencyError: pyarrow is not installed.
    """
    arrow = pyarrow_module()
    import pyarrow.parquet as parquet

    number, text, whole = arrow.float64(), arrow.string(), arrow.int64()
    field = arrow.struct([("confidence", number), ("p_valid", number), ("forced", arrow.bool_()), ("box", arrow.list_(number)), ("page", whole)])
    data = [("data", _type(tree.root, arrow))] if tree is not None else [("text", text), ("confidence", number)]
    schema = arrow.schema(
        [
            ("id", text), ("source", text), ("page", whole), ("n_pages", whole), ("status", text), *data, ("fields", arrow.map_(text, field)),
            ("error", arrow.struct([("type", text), ("message", text), ("stage", text)])),
            ("usage", arrow.struct([("forwards", whole), ("tokens", whole), ("ms", number)])), ("versions", arrow.map_(text, text)),
            ("warnings", arrow.list_(text)),
        ]
    )  # fmt: skip
    left = iter(rows)
    with beside(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(left, GROUP)):
            writer.write_table(arrow.Table.from_pylist([_record(row, tree) for row in group], schema))


def pyarrow_module() -> Any:
    """pyarrow, or a DependencyError that says how to get it."""
    try:
        import pyarrow
    except ImportError as error:
        remedy = "pip install 'diffusion-vlm[parquet]', or write .jsonl or .csv"
        raise DependencyError("Parquet needs pyarrow, which is not installed", remedy=remedy) from error
    return pyarrow


def _record(row: Mapping[str, Any], tree: Schema | None) -> dict[str, Any]:
    source = row["source"].encode(errors="backslashreplace").decode()  # a name that is no Unicode
    maps = {"fields": list(row["fields"].items()), "versions": list(row["versions"].items())}
    data = {"data": _value(row["data"], tree.root)} if tree is not None else {}
    return {**row, **maps, **data, "source": source}


def _type(field: Field, arrow: pyarrow.lib) -> Any:
    """Type of a field's column; what may be of several types is JSON text."""
    if isinstance(field, ObjectField) and is_struct(field):
        return arrow.struct([(member.name, _type(member.field, arrow)) for member in field.members])
    if isinstance(field, ArrayField) and field.items is not None and not field.prefix:
        return arrow.list_(_type(field.items, arrow))
    if isinstance(field, NumberField):
        return arrow.int64() if field.integer else arrow.float64()
    return arrow.bool_() if isinstance(field, BooleanField) else arrow.string()


def _value(value: Any, field: Field) -> Any:
    """A value as its column takes it."""
    if value is None:
        return None
    if isinstance(field, ObjectField) and is_struct(field):
        return {member.name: _value(value.get(member.name), member.field) for member in field.members}
    if isinstance(field, ArrayField) and field.items is not None and not field.prefix:
        return [_value(item, field.items) for item in value]
    if isinstance(field, NumberField):
        if not field.integer:
            return float(value)
        return int(value) if -(2**63) <= value < 2**63 else None  # beyond 64 bits it is left to the JSONL file
    if isinstance(field, BooleanField) or (is_leaf(field) and isinstance(value, str) and is_text(field)):
        return value
    return value if isinstance(value, str) and is_leaf(field) else json.dumps(value)


class beside:
    """A temporary file in the same folder that takes the place of `path` when all went well."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(path.name + ".tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
