"""The command line on a random pocket: output forms, exit codes, nothing lost."""

import json
import subprocess
import sys

import jsonschema
import pytest

from app.cli import main, parse

SCHEMA = {"type": "object", "properties": {"total": {"type": ["number", "null"]}, "who": {"type": "string", "maxLength": 6}}, "required": ["total", "who"]}


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schemas" / "receipt.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SCHEMA))
    return str(path)


@pytest.fixture
def vlm(tiny, capsys):
    """Runs a command on the random model: (exit code, stdout, stderr)."""

    def call(*args, model=tiny):
        code = main([*map(str, args), "--model", str(model)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_one_image_gives_plain_text(vlm, picture, schema):
    path = picture()
    code, out, _ = vlm("caption", path, "--max-new-tokens", 8)
    assert code == 0
    assert str(path) not in out and len(out.strip()) <= 8
    assert vlm("ask", path, "-q", "what is it?", "--max-new-tokens", 4)[0] == 0
    code, out, _ = vlm("extract", path, "--schema", schema)
    assert code == 0
    jsonschema.validate(json.loads(out), SCHEMA)
    code, out, _ = vlm("ground", path, "-i", "click OK")
    assert code == 0 and out.split()[0].rstrip(",") in ("click", "type", "hover", "select")
    assert vlm("read", path)[0] == 0


def test_json_rows(vlm, picture, schema):
    path = picture()
    code, out, err = vlm("extract", path, "--schema", schema, "--json")
    (row,) = rows_of(out)
    assert code == 0 and not err
    assert set(row["fields"]["/who"]) == {"confidence", "p_valid", "forced", "box"} and set(row["usage"]) == {"forwards", "tokens", "ms"}
    assert list(row) == ["id", "source", "page", "n_pages", "status", "data", "fields", "error", "usage", "versions"]
    assert row["source"] == str(path) and (row["page"], row["n_pages"]) == (1, 1) and len(row["id"]) == 32
    assert set(row["fields"]) == {"/total", "/who"}
    assert row["usage"]["forwards"] >= 1 and row["usage"]["ms"] > 0


def test_lenient_schemas_are_filled_and_rows_say_what_was_not_checked(vlm, picture):
    path, schema = picture(), json.dumps({**SCHEMA, "not": {"required": ["odd"]}})
    code, out, err = vlm("extract", path, "--schema", schema, "--json")
    assert code != 0 and not out and "/not" in err
    code, out, _ = vlm("extract", path, "--schema", schema, "--json", "--lenient")
    (row,) = rows_of(out)
    assert code == 0 and any("not checked" in warning for warning in row["warnings"])


def test_folder_keeps_every_file(vlm, picture, schema, tmp_path):
    for index in range(5):
        picture(f"in/{index}.png", seed=index)
    (tmp_path / "in" / "2b.png").write_text("no picture")
    (tmp_path / "in" / "3b.jpg").touch()
    (tmp_path / "in" / "notes.txt").touch()
    out_file = tmp_path / "out" / "rows.jsonl"
    code, out, err = vlm("extract", tmp_path / "in", "--schema", schema, "--out", out_file, "--batch-size", 2)
    assert code == 3 and out == ""
    rows = rows_of(out_file.read_text())
    assert [r["source"].split("/")[-1] for r in rows] == ["0.png", "1.png", "2.png", "2b.png", "3.png", "3b.jpg", "4.png"]
    assert [r["status"] == "error" for r in rows] == [False, False, False, True, False, True, False]
    assert [rows[i]["error"]["type"] for i in (3, 5)] == ["ImageFormatError", "ImageTruncatedError"]
    assert "1 files are no images and were passed over" in err and "7 pages in, 7 rows in" in err
    for row in rows:
        if row["status"] != "error":
            jsonschema.validate(row["data"], SCHEMA)


def test_batches_equal_singles(vlm, picture, tmp_path, exact):
    for index in range(3):
        picture(f"in/{index}.png", seed=index, size=(48 + 16 * index, 40))
    together = rows_of(vlm("ask", tmp_path / "in", "-q", "who?", "--max-new-tokens", 6, "--json")[1])
    alone = rows_of(vlm("ask", tmp_path / "in", "-q", "who?", "--max-new-tokens", 6, "--json", "--batch-size", 1)[1])
    assert [r["text"] for r in together] == [r["text"] for r in alone]


def test_text_of_several_images(vlm, picture, tmp_path, schema):
    first, second = picture("a.png"), picture("b.png", seed=1)
    code, out, _ = vlm("caption", first, second, tmp_path / "c.png", "--max-new-tokens", 4)
    assert code == 3
    starts = [line for line in out.splitlines() if line.startswith(str(tmp_path))]
    assert [line.split(": ")[0] for line in starts] == [str(first), str(second), str(tmp_path / "c.png")]
    assert "error: ImageNotFoundError" in starts[2]
    assert f"{second}:\n{{" in vlm("extract", first, second, "--schema", schema)[1]


def test_all_failed_is_exit_1(vlm, tmp_path):
    code, out, err = vlm("read", tmp_path / "a.png", tmp_path / "b.png", "--json")
    assert code == 1 and len(rows_of(out)) == 2 and err.count("no such file") == 2


def test_out_is_not_overwritten_unasked(vlm, picture, tmp_path):
    path, out_file = picture(), tmp_path / "rows.jsonl"
    out_file.write_text("precious\n")
    code, _, err = vlm("read", path, "--out", out_file)
    assert code == 2 and "exists already" in err and out_file.read_text() == "precious\n"
    assert vlm("read", path, "--out", out_file, "--overwrite")[0] == 0
    assert rows_of(out_file.read_text())[0]["task"] == "read"


def test_out_that_cannot_be_written(vlm, picture, tmp_path):
    code, _, err = vlm("read", picture(), "--out", tmp_path)
    assert code == 2 and "is a folder" in err
    (tmp_path / "file").touch()
    code, _, err = vlm("read", picture(), "--out", tmp_path / "file" / "rows.jsonl")
    assert code == 2 and "cannot be written" in err


def test_a_name_that_is_no_unicode_has_its_row(vlm, tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(b"x")
    out_file = tmp_path / "rows.jsonl"
    code, _, _ = vlm("read", tmp_path / name, "--out", out_file)
    assert code == 1
    assert rows_of(out_file.read_text(encoding="utf-8"))[0]["source"] == str(tmp_path / name)


def test_decoding_options_reach_the_model(vlm, picture):
    path = picture()

    def forwards(*options):
        return rows_of(vlm("caption", path, "--max-new-tokens", 8, "--json", *options)[1])[0]["usage"]["forwards"]

    assert forwards("--preset", "threshold", "--set", "threshold=0") == 1
    assert forwards("--preset", "one-by-one") >= 4
    assert forwards("--set", "max_forwards=2") == 2
    texts = {vlm("caption", path, "--max-new-tokens", 8, "--set", "temperature=3", "--seed", seed)[1] for seed in range(4)}
    assert len(texts) > 1


def test_info(vlm):
    code, out, _ = vlm("info")
    assert code == 0 and "model.parameters.total" in out
    details = json.loads(vlm("info", "--json")[1])
    assert details["model"]["family"] == "pocket" and "dimple" in details["presets"]


def test_info_of_a_published_checkpoint(vlm, shared):
    folder = shared / "parity" / "llada"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("../shared/parity/llada is not here")
    code, out, _ = vlm("info", "--json", model=folder)
    details = json.loads(out)["model"]
    assert code == 0 and details["family"] == "llada" and details["fits"] and details["parameters"]["total"] > 0 and not details["missing"]


def test_bench(vlm, picture, schema):
    path = picture()
    code, out, _ = vlm("bench", path, "--schema", schema, "--repeat", 2, "--json")
    assert code == 0
    rows = {row["task"]: row for row in json.loads(out)["tasks"]}
    assert list(rows) == ["caption", "extract", "read"]
    assert rows["extract"]["runs"] == 2 and rows["extract"]["forwards"] >= 1 and rows["read"]["forwards"] == 0
    code, out, err = vlm("bench", path, path.with_name("none.png"), "--tasks", "read", "--repeat", 1)
    assert code == 3 and "no such file" in err and out.splitlines()[1].split()[:3] == ["read", "1", "1"]
    assert vlm("bench", path, "--tasks", "ask")[0] == 2


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vlm 0.")
    with pytest.raises(SystemExit) as stop:
        parse(["extract", "--help"])
    assert stop.value.code == 0
    assert "exit codes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        parse([])
    assert stop.value.code == 2


def test_as_a_program(tiny, picture, tmp_path):
    """Through a real process: streams apart, no progress bar where there is no terminal, a closed pipe is no crash."""
    command = [sys.executable, "-m", "app", "read", str(picture()), str(picture("b.png")), "--json", "--model", str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert len(rows_of(done.stdout)) == 2
    assert done.stderr.startswith("vlm: 2 pages in, 2 rows: 2 ok") and "%" not in done.stderr
    closed = subprocess.run(f"{' '.join(command)} --quiet | true", shell=True, capture_output=True, text=True, check=False)
    assert closed.stderr == ""
