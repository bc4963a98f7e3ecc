"""The review loop: rows that somebody corrected become conversations to train on.

``vlm corrections rows.jsonl corrected.csv --schema S --out training`` writes the pages as PNG and ``conversations.jsonl``,
which :func:`vlm.training.conversations.read_conversations` gives to the trainer. Every row of the corrected file counts as
true, whether it was changed or not: leave out what nobody looked at.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.inputs import Input
from app.journal import read_rows
from app.pages import PageOptions, Pages
from app.report import files_of
from app.schemas import parsed
from app.tables import column_name, columns_of, from_cell
from vlm.errors import OptionError, SchemaError
from vlm.structure.schema import ArrayField, BooleanField, ChoiceField, ConstField, Field, NumberField, ObjectField, escape


@dataclass(frozen=True)
class Corrected:
    """What became of a review: conversations written, values that differ from the model's, pages that could not be opened again."""

    conversations: int
    changed: int
    lost: tuple[str, ...]


def write_conversations(
    rows: Path, corrected: Path, schema: Any, out: Path, files: Sequence[Input] | None = None, options: PageOptions | None = None
) -> Corrected:
    """Write training data for corrected rows.

    Args:
        rows: JSONL file of pages. corrected: the same rows, some or all, as CSV (columns as :mod:`app.tables` writes them) or
            JSONL, known by their ids. schema: of the rows. out: folder for pages/ID.png and conversations.jsonl.
        files, options: what the rows were made from, see :func:`app.report.write_report`.

    Raises:
        OptionError: a file that is none of these, an id without row, a value that the schema does not allow (with its row and
            pointer). SchemaError: of the schema itself.
    """
    from vlm.processor.tokenizer import Tokenizer
    from vlm.published import outline_request
    from vlm.structure.scaffold import compile_scaffold

    tree, _ = parsed(schema)
    truth = dict(_read_corrected(corrected, tree))
    if not truth:
        raise OptionError("has no rows", source=str(corrected), remedy="leave the corrected rows in it")
    said = {row["id"]: row for row in read_rows(rows) if row["id"] in truth}
    unknown = next((name for name in truth if name not in said), None)
    if unknown is not None:
        raise OptionError(f"no row of {rows} has the id {unknown}", source=str(corrected), remedy="name the file of rows it was made from")
    request = outline_request(compile_scaffold(tree, Tokenizer.pocket()))
    (out / "pages").mkdir(parents=True, exist_ok=True)
    changed = 0
    saved = _save_pages(list(said.values()), out / "pages", files, options or PageOptions())
    with open(out / "conversations.jsonl", "w", encoding="utf-8") as file:
        for name, data in truth.items():
            if name not in saved:
                continue
            differing = list(_differences(said[name]["data"], data, ""))
            changed += len(differing)
            messages = [
                {"role": "user", "content": [{"type": "image", "image": f"pages/{name}.png"}, {"type": "text", "text": request}]},
                {"role": "assistant", "content": json.dumps(data, ensure_ascii=False)},
            ]
            print(json.dumps({"id": name, "source": said[name]["source"], "changed": differing, "messages": messages}), file=file)
    return Corrected(len(saved), changed, tuple(said[name]["source"] for name in truth if name not in saved))


def _save_pages(rows: list[dict[str, Any]], folder: Path, files: Sequence[Input] | None, options: PageOptions) -> set[str]:
    """Write the pages of rows; returns the ids of those that could be opened."""
    wanted: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        wanted.setdefault((row["source"], row["page"]), []).append(row["id"])
    found = set()
    pages = Pages(files_of(rows, files), lambda _, page: str(page), options, has_row=lambda page, source: (source, int(page)) not in wanted)
    for page in pages:
        if page.image is not None and page.page is not None:
            for name in wanted[page.source, page.page]:
                page.image.rgb.save(folder / f"{name}.png")
                found.add(name)
    return found


def _read_corrected(path: Path, tree: ObjectField) -> Iterator[tuple[str, Any]]:
    """(id, data) of each row that has data."""
    if path.suffix.lower() != ".csv":
        for row in read_rows(path):
            if row.get("data") is not None:
                yield row["id"], _checked(row["data"], tree, "", f"{path}, row {row['id']}")
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark in front
            reader = csv.DictReader(file)
            missing = [name for name in ("id", *map(column_name, columns_of(tree))) if name not in (reader.fieldnames or ())]
            if missing:
                raise OptionError(f"has no column {missing[0]!r}", source=str(path), remedy="correct the CSV file that vlm extract wrote, with its columns")
            for line in reader:
                if line.get("status") not in ("error", "skipped"):
                    yield line["id"], _from_cells(line, tree, f"{path}, row {line['id']}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f"cannot be read ({error})", source=str(path), remedy="save it as CSV in UTF-8") from error


def _from_cells(line: Mapping[str, str], tree: ObjectField, source: str) -> Any:
    """The data of a line; an empty cell is null where that is allowed, else it leaves the value out."""

    def build(field: ObjectField, way: tuple[str, ...]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for member in field.members:
            here = (*way, member.name)
            if isinstance(member.field, ObjectField):
                out[member.name] = build(member.field, here)
                continue
            cell = from_cell(line[column_name(here)] or "")
            if cell or member.field.nullable or (member.required and isinstance(member.field, ArrayField)):
                out[member.name] = _parse(cell, member.field, f"/{column_name(here)}", source)
        return out

    return _checked(build(tree, ()), tree, "", source)


def _parse(cell: str, field: Field, pointer: str, source: str) -> Any:
    """The value of a cell."""
    if isinstance(field, ArrayField):
        try:
            return json.loads(cell) if cell else []
        except ValueError:
            raise OptionError(f"{cell!r} is no JSON list", source=f"{source}, {pointer}", remedy='write it as ["a", "b"]') from None
    if not cell:
        return None
    if isinstance(field, (ChoiceField, ConstField)):
        options = field.values if isinstance(field, ChoiceField) else (field.value,)
        return next((v for v in options if v is not None and cell in (v, json.dumps(v))), cell)
    if isinstance(field, BooleanField):
        return {"true": True, "false": False, "1": True, "0": False}.get(cell.strip().lower(), cell)
    if isinstance(field, NumberField):
        try:
            return int(cell) if field.integer else float(cell)
        except ValueError:
            return cell
    return cell


def _checked(value: Any, field: Field, pointer: str, source: str) -> Any:
    """The value, if the schema allows it."""
    where = f"{source}, {pointer or '/'}"
    if isinstance(field, ObjectField):
        if value is None and field.nullable:
            return None
        known = {member.name for member in field.members}
        if not isinstance(value, dict) or not set(value) <= known:
            raise OptionError(f"{value!r} is not an object with the schema's fields", source=where, remedy="correct the row")
        absent = [member.name for member in field.members if member.required and member.name not in value]
        if absent:
            raise OptionError(f"there is no {absent[0]!r}", source=where, remedy="give it a value")
        return {m.name: _checked(value[m.name], m.field, f"{pointer}/{escape(m.name)}", source) for m in field.members if m.name in value}
    if isinstance(field, ArrayField):
        if value is None and field.nullable:
            return None
        if not isinstance(value, list) or not field.min_items <= len(value) <= (field.max_items or len(value)):
            raise OptionError(f"{value!r} is no list of a length that the schema allows", source=where, remedy="correct the row")
        return [_checked(item, field.items, f"{pointer}/{i}", source) for i, item in enumerate(value)]
    if not _fits(value, field):
        raise OptionError(f"{value!r} is not allowed by the schema", source=where, remedy="correct the row")
    return value


def _fits(value: Any, field: Field) -> bool:
    """Whether a leaf may have a value."""
    from vlm.structure.automaton import leaf_dfa

    if value is None:
        return field.nullable
    if isinstance(field, ConstField):
        return bool(value == field.value)
    if isinstance(field, ChoiceField):
        return value in field.values
    if isinstance(field, BooleanField):
        return isinstance(value, bool)
    if isinstance(field, NumberField):
        whole = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and (not field.integer or value.is_integer()))
        if isinstance(value, bool) or not whole:
            return False
        text = f"{int(value)}" if field.integer or float(value).is_integer() else f"{value:.12f}".rstrip("0")
        return leaf_dfa(field).accepts(text)
    try:
        return isinstance(value, str) and leaf_dfa(field).accepts(value)
    except (SchemaError, UnicodeEncodeError):
        return False


def _differences(said: Any, true: Any, pointer: str) -> Iterator[str]:
    """Pointers at which two values differ."""
    if isinstance(said, dict) and isinstance(true, dict):
        for name in {**said, **true}:
            yield from _differences(said.get(name), true.get(name), f"{pointer}/{escape(name)}")
    elif isinstance(said, list) and isinstance(true, list) and len(said) == len(true):
        for index, (a, b) in enumerate(zip(said, true, strict=True)):
            yield from _differences(a, b, f"{pointer}/{index}")
    elif said != true:
        yield pointer
