"""Keywords one by one: what compiles, to what, and what is refused where."""

import dataclasses
import datetime
import json
from typing import Literal, NotRequired, TypedDict

import pytest

from tests.structure.schemas import Exact
from tests.structure.support import POCKET
from vlm.errors import SchemaError
from vlm.structure.automaton import FORMATS, leaf_dfa
from vlm.structure.exclusive import admits, disjoint
from vlm.structure.fields import ArrayField, ChoiceField, NumberField, ObjectField, RefField, StringField, UnionField
from vlm.structure.minimal import Minimal
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema


def field_of(schema, **options):
    """The field of one required property with this schema."""
    extra = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
    return parse_schema({"type": "object", "properties": {"a": schema}, "required": ["a"], **extra}, **options).root.members[0].field


LEAVES = [
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "éé€"], ["a", "abcd"]),
    ({"type": "string", "pattern": "b+$", "maxLength": 3}, ["ab", "bbb"], ["ba", "aabb"]),
    ({"allOf": [{"pattern": "^a"}, {"pattern": "z$"}, {"type": "string"}]}, ["az", "abcz"], ["a", "z", "za"]),
    ({"type": "integer", "exclusiveMinimum": 3, "maximum": 12}, ["4", "12"], ["3", "13", "04", "4.0"]),
    ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, ["4"], ["3"]),
    ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0.25}, ["-0.5", "0", "0.249"], ["0.25", "-0.51"]),
    ({"type": "number", "multipleOf": 0.25}, ["0.5", "-1.75", "3", "0"], ["0.3", "0.255"]),
    ({"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 1}, ["0.07", "1", "0.3"], ["0.005", "1.01"]),
    ({"type": "integer", "multipleOf": 7}, ["0", "-14", "21"], ["8"]),
    ({"type": "integer", "format": "int32"}, ["2147483647"], ["2147483648"]),
    ({"type": ["string", "integer"]}, ['"a"', '"\\""', "12", '"12"'], ["a", "1.5", '"']),
    ({"anyOf": [{"type": "string", "format": "date"}, {"enum": ["never"]}]}, ["2024-02-29", "never"], ["2023-02-29", "ever"]),
    ({"enum": [[1, {"k": None}], "x"]}, ['[1, {"k": null}]', '"x"'], ["x", "[1]"]),
    ({"enum": ["1", 1]}, ['"1"', "1"], ["11"]),
    ({"type": "string", "enum": ["a", "bb", 3], "maxLength": 1}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), LEAVES)
def test_languages_of_leaves(schema, good, bad):
    field = field_of(dict(schema))
    if good is None:
        assert dataclasses.replace(field, pointer="").json == '"a"'
        return
    dfa = leaf_dfa(field)
    assert all(dfa.accepts(text) for text in good) and not any(dfa.accepts(text) for text in bad)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_have_words(name):
    words = leaf_dfa(StringField(format=name)).words(5)
    assert words and all(word.decode().isascii() for word in words)


REFUSED = [
    ({"not": {"type": "string"}}, "/properties/a/not"),
    ({"type": "string", "format": "phone"}, "/properties/a/format"),
    ({"type": "string", "pattern": "(?=x)"}, "/properties/a/pattern"),
    ({"type": "array", "contains": {"type": "string"}}, "/properties/a/contains"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "/properties/a/dependentRequired"),
    ({"if": {"type": "string"}, "then": {"maxLength": 3}}, "/properties/a/if"),
    ({"$ref": "other.json"}, "/properties/a/$ref"),
    ({"$ref": "#/$defs/none"}, "/properties/a/$ref"),
    ({"type": "string", "maxLenght": 3}, "/properties/a/maxLenght"),
    ({"type": "frog"}, "/properties/a/type"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "/properties/a"),
    ({"type": "number", "multipleOf": 0.000000000001}, "/properties/a/multipleOf"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "/properties/a/oneOf"),
    ({"oneOf": [{"type": "object", "properties": {"x": {"type": "string"}}}, {"type": "object", "properties": {"y": {"type": "string"}}}]}, "/properties/a/oneOf"),
    ({"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}, "uniqueItems": True, "minItems": 2}, "/properties/a/uniqueItems"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "/properties/a"),
    ({"type": "object", "required": "x"}, "/properties/a/required"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "pointer"), REFUSED)
def test_what_cannot_be_guaranteed_is_refused_by_name(schema, pointer):
    with pytest.raises(SchemaError) as error:
        field_of(dict(schema))
    assert error.value.pointer == pointer and error.value.message


def test_lenient_reading_notes_what_it_leaves_out():
    schema = {"type": "object", "required": ["a"], "properties": {
        "a": {"type": "string", "format": "phone", "not": {"const": "x"}}, "b": {"type": "string", "pattern": "(?=x)y"}}}  # fmt: skip
    found = parse_schema(schema, lenient=True)
    assert found.unchecked == ("/properties/a: not", "/properties/a: format", "/properties/b: pattern")
    scaffold = compile_scaffold(found, POCKET)
    assert scaffold.warnings({"a": "x"})[:1] == ("not checked: /properties/a: not",)
    with pytest.raises(SchemaError):
        parse_schema(schema)


def test_objects_and_arrays():
    assert field_of({"type": "array", "prefixItems": [{"type": "string"}, False]}).max_items == 1
    draft7 = field_of({"type": "array", "items": [{"type": "string"}, {"type": "integer"}], "additionalItems": False})
    assert [type(f) for f in draft7.prefix] == [StringField, NumberField] and draft7.items is None and draft7.max_items == 2
    merged = field_of({"allOf": [
        {"properties": {"x": {"type": "string"}}, "required": ["x"]}, {"type": "object", "properties": {"x": {"maxLength": 3}, "y": {"type": "integer"}}, "additionalProperties": False},
    ]})  # fmt: skip
    assert merged.closed and [m.name for m in merged.members] == ["x", "y"] and merged.members[0].field.max_length == 3
    mapped = field_of({"type": "object", "patternProperties": {"^k": {"type": "integer"}}, "additionalProperties": {"type": "string"}, "properties": {"kk": {"minimum": 4}}})
    assert mapped.members[0].field.low == 4 and len(mapped.entries) == 1 and not leaf_dfa(mapped.entries[0].key).accepts("kk")
    assert field_of({"type": "object", "propertyNames": {"enum": ["u", "v"]}, "additionalProperties": {"type": "boolean"}}).members[1].name == "v"
    assert isinstance(field_of({}), UnionField) and field_of({}).nullable
    assert field_of({"type": "object", "required": ["q"]}).members[0].name == "q"


def test_alternatives_of_required_names_are_one_object():
    schema = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "string"}, "z": {"type": "boolean"}}, "required": ["z"],
              "anyOf": [{"required": ["x"]}, {"required": ["y", "z"]}]}  # fmt: skip
    found = parse_schema(schema)
    assert isinstance(found.root, ObjectField) and found.root.alternatives == (("x",), ("y",))
    scaffold = compile_scaffold(found, POCKET)
    for values, names in (({"/z": "true"}, {"z", "x"}), ({"/z": "true", "/y": "q"}, {"z", "y"}), ({}, {"z", "x"})):
        data, fields = scaffold.read(scaffold.fill(values))
        Exact(schema).validate(data)
        assert set(data) == names and fields["/x"].forced == ("x" in names)


def test_names_from_a_list():
    schema = {"type": "object", "propertyNames": {"enum": ["ka", "kb", "u"]}, "patternProperties": {"^k": {"type": "integer"}}, "minProperties": 3}
    found = parse_schema(schema).root
    assert [m.name for m in found.members] == ["ka", "kb", "u"] and not found.entries and isinstance(found.members[0].field, NumberField)
    with pytest.raises(SchemaError):
        parse_schema({"type": "object", "patternProperties": {"^[ab]$": {"type": "integer"}}, "additionalProperties": False, "minProperties": 3})


def test_one_of():
    field = field_of({"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "enum": ["ab", "cd"]}]})
    dfa = leaf_dfa(field)
    assert dfa.accepts("cd") and dfa.accepts("ax") and not dfa.accepts("ab")
    assert not field_of({"oneOf": [{"type": ["string", "null"]}, {"type": "null"}]}).nullable
    a, b = field_of({"oneOf": [
        {"type": "object", "properties": {"k": {"const": "a"}, "x": {"type": "integer"}}}, {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]},
    ]}).options  # fmt: skip
    assert all(m.required for o in (a, b) for m in o.members if m.name == "k") and disjoint(a, b)


def test_recursion():
    schema = {"type": "object", "required": ["v"], "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}, "all": {"type": "array", "items": {"$ref": "#"}}}}
    found = parse_schema(schema)
    assert set(found.definitions) == {"#"} and isinstance(found.root, ObjectField)
    assert [type(m.field) for m in found.root.members] == [NumberField, RefField, ArrayField]
    with pytest.raises(SchemaError, match="without end"):
        parse_schema({"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}})
    deep = compile_scaffold(found, POCKET, max_recursion=0)
    assert not deep.open and Minimal(found)(found.root) == {"v": 0}


@dataclasses.dataclass
class Node:
    name: str
    size: tuple[int, str]
    tags: set[str]
    extra: dict[str, float]
    inner: "Node | None" = None


class Shape(TypedDict):
    kind: Literal["a", "b"]
    note: NotRequired[str]


def test_classes():
    found = parse_schema(Node)
    kinds = [type(m.field).__name__ for m in found.root.members]
    assert kinds == ["StringField", "ArrayField", "ArrayField", "ObjectField", "RefField"] and found.root.members[2].field.unique
    shape = parse_schema(Shape).root
    assert [(m.name, m.required) for m in shape.members] == [("kind", True), ("note", False)] and isinstance(shape.members[0].field, ChoiceField)
    pydantic = pytest.importorskip("pydantic")

    class Item(pydantic.BaseModel):
        price: float = pydantic.Field(ge=0, le=10)
        inner: list["Item"] = pydantic.Field(default_factory=list)

    model = parse_schema(Item)
    assert model.root is not None and model.definitions
    with pytest.raises(SchemaError, match="without fields"):
        parse_schema(int)


def test_admits_agrees_with_the_reference():
    """On values of all kinds, where it commits itself."""
    schemas = [
        {"type": "integer", "minimum": 2}, {"type": "number", "multipleOf": 0.5}, {"type": "string", "maxLength": 2}, {"enum": ["ab", 1, None]}, {"type": "boolean"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "uniqueItems": True}, {"type": ["object", "null"], "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False, "maxProperties": 1}, {"anyOf": [{"const": "abc"}, {"type": "integer"}]},
    ]  # fmt: skip
    values = [0, 2, 2.0, 2.5, True, None, "ab", "abc", "", [1], [1, 1], [], ["a"], {}, {"x": 1}, {"x": "1"}, {"x": 1, "y": 2}]
    for schema in schemas:
        field = field_of(dict(schema))
        for value in values:
            answer = admits(field, value)
            if answer is not None:
                assert answer == Exact(schema).is_valid(value), (schema, value)


def test_minimal_values_are_valid():
    schema = {"type": "object", "required": ["a", "b", "c", "d"], "minProperties": 6, "properties": {
        "a": {"type": "array", "items": {"enum": ["p", "q", "r"]}, "uniqueItems": True, "minItems": 3}, "b": {"anyOf": [{"type": "object", "required": ["z"], "properties": {"z": {"type": "boolean"}}}, {"type": "array"}]},
        "c": {"type": "string", "pattern": "^x{3}"}, "d": {"type": "integer", "minimum": 17}, "e": {"type": "number"}, "f": {"type": "string"}}}  # fmt: skip
    found = parse_schema(schema)
    data = Minimal(found)(found.root)
    Exact(schema).validate(data)
    assert len(data) == 6 and json.dumps(data)


def test_times_stand_as_on_paper_but_in_schemas():
    pydantic = pytest.importorskip("pydantic")

    class Visit(pydantic.BaseModel):
        at: datetime.time
        on: datetime.datetime | None = None

    @dataclasses.dataclass
    class Plain:
        at: datetime.time

    def forms(schema):
        root = parse_schema(schema).root
        assert isinstance(root, ObjectField)
        return [member.field.format for member in root.members if isinstance(member.field, StringField)]

    assert forms(Visit) == ["time-local", "date-time-local"]
    assert forms(Plain) == forms({"at": "time"}) == ["time-local"]
    assert forms({"type": "object", "properties": {"at": {"type": "string", "format": "time"}}}) == ["time"]
    accepted = {name: leaf_dfa(StringField(format=name)).accepts for name in ("time", "time-local", "date-time", "date-time-local")}
    assert accepted["time"](b"14:35:00Z") and accepted["time"](b"14:35:00.5+02:00")
    assert not any(accepted["time"](text) for text in (b"14:35", b"14:35:00", b"24:00:00Z"))
    assert accepted["time-local"](b"14:35") and accepted["time-local"](b"14:35:07") and not accepted["time-local"](b"14:35Z")
    assert accepted["date-time"](b"2024-02-29T00:00:00Z") and not accepted["date-time"](b"2024-02-29T00:00")
    assert accepted["date-time-local"](b"2024-02-29T00:00") and not accepted["date-time-local"](b"2023-02-29T00:00")


def test_a_reference_alone_is_a_schema():
    with pytest.raises(SchemaError, match="is not local"):
        parse_schema({"$ref": "https://example.com/receipt.json"})
