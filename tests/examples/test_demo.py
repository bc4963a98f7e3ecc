"""The demo on a random pocket: it reads its folder, prints every request, writes every row."""

import json
import shutil

import jsonschema
from PIL import Image

from examples.demo import HERE, checks, main, requests_in
from vlm import Result
from vlm.structure.schema import parse_schema

INPUTS = HERE / "inputs"


def test_inputs_are_what_the_requests_say():
    requests = json.loads((INPUTS / "requests.json").read_text(encoding="utf-8"))
    assert {r["image"] for r in requests} == {p.name for p in INPUTS.iterdir() if p.suffix in (".png", ".jpg")}
    for request in requests:
        with Image.open(INPUTS / request["image"]) as image:
            image.verify()
        if request["task"] == "extract":
            schema = json.loads((INPUTS / request["schema"]).read_text(encoding="utf-8"))
            parse_schema(schema)
            jsonschema.validate(request["truth"], schema)
    assert sum(p.stat().st_size for p in INPUTS.iterdir()) < 600_000


def test_demo_runs(quiet, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for name in ("scene.png", "screen.png", "card.jpg", "card.json"):
        shutil.copy(INPUTS / name, inputs)
    requests = [r for r in json.loads((INPUTS / "requests.json").read_text(encoding="utf-8")) if r["image"] in ("screen.png", "card.jpg")]
    (inputs / "requests.json").write_text(json.dumps(requests))
    (inputs / "torn.png").write_bytes(b"no picture")
    assert main(["--inputs", str(inputs), "--out", str(tmp_path / "out"), "--model", str(quiet)]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "demo.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(requests) + 4  # the scene and the torn file are captioned and read
    assert [row["request"] for row in rows] == requests_in(inputs)
    assert [row["status"] for row in rows if row["request"]["image"] == "torn.png"] == ["error", "error"]
    assert "/birthday" in out and "ImageFormatError" in out and str(tmp_path / "out" / "demo.jsonl") in out


def test_demo_without_weights(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("demo: CheckpointError")


def test_checks():
    request = {"task": "extract", "truth": {"a/b": 1, "items": [{"n": "x"}, {"n": "y"}]}}
    assert checks(request, Result(data={"a/b": 1, "items": [{"n": "x"}]})) == {"/a~1b": True, "/items/0/n": True, "/items/1/n": False}
    ground = {"task": "ground", "truth": {"action": "click", "box": [10, 10, 20, 20]}}
    assert checks(ground, Result(data={"action": "type"}, box=(12, 12, 18, 18))) == {"/action": False, "/bbox": True}
    assert checks(ground, Result(data={"action": "click"})) == {"/action": True, "/bbox": False}
    assert checks({"task": "ask", "truth": "1"}, Result(" 1")) == {"": True}
    assert checks({"task": "ask", "truth": "1"}, Result(status="error")) == {}
    assert checks({"task": "read"}, Result("text")) == {}
