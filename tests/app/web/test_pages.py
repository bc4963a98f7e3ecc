"""The pages with a scripted model: what each handler gives, without a browser."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.cli import main
from tests.app.web.scripted import scripted
from vision.errors import DependencyError

gr = pytest.importorskip("gradio", reason="Gradio is not installed (extra 'demo')")

from app.journal import read_rows  # noqa: E402
from app.web import pages, serve  # noqa: E402
from app.web.build import build_demo, launch_options  # noqa: E402
from app.web.controls import Decoding, example  # noqa: E402
from app.web.pages import compare, read  # noqa: E402
from app.web.pages.ask import _messages  # noqa: E402
from app.web.pictures import open_picture  # noqa: E402
from vlm.errors import ImageError, OptionError, PromptError  # noqa: E402
from vlm.results import Result  # noqa: E402


@pytest.fixture(scope="module")
def model(tiny):
    return scripted(tiny)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def demo(model):
    return build_demo(model)


def components(demo):
    return {b.elem_id: b for b in demo.blocks.values() if getattr(b, "elem_id", None)}


def handler(demo, elem_id, event="click", last=True):
    """The function behind a component's event; of an example the one that runs."""
    ids = {b.elem_id: i for i, b in demo.blocks.items() if getattr(b, "elem_id", None)}
    found = [fn for fn in demo.fns.values() if (ids[elem_id], event) in fn.targets]
    return found[-1 if last else 0]


def values_of(demo, fn, given):
    """Inputs of a handler: their first values, or what is given by elem_id."""
    return [given.get(c.elem_id, c.value) for c in fn.inputs]


def run(demo, elem_id, **given):
    """Run a handler to its end; outputs by elem_id."""
    fn = handler(demo, elem_id)
    *_, last = fn.fn(*values_of(demo, fn, {k.replace("_", "-"): v for k, v in given.items()}))
    return {getattr(c, "elem_id", None): v for c, v in zip(fn.outputs, last, strict=True)}


def test_every_page_is_a_module(demo):
    titles = [page.title for page in pages.all_pages()]
    assert titles == ["Ask", "Extract", "Ground", "Infill", "Read", "Compare"]
    ids = components(demo)
    assert {f"{title.lower()}-run" for title in titles} <= set(ids)


def test_infill_is_for_this_machine_only(model):
    assert "infill-run" not in components(build_demo(model, local=False))
    assert [serve.is_local(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")] == [True, True, True, False, False]


def test_pages_that_need_a_reader_are_left_out(model, monkeypatch):
    monkeypatch.setattr(model, "info", lambda: {"name": "other", "family": "llada-v", "default_preset": "llada"}, raising=False)
    ids = components(build_demo(model))
    assert "ask-run" in ids and "ground-run" in ids and "read-run" not in ids
    assert ids["ask-preset"].value == "llada"


def test_labels(demo):
    """Whatever takes input has a name that a screen reader can say."""
    inputs = (gr.Textbox, gr.Slider, gr.Number, gr.Dropdown, gr.Radio, gr.File, gr.MultimodalTextbox, gr.Dataframe, gr.Chatbot)
    found = [b for b in demo.blocks.values() if isinstance(b, inputs)]
    assert len(found) > 20 and all(b.label for b in found)
    assert all(b.value for b in demo.blocks.values() if isinstance(b, gr.Button))


def test_nothing_goes_out(demo):
    options = launch_options()
    assert options["share"] is False and demo.analytics_enabled is False
    theme = options["theme"]
    assert not theme._stylesheets and all(not f.__class__.__name__.startswith("Google") for f in theme._font + theme._font_mono)
    assert all(fn.api_visibility == "private" for fn in demo.fns.values())
    computing = [fn for fn in demo.fns.values() if fn.concurrency_id == "model"]
    assert len(computing) >= 12 and all(fn.concurrency_limit == 1 for fn in computing)


def test_extract(demo):
    out = run(demo, "extract-run", extract_file=example("shapes.png"), extract_schema='{"name": "string", "total": "number"}')
    assert "Done." in out["extract-status"] and "Ada Byron" in out["extract-fields"] and "12.5" in out["extract-json"]
    assert out["extract-page"].count("<rect") == 2 and "canvas" in out["extract-canvas"]
    row = json.loads(Path(out["extract-get-json"]["value"]).read_text(encoding="utf-8"))
    assert row["data"] == {"name": "Ada Byron", "total": 12.5} and row["fields"]["/name"]["box"] and row["page"] == 1
    lines = Path(out["extract-get-csv"]["value"]).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("field,value,confidence") and lines[1].startswith("/name,Ada Byron,")
    assert out["extract-step"]["interactive"] and out["extract-step"]["maximum"] > 2


def test_scrubbing_goes_back(demo):
    fn = handler(demo, "extract-run")
    *_, last = fn.fn(*values_of(demo, fn, {"extract-file": example("shapes.png"), "extract-schema": '{"name": "string"}'}))
    trace = next(v for v, c in zip(last, fn.outputs, strict=True) if isinstance(c, gr.State))
    scrub = handler(demo, "extract-step", "input")
    at = [dict(zip([c.elem_id for c in scrub.outputs], scrub.fn(k, trace), strict=True)) for k in (1, len(trace.steps))]
    assert "Ada Byron" not in at[0]["extract-fields"] and "open" in at[0]["extract-fields"] and "Ada Byron" in at[1]["extract-fields"]
    assert "<rect" not in at[0]["extract-page"] and "<rect" in at[1]["extract-page"]
    assert scrub.fn(1, None)  # before anything ran


def test_ask_in_turns(demo):
    fn = handler(demo, "ask-run")
    said = {"text": "how many?", "files": [example("shapes.png")]}
    frames = list(fn.fn(*values_of(demo, fn, {"ask-say": said, "ask-chat": []})))
    chats = [v for frame in frames for v, c in zip(frame, fn.outputs, strict=True) if c.elem_id == "ask-chat" and isinstance(v, list)]
    assert "·" in chats[0][-1]["content"] and chats[-1][-1]["content"] == "two red shapes"
    history = chats[-1]
    out = run(demo, "ask-run", ask_say={"text": "and now?", "files": []}, ask_chat=history)
    assert len(out["ask-chat"]) == len(history) + 2
    # as Gradio hands a conversation back
    back = [
        {"role": "user", "content": [{"type": "file", "file": {"path": example("shapes.png")}}]},
        {"role": "user", "content": [{"type": "text", "text": "how many?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
    ]
    assert [(m["role"], [p["type"] for p in m["content"]]) for m in _messages(back)] == [("user", ["image", "text"]), ("assistant", ["text"])]


def test_ground(demo):
    out = run(demo, "ground-run", ground_file=example("shapes.png"), ground_say="press Save")
    assert '"action": "click"' in out["ground-action"].replace("&quot;", '"') and "Done" in out["ground-status"]
    assert "<rect" in out["ground-page"] and "button" in out["ground-canvas"]  # the canvas says its text to screen readers
    assert "candidate" in out["ground-candidates"] and "%" in out["ground-candidates"]


def test_infill(demo):
    out = run(demo, "infill-run", infill_text="I am [[name:12]], I owe [[total:8:number]].")
    assert "I am Ada Byron, I owe 12.50." in out["infill-filled"] and "Ada Byron" in out["infill-fields"]


def test_read_a_part(demo):
    part = read.part_of(open_picture(example("form.png")), (50, 0, 100, 50))
    assert part.image.size == (280, 210) and part.moved((1, 2, 3, 4)) == (281, 2, 283, 4)
    with pytest.raises(OptionError, match="empty"):
        read.part_of(open_picture(example("form.png")), (50, 0, 50, 50))
    out = run(demo, "read-run", read_file=example("shapes.png"))
    assert out["read-text"] and out["read-lines"].count("<tr>") == out["read-text"].count("\n") + 2 and "<rect" in out["read-page"]


def test_compare(demo):
    said = {"compare_task": "Extract", "compare_words": '{"name": "string"}', "compare_expected": '{"name": "Ada Byron"}'}
    out = run(demo, "compare-run", compare_file=example("shapes.png"), **said)
    assert out["compare-verdict"].count("1 of 1 fields") == 2
    assert components(demo)["compare-b-preset"].value == "one-by-one"
    assert compare.right(Result("Yes"), "yes") == "yes" and compare.right(Result("no"), "yes") == "no" and compare.right(Result("x"), "") == "-"
    assert compare.right(Result("1"), "1") == "yes"


@pytest.mark.parametrize(
    ("page", "given", "words"),
    [
        ("extract", {}, "there is no picture"),
        ("extract", {"extract_file": "form", "extract_schema": "no json"}, "is not JSON"),
        ("extract", {"extract_file": "form", "extract_options": "gama=1"}, "did you mean"),
        ("extract", {"extract_file": "form", "extract_options": "nonsense"}, "NAME=VALUE"),
        ("extract", {"extract_file": "form", "extract_seed": None}, "no seed"),
        ("extract", {"extract_file": "text"}, "notes.png"),
        ("ask", {"ask_say": {"text": "  ", "files": []}}, "the question is empty"),
        ("ground", {"ground_file": "form", "ground_say": ""}, "instruction is empty"),
        ("infill", {"infill_text": "no blank"}, "has no blank"),
        ("read", {"read_file": "form", "read_right": 0}, "is empty"),
        ("compare", {"compare_file": "form", "compare_words": "{"}, "is not JSON"),
        ("many", {}, "there are no files"),
        ("many", {"many_files": ["form"], "extract_schema": "{}"}, "schema"),
    ],
)
def test_errors_are_one_line_on_the_page(demo, tmp_path, page, given, words):
    (tmp_path / "notes.png").write_text("no picture")
    paths = {"form": example("shapes.png"), "text": str(tmp_path / "notes.png")}

    def real(value):
        return [paths[v] for v in value] if isinstance(value, list) else paths.get(value, value) if isinstance(value, str) else value

    out = run(demo, f"{page}-run", **{k: real(v) for k, v in given.items()})
    status = out[f"{page}-status"]
    assert 'role="alert"' in status and words in status and "Traceback" not in status
    assert str(tmp_path) not in status  # no path of the server


def test_what_nobody_foresaw_is_logged_not_shown(demo, model, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(model, "stream_extract", broken)
    out = run(demo, "extract-run", extract_file=example("shapes.png"))
    assert "unexpected" in out["extract-status"] and "secret" not in out["extract-status"] and "secret detail" in caplog.text


def test_many_files_and_going_on(demo, tmp_path, picture):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    tiff = tmp_path / "two.tiff"
    Image.open(picture("p.png")).save(tiff, save_all=True, append_images=[Image.open(picture("q.png", seed=3))])
    files = [str(picture("a.png")), str(bad), str(tiff)]
    schema = '{"name": "string"}'
    out = run(demo, "many-run", many_files=files, extract_schema=schema)
    assert "3 ok" in out["many-status"] and "1 error" in out["many-status"] and "4 of 4 pages, 1 failed" in out["many-progress"]
    path = Path(out["many-get-jsonl"]["value"])
    rows = list(read_rows(path))
    assert [(r["source"], r["page"], r["status"]) for r in rows] == [
        ("a.png", 1, "ok"),
        ("bad.png", None, "error"),
        ("two.tiff", 1, "ok"),
        ("two.tiff", 2, "ok"),
    ]
    assert str(tmp_path) not in path.read_text()
    csv = Path(out["many-get-csv"]["value"]).read_text().splitlines()
    assert csv[0].endswith("name,name#confidence") and ",a.png,1,1,ok," in csv[1]
    # a run that was stopped after the first row, its last line torn
    earlier = tmp_path / "results.jsonl"
    earlier.write_text(json.dumps(rows[0]) + "\n" + '{"id": "1234')
    again = run(demo, "many-run", many_files=[files[0], files[2]], many_before=str(earlier), extract_schema=schema)
    assert "2 ok; 1 rows were there before" in again["many-status"]
    assert [(r["source"], r["page"]) for r in read_rows(Path(again["many-get-jsonl"]["value"]))] == [("a.png", 1), ("two.tiff", 1), ("two.tiff", 2)]
    other = run(demo, "many-run", many_files=files, many_before=str(earlier), extract_schema='{"total": "number"}')
    assert "the result file to go on with: exists already" in other["many-status"] and str(tmp_path) not in other["many-status"]


def test_a_schema_is_never_a_path_or_a_class(demo, tmp_path):
    """What the command line understands besides JSON stays there."""
    (tmp_path / "s.json").write_text('{"name": "string"}')
    for typed in (str(tmp_path / "s.json"), "receipt", "os:PathLike"):
        for page in ("extract", "many"):
            given = {"extract_file": example("shapes.png"), "many_files": [example("shapes.png")], "extract_schema": typed}
            assert "is not JSON" in run(demo, f"{page}-run", **given)[f"{page}-status"]


def test_pages_of_a_file(tmp_path, picture):
    tiff = tmp_path / "two.tiff"
    Image.open(picture("p.png")).save(tiff, save_all=True, append_images=[Image.new("RGB", (30, 20))])
    first, second = (open_picture(str(tiff), number) for number in (1, 2))
    assert (first.size, second.size, first.pages, second.name) == ((64, 48), (30, 20), 2, "two.tiff page 2")
    with pytest.raises(PromptError, match="no page 3"):
        open_picture(str(tiff), 3)


def test_decoding_options():
    assert Decoding.parse("dimple", "gamma=0.5\n\n steps = null ", 3) == {"preset": "dimple", "seed": 3, "gamma": 0.5, "steps": None}
    with pytest.raises(OptionError):
        Decoding.parse("dimple", "gamma", 0)


def test_pictures_are_checked(tmp_path):
    with pytest.raises(PromptError):
        open_picture(None)
    with pytest.raises(ImageError):
        open_picture(str(tmp_path / "none.png"))


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(DependencyError, match=r"diffusion-vlm\[demo\]"):
        serve.check_installed()
    assert main(["demo"]) == 1
    assert "pip install 'diffusion-vlm[demo]'" in capsys.readouterr().err


def test_wrong_port():
    with pytest.raises(OptionError, match="port"):
        serve.run(argparse.Namespace(host="127.0.0.1", port=70000))
