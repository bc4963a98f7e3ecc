"""Snapshots and their HTML, without a browser and without Gradio."""

import pytest

from app.web import draw
from app.web.schema_table import to_rows, to_schema
from app.web.steps import Snapshot, Trace
from tests.app.web.scripted import scripted
from vlm.errors import SchemaError
from vlm.live import Cell, SlotView
from vlm.results import FieldInfo, Result


@pytest.fixture(scope="module")
def model(tiny):
    return scripted(tiny)


def snapshots(model, picture, schema):
    return list(Trace().record(model, model.stream_extract(picture, schema)))


def test_a_run_is_recorded(model, picture):
    trace = Trace()
    shots = list(trace.record(model, model.stream_extract(picture(), {"name": "string", "total": "number"})))
    assert trace.steps == shots or trace.steps[:-1] == shots[: len(trace.steps) - 1]
    assert [s.step for s in trace.steps] == list(range(1, len(trace.steps) + 1)) and len(trace.steps) > 2
    written = [s.written for s in trace.steps]
    assert written == sorted(written) and all(s.written + s.open == written[-1] for s in trace.steps)
    last = trace.steps[-1]
    assert last.result.data == {"name": "Ada Byron", "total": 12.5} and last.open == 0
    assert any(cell.state == "new" for cell in last.cells)  # the last step shows what it wrote
    assert trace.at(1) is trace.steps[0] and trace.at(99) is last and Trace().at(1) is None


def test_canvas_tells_every_state():
    cells = (
        Cell("{", "given", 0),
        Cell("", "mask", 0),
        Cell("<b>", "new", 0.2),
        Cell("x", "new", 0.99, slot="/a"),
        Cell("y", "kept", 0.5),
        Cell("", "remasked", 0),
    )
    html = draw.canvas(Snapshot(4, 3, 1.0, cells, "{·<b>"))
    for kind in ("given", "mask", "new c0", "new c3", "kept", "remasked"):
        assert f'class="{kind}"' in html
    assert "<b>" not in html and "&lt;b&gt;" in html
    assert 'aria-label="Canvas after step 4: 3 cells written, 2 open. {·&lt;b&gt;"' in html and "new, 99%, /a" in html


def test_padding_behind_an_answer_is_left_out():
    pads = tuple(Cell("", "kept", 0.9, control="<|pad|>") for _ in range(20))
    html = draw.canvas(Snapshot(1, 1, 1.0, (Cell("1", "kept", 0.9), *pads), "1"))
    assert html.count("<span") == 2


def test_fields_while_open_and_when_done():
    info = FieldInfo("<i>7</i>", 0.25, (1, 2, 3, 4), False, "/a")
    shot = Snapshot(1, 1, 1.0, slots=(SlotView("/a", "7", info), SlotView("/items/0/b", "x··")))
    html = draw.fields(shot)
    assert "&lt;i&gt;7" in html and "25%" in html and "x··" in html and "<meter" in html
    assert draw.marks(shot) == [draw.Mark((1, 2, 3, 4), "a: <i>7</i>", 0)]
    assert '"items": [' in draw.json_so_far(shot).replace("&quot;", '"')
    done = Snapshot(1, 1, 1.0, result=Result("", {"a": None}, fields={"/a": FieldInfo(None, 0.5, None, True, "/a")}))
    assert "not on the page" in draw.fields(done) and "repaired" in draw.fields(done) and draw.marks(done) == []
    assert "appear" in draw.fields(None) and "appears" in draw.json_so_far(None) and "appears" in draw.canvas(None)


def test_pictures_and_lines_are_escaped():
    html = draw.picture('/tmp/a "b".png', (10, 20), '<x>"', [draw.Mark((0, 0, 1, 1), "<script>")])
    assert "<script>" not in html and "<x>" not in html and 'viewBox="0 0 10 20"' in html
    assert 'src="gradio_api/file=/tmp/a%20%22b%22.png"' in html
    assert draw.status("<b>", "alert") == '<div class="vlm-alert" role="alert">&lt;b&gt;</div>'
    assert "broken file" in draw.finished(Result(status="error", error={"message": "broken file"}))
    assert "repaired" in draw.finished(Result(status="forced")) and "Note: cut off." in draw.finished(Result(warnings=("cut off",)))


def test_counters():
    shot = Snapshot(3, 2, 41.4, (Cell("a", "kept", 1), Cell("b", "new", 1), Cell("c", "given", 0), Cell("", "mask", 0)))
    assert "<dd>1.0</dd>" in draw.counters(shot) and "<dd>41</dd>" in draw.counters(shot)
    assert draw.counters(None) == ""


def test_schema_table():
    assert to_rows('{"a": "string", "b": "x|y"}') == [["a", "string"], ["b", "x|y"]]
    for other in ("no json", "[1]", '{"a": {"b": "string"}}', '{"type": "object", "properties": {}}'):
        assert to_rows(other) is None
    assert to_rows(to_schema([["a", ""], ["", "number"], [" b ", "date"], [None, None]])) == [["a", "string"], ["b", "date"]]
    with pytest.raises(SchemaError, match="twice"):
        to_schema([["a", "string"], ["a", "date"]])
