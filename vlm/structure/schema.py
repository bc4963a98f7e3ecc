"""JSON Schema to a typed tree of fields.

What is supported is what a scaffold can guarantee; every other keyword is a SchemaError that names the keyword, its
JSON pointer and a way out, or in a lenient reading left out and noted. A constraint is never dropped silently.

Keywords: `type` (also unions), `enum` and `const` (any JSON value), `minLength`, `maxLength`, `pattern` (see `regex.py`),
`format` (see `automaton.FORMATS`), `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`,
`properties`, `required`, `additionalProperties`, `patternProperties`, `propertyNames`, `minProperties`, `maxProperties`,
`items`, `prefixItems`, `minItems`, `maxItems`, `uniqueItems`, `anyOf`, `oneOf`, `allOf`, local `$ref` (also recursive),
the spellings of older drafts, and annotations. `x-budget` sets the token budget of a leaf, `x-at-least` names an earlier
sibling that is a lower bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.errors import SchemaError
from vlm.structure.compiler import Compiler
from vlm.structure.fields import ConstField, Schema

_JSON_NAMES = {"list": "an array", "int": "a number", "float": "a number", "str": "a string", "bool": "a boolean", "NoneType": "null"}


def parse_schema(source: Any, *, lenient: bool = False) -> Schema:
    """The field tree of a schema.

    `source`: a JSON Schema as a mapping, as JSON text or as the path of a JSON file; a short template such as
    `{"total": "number"}` (see `shorthand.py`); a dataclass, TypedDict or Pydantic model class. `lenient` leaves out what
    cannot be guaranteed and lists it in `Schema.unchecked`.

    Raises:
        SchemaError: not JSON, not an object, nothing to fill in, or a keyword outside the supported set.
    """
    if isinstance(source, Schema):
        return source
    name = str(source) if isinstance(source, Path) else "schema"
    schema = read_source(source, name)
    if not schema:
        raise SchemaError("describes nothing", source=name, remedy="Name at least one property")
    found = Compiler(schema, lenient).compile()
    if isinstance(found.root, ConstField):
        raise SchemaError("allows one value only: there is nothing to fill in", source=name, remedy="Name at least one property")
    return found


def read_source(source: Any, name: str = "schema") -> Mapping[str, Any]:
    """The JSON Schema behind any of the accepted kinds of sources."""
    from vlm.structure.shorthand import from_class, from_template, is_template, on_paper

    if isinstance(source, Path):
        try:
            source = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SchemaError(f"cannot be read ({error})", source=name, remedy="Name a JSON file in UTF-8") from error
    if isinstance(source, str | bytes):
        try:
            source = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"is not JSON ({error})", source=name, remedy="Give a JSON object, e.g. {'total': 'number'}") from error
    if hasattr(source, "model_json_schema"):
        source = on_paper(source.model_json_schema())
    elif isinstance(source, type):
        source = from_class(source)
    if not isinstance(source, Mapping):
        raise SchemaError(
            f"is {_JSON_NAMES.get(type(source).__name__, type(source).__name__)}, not an object",
            source=name, remedy="Describe an object with properties",
        )  # fmt: skip
    return from_template(source) if is_template(source) else source
