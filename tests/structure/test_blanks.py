"""Text with blanks: what is written, what becomes of it, and what is refused."""

import pytest

from vlm.errors import SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.blanks import Blank, compile_blanks, parse_blanks


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.pocket()


def blanks(text):
    return [part for part in parse_blanks(text) if isinstance(part, Blank)]


def test_parts_in_order():
    parts = parse_blanks("Paid by [[who:6]], [[8]] in all.")
    assert [p if isinstance(p, str) else (p.name, p.cells) for p in parts] == ["Paid by ", ("who", 6), ", ", ("blank", 8), " in all."]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The total is [[8]] and the date [[10]]", ["total", "date"]),
        ("vendor: [[8]]\n[[8]]", ["vendor", "blank"]),
        ("total [[4]] total [[4]]", ["total", "total 2"]),
        ("a/b~c [[ x / y ~ z : 4 ]]", ["x / y ~ z"]),
    ],
)
def test_names(text, names, tokenizer):
    assert [b.name for b in blanks(text)] == names
    scaffold = compile_blanks(text, tokenizer)
    data, fields = scaffold.read(scaffold.fill({slot.pointer: "1" for slot in scaffold.slots}))
    assert list(data) == names and set(data.values()) == {"1"} and len(fields) == len(names)


def test_scaffold_lays_the_text_out(tokenizer):
    scaffold = compile_blanks("n [[a:4:number]] of [[b:6:cash|card]] <|mask|>", tokenizer)
    assert [(s.pointer, s.kind, s.budget) for s in scaffold.slots] == [("/a", "number", 4), ("/b", "enum", 6)]
    ids = scaffold.fill({"/a": "2.5", "/b": "card"})
    assert tokenizer.decode(ids) == "n 2.5 of card <|mask|>"
    assert scaffold.read(ids)[0] == {"a": 2.5, "b": "card"}
    row = scaffold.to_canvas_rows()
    assert sum(row.masked) == 10 and row.slot_index[scaffold.slots[1].start] == 1


def test_kinds(tokenizer):
    pattern, strict = compile_blanks(r"[[code:5:/[A-Z]{2}\d:?/]] [[n:3:integer!]]", tokenizer).slots
    assert pattern.nullable and not strict.nullable
    scaffold = compile_blanks(r"[[code:5:/[A-Z]{2}\d:?/]]", tokenizer)
    assert scaffold.read(scaffold.fill({"/code": "AB1:"}))[0] == {"code": "AB1:"}
    assert scaffold.read(scaffold.fill({"/code": "ab1"}))[1]["/code"].forced  # what the pattern refuses does not come through


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no blank at all", "has no blank"),
        ("[[]]", "has no length"),
        ("[[name]]", "has no length"),
        ("[[name:x]]", "has no length"),
        ("[[0]]", "0 cells long"),
        ("[[name:9999]]", "9999 cells long"),
        ("[[name:4:nonsense]]", "nonsense"),
        ("[[name:4:/(/]]", "kind"),
        ("[[day:4:date]]", "at least 10 cells"),
        ("x" * 40_000 + "[[4]]", "most"),
    ],
)
def test_refused(text, words, tokenizer):
    with pytest.raises(SchemaError, match=words):
        compile_blanks(text, tokenizer)
