"""Schemas by name: ``receipt``, ``invoice``, ``form``, ``id-card`` and ``table`` come with the program; files, classes and templates are the user's own."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.errors import SchemaError

if TYPE_CHECKING:
    from vlm.structure.fields import Schema

HERE = Path(__file__).parent
#: The schemas that come with the program.
BUILT_IN = tuple(sorted(path.stem for path in HERE.glob("*.json")))


def find_schema(schema: Any) -> Any:
    """What :func:`vlm.structure.schema.parse_schema` takes, from what a user wrote.

    Args:
        schema: text: the JSON of a schema or short template, the path of a JSON file, a name of BUILT_IN, or
            ``package.module:Class`` of a Pydantic model or dataclass. Anything else is returned as it is.

    Raises:
        SchemaError: nothing of that name.
    """
    if isinstance(schema, Path):
        schema = str(schema)
    if not isinstance(schema, str):
        return schema
    if schema.lstrip().startswith("{"):
        return _json(schema, "schema")
    path = Path(schema)
    if path.is_file():
        return _from_file(path)
    if schema in BUILT_IN:
        return _from_file(HERE / f"{schema}.json")
    module, colon, name = schema.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return _class(module, name, schema)
    what = "is a folder" if path.is_dir() else "no such file"
    remedy = f"name a JSON file, one of {', '.join(BUILT_IN)}, or module:Class, or give the JSON itself"
    raise SchemaError(what, source=schema, remedy=remedy)


def parsed(schema: Any, lenient: bool = False) -> tuple[Schema, str]:
    """(compiled schema, its JSON text) of a schema in any form; the text is what rows know it by. `lenient`: see
    :func:`vlm.structure.schema.parse_schema`."""
    from vlm.structure.schema import parse_schema, read_source

    source = find_schema(schema)
    return parse_schema(source, lenient=lenient), json.dumps(read_source(source), separators=(",", ":"))


def _from_file(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"cannot be read ({error})", source=str(path), remedy="name a JSON file in UTF-8") from error
    return _json(text, str(path))


def _json(text: str, source: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"is not JSON ({error})", source=source, remedy='give a JSON object, e.g. {"total": "number"}') from error
    raise SchemaError("is not an object", source=source, remedy="describe an object with properties")


def _class(module: str, name: str, schema: str) -> Any:
    """A class by its import path, looked for in the current folder as well."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's code
        raise SchemaError(f"cannot be imported ({type(error).__name__}: {error})", source=schema, remedy="check the module's name and the class") from error
    finally:
        sys.path.remove(here)
    if not isinstance(found, type):
        raise SchemaError(f"is a {type(found).__name__}, not a class", source=schema, remedy="name a Pydantic model or a dataclass")
    return found
