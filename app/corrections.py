"""The review loop: rows that somebody corrected become conversations to train on.

``vlm corrections rows.jsonl corrected.csv --schema S --out training`` writes the pages as PNG and ``conversations.jsonl``,
which :func:`vlm.training.conversations.read_conversations` gives to the trainer. Every row of the corrected file counts as
true, whether it was changed or not: leave out what nobody looked at.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.inputs import Input
from app.journal import read_rows
from app.pages import PageOptions, Pages
from app.report import files_of
from app.schemas import parsed
from app.tables import column_name, columns_of, from_cell, is_struct
from vision.errors import DependencyError
from vlm.errors import OptionError
from vlm.structure.conjunction import escape
from vlm.structure.fields import ArrayField, BooleanField, ChoiceField, ConstField, Field, NumberField, ObjectField, Schema, StringField

_LEFT_OUT = object()


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

    tree, text = parsed(schema)
    truth = dict(_read_corrected(corrected, tree, _Checker(json.loads(text))))
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


def _read_corrected(path: Path, tree: Schema, checker: _Checker) -> Iterator[tuple[str, Any]]:
    """(id, data) of each row that has data."""
    if path.suffix.lower() != ".csv":
        for row in read_rows(path):
            if row.get("data") is not None:
                yield row["id"], checker.check(row["data"], f"{path}, row {row['id']}")
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark in front
            reader = csv.DictReader(file)
            missing = [name for name in ("id", *map(column_name, columns_of(tree))) if name not in (reader.fieldnames or ())]
            if missing:
                raise OptionError(f"has no column {missing[0]!r}", source=str(path), remedy="correct the CSV file that vlm extract wrote, with its columns")
            for line in reader:
                if line.get("status") not in ("error", "skipped"):
                    yield line["id"], checker.check(_from_cells(line, tree.root, f"{path}, row {line['id']}"), f"{path}, row {line['id']}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f"cannot be read ({error})", source=str(path), remedy="save it as CSV in UTF-8") from error


def _from_cells(line: Mapping[str, str], root: Field, source: str) -> Any:
    """The data of a line; an empty cell is null where that is allowed, else it leaves the value out."""

    def build(field: Field, way: tuple[str, ...], required: bool) -> Any:
        if isinstance(field, ObjectField) and is_struct(field):
            parts = {m.name: build(m.field, (*way, m.name), m.required) for m in field.members}
            return {name: value for name, value in parts.items() if value is not _LEFT_OUT}
        cell = from_cell(line[column_name(way)] or "")
        if not cell and not field.nullable and not (required and isinstance(field, ArrayField)):
            return _LEFT_OUT
        return _parse(cell, field, f"/{column_name(way)}", source)

    return build(root, (), True)


def _parse(cell: str, field: Field, pointer: str, source: str) -> Any:
    """The value of a cell."""
    if not cell:
        return None if field.nullable else []
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
    if isinstance(field, StringField):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        if isinstance(field, (ArrayField, ObjectField)):
            raise OptionError(f"{cell!r} is no JSON", source=f"{source}, {pointer}", remedy='write lists as ["a", "b"]') from None
        return cell


class _Checker:
    """Says whether data satisfies a schema, by jsonschema.

    Raises:
        DependencyError: jsonschema is not installed.
    """

    def __init__(self, schema: Any) -> None:
        try:
            import jsonschema
        except ImportError as error:
            raise DependencyError("jsonschema is not installed", remedy="pip install 'diffusion-vlm[review]'") from error
        self._validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)

    def check(self, data: Any, source: str) -> Any:
        """The data; raises OptionError with the place of what is wrong."""
        for error in self._validator.iter_errors(data):
            pointer = "".join(f"/{escape(str(step))}" for step in error.absolute_path) or "/"
            raise OptionError(f"{error.message}, says the schema", source=f"{source}, {pointer}", remedy="correct the row")
        return data


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
