"""Every kind of bad input ends in one typed line, or in a row of a batch; never in a traceback."""

import json

import numpy as np
import pytest
from PIL import Image

from app.cli import main


def truncated(path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES = {
    "missing.png": (lambda path: None, "ImageNotFoundError"),
    "empty.png": (lambda path: path.touch(), "ImageTruncatedError"),
    "text.png": (lambda path: path.write_text("just words"), "ImageFormatError"),
    "cut.jpg": (truncated, "ImageTruncatedError"),
    "bomb.png": (lambda path: Image.new("1", (20000, 20000)).save(path), "ImageTooLargeError"),
    "pages.pdf": (lambda path: path.write_bytes(b"%PDF-1.7 ..."), "ImageTruncatedError"),
}


@pytest.fixture
def vlm(quiet, capsys):
    def call(*args):
        try:
            code = main([*map(str, args), "--model", str(quiet)])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(vlm, tmp_path, name):
    make, kind = BAD_FILES[name]
    make(tmp_path / name)
    code, out, err = vlm("read", tmp_path / name)
    assert code == 1 and out == ""
    assert err.count("\n") == 1 and err.startswith(f"vlm: {kind}: {tmp_path / name}")


def test_bad_files_in_a_batch(vlm, tmp_path, picture):
    good = [picture("a.png"), picture("z.png")]
    for name, (make, _) in BAD_FILES.items():
        make(tmp_path / name)
    (tmp_path / "empty folder").mkdir()
    names = [good[0], *(tmp_path / name for name in BAD_FILES), tmp_path / "empty folder", good[1]]
    code, out, _ = vlm("extract", *names, "--schema", '{"total": "number"}', "--json", "--batch-size", 3)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [row["source"] for row in rows] == [str(name) for name in names]
    assert [row["error"]["type"] for row in rows[1:-1]] == [kind for _, kind in BAD_FILES.values()] + ["ImageNotFoundError"]
    assert rows[0]["status"] == rows[-1]["status"] == "ok"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20000, 10), (7, 9)])
def test_odd_sizes_are_read(vlm, tmp_path, size):
    Image.new("RGB", size, "white").save(tmp_path / "odd.png")
    for command in (("read",), ("extract", "--schema", '{"a": "date"}'), ("ground", "-i", "click"), ("ask", "-q", "who", "--max-new-tokens", 2)):
        code, _, err = vlm(command[0], tmp_path / "odd.png", *command[1:])
        assert code == 0, err


def test_every_page_has_its_row(vlm, tmp_path):
    pages = [Image.new("RGB", (60, 40), (i, i, i)) for i in range(40)]
    pages[0].save(tmp_path / "many.tiff", save_all=True, append_images=pages[1:])
    code, out, err = vlm("read", tmp_path / "many.tiff", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(r["page"], r["n_pages"]) for r in rows] == [(i, 40) for i in range(1, 41)] and len({r["id"] for r in rows}) == 40
    assert "40 pages in, 40 rows: 40 ok" in err


BAD_REQUESTS = {
    "schema is not JSON": (["extract", "--schema", "{total"], "SchemaError", "is not JSON"),
    "schema file is missing": (["extract", "--schema", "nowhere.json"], "SchemaError", "nowhere.json: no such file"),
    "schema is a folder": (["extract", "--schema", "."], "SchemaError", "is a folder"),
    "schema has no fields": (["extract", "--schema", "{}"], "SchemaError", ""),
    "keyword": (
        ["extract", "--schema", '{"type":"object","properties":{"a":{"type":"object","properties":{"b":{"not":{}}}}}}'],
        "SchemaError", "/properties/a/properties/b",
    ),
    "unsupported keyword": (
        ["extract", "--schema", '{"type":"object","properties":{"a":{"type":"array","items":{"type":"string"},"contains":{}}}}'],
        "SchemaError", "/properties/a/contains: unsupported keyword 'contains'",
    ),
    "empty question": (["ask", "-q", " "], "PromptError", "question is empty"),
    "empty instruction": (["ground", "-i", ""], "PromptError", "instruction is empty"),
    "unknown preset": (["caption", "--preset", "dimpel"], "OptionError", "did you mean 'dimple'"),
    "unknown decoding option": (["caption", "--set", "gama=1"], "OptionError", "did you mean 'gamma'"),
    "option without value": (["caption", "--set", "gamma"], "OptionError", "NAME=VALUE"),
    "no cells": (["caption", "--max-new-tokens", "0"], "OptionError", "max_new_tokens is 0"),
    "no batch": (["caption", "--batch-size", "0"], "OptionError", "--batch-size is 0"),
    "no threads": (["caption", "--threads", "0"], "OptionError", "--threads is 0"),
    "surrogate": (["ask", "-q", "who \udc80"], "PromptError", "surrogate"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REQUESTS)
@pytest.mark.parametrize("count", [1, 2])
def test_bad_request(vlm, picture, name, count):
    args, kind, words = BAD_REQUESTS[name]
    code, out, err = vlm(args[0], *[picture(f"{i}.png") for i in range(count)], *args[1:])
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith(f"vlm: {kind}: ")
    assert words in err


@pytest.mark.parametrize("text", ["[1, 2]", "3", '"total"', "null"])
def test_schema_file_that_is_no_object(vlm, picture, tmp_path, text):
    (tmp_path / "schema.json").write_text(text)
    code, _, err = vlm("extract", picture(), "--schema", tmp_path / "schema.json")
    assert code == 2 and "SchemaError" in err and "not an object" in err and "schema.json" in err


def test_prompt_longer_than_the_context(vlm, picture):
    question = "why? " * 300
    code, _, err = vlm("ask", picture(), "-q", question)
    assert code == 1 and err.startswith("vlm: ContextLengthError: ") and err.count("\n") == 1 and "1024" in err
    code, out, _ = vlm("ask", picture("a.png"), picture("b.png"), "-q", question, "--json")
    assert code == 1
    assert [json.loads(line)["error"]["type"] for line in out.splitlines()] == ["ContextLengthError"] * 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["caption", "--bogus", "a.png"], "vlm caption: error: unknown option --bogus"),
        (["caption", "--jsn", "a.png"], "did you mean --json?"),
        (["caption"], "INPUT"),
        (["extract", "a.png"], "--schema"),
        (["paint", "a.png"], "invalid choice: 'paint'"),
        (["caption", "--max-new-tokens", "many", "a.png"], "invalid int value: 'many'"),
    ],
)
def test_usage(capsys, args, words):
    with pytest.raises(SystemExit) as stop:
        main(args)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and words in err


def test_checkpoints_that_cannot_be_used(capsys, picture, tmp_path, monkeypatch):
    path = str(picture())
    assert main(["read", path, "--model", str(tmp_path / "none")]) == 1
    assert "CheckpointError" in capsys.readouterr().err
    monkeypatch.setattr("vlm.checkpoint.POCKET", tmp_path)
    assert main(["read", path]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vlm: CheckpointError: pocket: the weights of the embedded model are not in this installation. Train them")
    assert main(["read", path, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_robustness_pack(vlm, robustness):
    """Rows and statuses of the pack's manifest, PDF pages and HEIF among them."""
    pytest.importorskip("pypdfium2")
    pytest.importorskip("pillow_heif")
    expected = {}
    for line in (robustness / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        expected[str(robustness / row["file"])] = row["expect"]
    big = next(name for name in expected if name.endswith("one_colour_9000.png"))  # its 81 million pixels take seconds
    del expected[big]
    code, out, _ = vlm("extract", *expected, "--schema", '{"text": "string"}', "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert list(dict.fromkeys(row["source"] for row in rows)) == list(expected)
    for name, expect in expected.items():
        own = [row for row in rows if row["source"] == name]
        assert len(own) in expect["rows"] and {row["n_pages"] for row in own} <= {len(own), None}, name
        assert {row["status"] for row in own} <= {*expect["status"], *(["forced"] if "ok" in expect["status"] else [])}, name
    protected = next(name for name in expected if name.endswith("password.pdf"))
    assert vlm("read", protected, "--password", "secret-a", "--json")[1].count("\n") == 2
