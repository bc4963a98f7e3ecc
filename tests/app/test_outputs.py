"""Tables, merged documents, the report and the review loop, all made from the rows of a real job."""

import csv
import html.parser
import json
import re
import shutil
import subprocess

import pytest

from app.batch import extract_batch
from app.corrections import write_conversations
from app.journal import WriteError, read_rows
from app.merge import merge_documents
from app.outputs import Output
from app.report import write_report
from app.requests import Request
from app.rows import json_line
from app.tables import from_cell, write_csv, write_parquet
from tests.app.support import encoded, job_of, load, tiff, write, zipped
from vlm.errors import OptionError

SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"type": ["string", "null"], "maxLength": 4},
        "place": {"type": "object", "properties": {"n": {"type": ["integer", "null"], "minimum": 0, "maximum": 99}, "own": {"type": ["boolean", "null"]}}, "required": ["n", "own"]},
        "kind": {"enum": ["a", 1, None]},
        "items": {"type": "array", "maxItems": 2, "items": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 2}}, "required": ["name"]}},
    },
    "required": ["who", "place", "kind", "items"],
}
DATA = {"who": "=A1", "place": {"n": 7, "own": True}, "kind": 1, "items": [{"name": "ab"}]}


def row(id, page=1, n_pages=1, data=DATA, source="a.png", sure=0.5, status="ok", **more):
    pointers = [] if data is None else ["/who", "/place/n", "/place/own", "/kind", *(f"/items/{i}/name" for i in range(len(data["items"])))]
    fields = {p: {"confidence": sure, "p_valid": None, "forced": False, "box": [1.0, 2.0, 3.0, 4.0]} for p in pointers}
    error = {"type": "E", "message": "m", "stage": "load"} if status == "error" else None
    usage = {"forwards": 2, "tokens": 3, "ms": 1.5}
    return {"id": id, "source": source, "page": page, "n_pages": n_pages, "status": status, "data": data, "fields": fields, "error": error, "usage": usage, "versions": {"model": "x"}, **more}


def saved(path, rows):
    path.write_text("".join(json_line(r) + "\n" for r in rows))
    return path


def tree():
    return Request.extract(SCHEMA).tree


def test_csv(tmp_path):
    write_csv([row("1"), row("2", data=None, status="error")], tmp_path / "a.csv", tree())
    first, second = csv.DictReader((tmp_path / "a.csv").open(newline=""))
    assert list(first)[:12] == ["id", "source", "page", "n_pages", "status", "error", "confidence", "who", "place/n", "place/own", "kind", "items"]
    assert first["who"] == "'=A1" and from_cell(first["who"]) == "=A1"
    assert (first["place/n"], first["place/own"], first["kind"], first["items"]) == ("7", "true", "1", '[{"name": "ab"}]')
    assert first["who#confidence"] == "0.5" and first["confidence"] == "0.5"
    assert second["error"] == "m" and second["who"] == "" and second["confidence"] == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "a.csv"]


def test_parquet(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [row("1"), row("2", data=None, status="error", page=None, n_pages=None, source="caf\udce9.png"), row("3", warnings=["w"])]
    write_parquet(rows, tmp_path / "a.parquet", tree())
    table = pq.read_table(tmp_path / "a.parquet")
    assert str(table.schema.field("data").type) == "struct<who: string, place: struct<n: int64, own: bool>, kind: string, items: list<element: struct<name: string>>>"
    first, second, third = table.to_pylist()
    assert first["data"] == {**DATA, "kind": "1"} and dict(first["fields"])["/who"]["box"] == [1.0, 2.0, 3.0, 4.0]
    assert second["data"] is None and second["error"]["message"] == "m" and second["page"] is None and third["warnings"] == ["w"]


def test_tables_of_text_tasks(tmp_path):
    said = {**row("1", data=None), "text": "-a cat", "confidence": 0.9}
    write_csv([said], tmp_path / "a.csv", None)
    (line,) = csv.DictReader((tmp_path / "a.csv").open(newline=""))
    assert line["text"] == "'-a cat" and line["confidence"] == "0.9"


def test_a_failed_table_leaves_the_old_one(tmp_path):
    (tmp_path / "a.csv").write_text("old")

    def rows():
        yield row("1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_csv(rows(), tmp_path / "a.csv", tree())
    assert (tmp_path / "a.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_merging_takes_the_surest_value_and_joins_lists(tmp_path):
    one = row("1", 1, 3, {"who": "A", "place": {"n": None, "own": None}, "kind": None, "items": [{"name": "ab"}]}, sure=0.9)
    two = row("2", 2, 3, {"who": "B", "place": {"n": 5, "own": None}, "kind": "a", "items": [{"name": "cd"}, {"name": "ef"}]}, sure=0.4)
    bad = row("3", 3, 3, None, status="error")
    other = row("9", source="b.png")
    document, second = merge_documents(saved(tmp_path / "r.jsonl", [one, bad, other, two]))  # as after --retry-errors
    assert document["data"] == {"who": "A", "place": {"n": 5, "own": None}, "kind": "a", "items": [{"name": "ab"}, {"name": "cd"}, {"name": "ef"}]}
    assert {p: f["page"] for p, f in document["fields"].items()} == {"/who": 1, "/place/n": 2, "/place/own": 1, "/kind": 2, "/items/0/name": 1, "/items/1/name": 2, "/items/2/name": 2}
    assert document["status"] == "partial" and document["page"] is None and document["n_pages"] == 3 and document["usage"]["forwards"] == 6
    assert document["warnings"] == ["/who: page 2 says 'B', page 1 was surer", "page 3: m"]
    assert second["source"] == "b.png" and second["data"] == DATA and second["status"] == "ok"


def test_merging_failed_and_forced_pages(tmp_path):
    rows = [row("1", 1, 2, None, status="error"), row("2", 2, 2, None, status="error"), row("3", 1, 2, source="b"), row("4", 2, 2, source="b", status="forced")]
    first, second = merge_documents(saved(tmp_path / "r.jsonl", rows))
    assert first["status"] == "error" and first["data"] is None and first["error"]["message"] == "m"
    assert second["status"] == "forced"


@pytest.fixture(scope="module")
def model(tiny, exact):
    return load(tiny)


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """(folder of inputs, file of rows)."""
    folder = tmp_path_factory.mktemp("in")
    (folder / "a.png").write_bytes(encoded(1))
    (folder / "b<script>.png").write_bytes(encoded(2))
    (folder / "bad.png").write_bytes(b"no")
    tiff(folder / "c.tiff", 2)
    zipped(folder / "d.zip", {"1.png": encoded(5)})
    out = folder.parent / "rows.jsonl"
    write(job_of(model, [folder], schema=SCHEMA), out)
    return folder, out


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_every_kind_of_output_is_continued(model, done, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"docs.{suffix}"
    first = extract_batch([done[0] / "a.png"], SCHEMA, out, model=model, merge=True)
    second = extract_batch([done[0] / "a.png", done[0] / "c.tiff"], SCHEMA, out, model=model, merge=True)
    assert (first.rows, second.rows, second.done) == (1, 2, 1)
    assert len(list(read_rows(tmp_path / f"docs.{suffix}.pages.jsonl"))) == 3
    if suffix == "jsonl":
        assert [r["n_pages"] for r in read_rows(out)] == [1, 2]
    (tmp_path / f"docs.{suffix}.pages.jsonl").unlink()
    with pytest.raises(OptionError, match="not beside it"):
        extract_batch([done[0] / "a.png"], SCHEMA, out, model=model, merge=True)


def test_an_output_that_cannot_be_written_loses_nothing(model, done, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(__import__("app.outputs", fromlist=["TABLES"]).TABLES, ".csv", full)
    with pytest.raises(WriteError, match="the rows are complete in"):
        extract_batch([done[0] / "a.png"], SCHEMA, tmp_path / "a.csv", model=model)
    monkeypatch.undo()
    summary = extract_batch([done[0] / "a.png"], SCHEMA, tmp_path / "a.csv", model=model)
    assert summary.done == 1 and (tmp_path / "a.csv").exists()


def test_output_in_a_folder(tmp_path):
    with pytest.raises(OptionError, match="is a folder"):
        Output(tmp_path)


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.TSV"])
def test_a_kind_of_file_that_is_not_written(tmp_path, name):
    with pytest.raises(OptionError, match=r"is not written. Use .jsonl, .csv or .parquet"):
        Output(tmp_path / name)
    assert Output(tmp_path / "rows-1.2").journal == tmp_path / "rows-1.2"


class Page(html.parser.HTMLParser):
    """Everything that an HTML file would fetch, and its data."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.inside, self.data = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = dict(attrs).get("id", "") if tag == "script" else ""
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "srcset")]

    def handle_data(self, data):
        self.data += data if self.inside == "data" else ""


def test_report_is_one_file_with_everything(done, tmp_path):
    out = tmp_path / "deep" / "report.html"
    assert write_report(done[1], out) == 6
    text = out.read_text()
    page = Page(text)
    assert page.addresses == [] and "default-src 'none'" in text
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    data = json.loads(page.data)
    assert data["total"] == 6 and data["counts"]["error"] == 1
    assert data["rows"][0]["status"] == "error" and "thumbnail" not in data["rows"][0]
    sure = [r["confidence"] for r in data["rows"][1:]]
    assert sure == sorted(sure)
    assert all(r["thumbnail"].startswith("data:image/jpeg;base64,") and r["size"] == [40, 24] for r in data["rows"][1:])
    assert "b<script>" not in text


def test_report_of_the_least_sure_pages_and_of_files_that_are_gone(done, tmp_path):
    rows = saved(tmp_path / "r.jsonl", [row(str(i), sure=i / 10, source=f"gone{i}.png") for i in range(9, 0, -1)])
    assert write_report(rows, tmp_path / "r.html", limit=3) == 3
    data = json.loads(Page((tmp_path / "r.html").read_text()).data)
    assert [r["id"] for r in data["rows"]] == ["1", "2", "3"] and data["total"] == 9 and "thumbnail" not in data["rows"][0]
    with pytest.raises(OptionError, match="no row"):
        write_report(saved(tmp_path / "x", [{"a": 1}]), tmp_path / "r.html")


@pytest.mark.slow
def test_report_in_a_browser(done, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser")
    write_report(done[1], tmp_path / "r.html")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path}/r.html"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    body = shown[shown.index('<main id="rows">') : shown.index("</main>")]
    assert body.count("<article>") == 6 and body.count("<img ") == 5 and "6 of 6 shown" in shown
    assert body.index("bad.png") < body.index("a.png") and "b&lt;script&gt;.png" in body and ">/place/n<" in body


def corrected_csv(model, done, tmp_path, change):
    """The CSV of the done rows with its lines changed."""
    rows = list(read_rows(done[1]))
    write_csv(rows, tmp_path / "c.csv", tree())
    lines = list(csv.DictReader((tmp_path / "c.csv").open(newline="")))
    change(lines)
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return tmp_path / "c.csv"


def fix(lines):
    for line in lines:
        line |= {"who": "'-x", "place/n": "12", "place/own": "TRUE", "kind": "1", "items": '[{"name": "q"}]'}


def test_corrected_rows_become_conversations(model, done, tmp_path):
    from PIL import Image

    from vlm.training.conversations import read_conversations

    path = corrected_csv(model, done, tmp_path, fix)
    told = write_conversations(done[1], path, SCHEMA, tmp_path / "t")
    assert told.conversations == 5 and told.lost == () and told.changed >= 5
    conversations = list(read_conversations(tmp_path / "t" / "conversations.jsonl"))
    assert len(conversations) == 5
    asked, answer = conversations[0]
    assert json.loads(answer.text) == {"who": "-x", "place": {"n": 12, "own": True}, "kind": 1, "items": [{"name": "q"}]}
    assert Image.open(asked.images[0]).size == (40, 24) and '"who": "<string>"' in asked.text
    first = json.loads((tmp_path / "t" / "conversations.jsonl").read_text().splitlines()[0])
    assert "/who" in first["changed"]


def test_corrected_jsonl_and_pages_that_are_gone(model, done, tmp_path):
    rows = [r for r in read_rows(done[1]) if r["data"] is not None]
    rows[0]["data"]["who"] = "zz"
    rows[1]["id"] = "f" * 32
    with pytest.raises(OptionError, match="no row of"):
        write_conversations(done[1], saved(tmp_path / "c.jsonl", rows), SCHEMA, tmp_path / "t")
    gone = saved(tmp_path / "gone.jsonl", [{**rows[0], "source": "gone.png"}])
    told = write_conversations(gone, saved(tmp_path / "c.jsonl", rows[:1]), SCHEMA, tmp_path / "t")
    assert told.lost == ("gone.png",) and told.conversations == 0


@pytest.mark.parametrize(
    ("cell", "value", "pointer"),
    [("place/n", "100", "/place/n"), ("place/n", "many", "/place/n"), ("who", "too long", "/who"), ("kind", "b", "/kind"), ("place/own", "perhaps", "/place/own"),
     ("items", "[1", "/items"), ("items", '[{"name": "abc"}]', "/items/0/name"), ("items", '[{"name": "a"}, {"name": "a"}, {"name": "a"}]', "/items"), ("items", '[{"nome": "a"}]', "/items/0")],
)  # fmt: skip
def test_corrections_that_the_schema_does_not_allow(model, done, tmp_path, cell, value, pointer):
    def change(lines):
        fix(lines)
        lines[0][cell] = value

    with pytest.raises(OptionError, match=f"row [0-9a-f]{{32}}, {pointer}: "):
        write_conversations(done[1], corrected_csv(model, done, tmp_path, change), SCHEMA, tmp_path / "t")


def test_corrections_in_a_file_of_other_columns(done, tmp_path):
    (tmp_path / "c.csv").write_text("id,who\n1,a\n")
    with pytest.raises(OptionError, match="no column 'place/n'"):
        write_conversations(done[1], tmp_path / "c.csv", SCHEMA, tmp_path / "t")
