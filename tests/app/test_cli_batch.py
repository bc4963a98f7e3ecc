"""Batch jobs from the command line: what can be named, where rows go, and how a run ends and is continued."""

import errno
import io
import json
import os
import signal
import sys
import threading

import pytest

from app.batch import Job
from app.cli import main
from app.commands import _finishing
from app.inputs import expand
from app.journal import read_rows
from app.schemas import BUILT_IN, find_schema, parsed
from tests.app.support import encoded, tiff
from vlm.errors import ImageNotFoundError, SchemaError

SCHEMA = '{"who": "string"}'


@pytest.fixture
def vlm(quiet, capsys):
    """Runs a command on a quiet random model: (exit code, stdout, stderr)."""

    def call(*args):
        model = [] if args[0] in ("report", "corrections") else ["--model", quiet]
        code = main([*map(str, args), *map(str, model)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    for i in range(6):
        (place / f"{i}.png").write_bytes(encoded(i))
    return place


def sources(text):
    return [json.loads(line)["source"].rsplit("/", 1)[-1] for line in text.splitlines()]


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_names_from_stdin_and_lists(folder, monkeypatch, tmp_path, end):
    names = [str(folder / "3.png"), str(folder / "*[01].png"), str(tmp_path / "none.png")]
    text = end.join(os.fsencode(n) for n in names) + end
    monkeypatch.setattr(sys, "stdin", Stdin(text))
    found = expand(["-"])
    assert [i.path[-5:] for i in found.files] == ["3.png", "0.png", "1.png", "e.png"]
    (tmp_path / "list").write_bytes(text)
    assert expand([f"@{tmp_path / 'list'}"]) == found
    (tmp_path / "empty").touch()
    failed = expand([f"@{tmp_path / 'empty'}", "@nowhere"]).files
    assert [type(i.error) for i in failed] == [ImageNotFoundError] * 2


def test_a_page_from_stdin(vlm, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(encoded(1)))
    code, out, _ = vlm("extract", "-", "--schema", SCHEMA, "--json")
    assert code == 0 and sources(out) == ["stdin"]


def test_files_that_look_like_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "@a.png").write_bytes(encoded(1))
    assert expand(["@a.png"]).files[0].error is None and expand(["@a.png"]).files[0].path == "@a.png"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_schemas(name):
    tree, text = parsed(name)
    assert tree.root.members and json.loads(text)["title"] == name
    assert set(BUILT_IN) == {"receipt", "invoice", "form", "id-card", "table"}


MODULE = """
import dataclasses
from pydantic import BaseModel
class Shop:
    class Receipt(BaseModel):
        who: str | None
@dataclasses.dataclass
class Plain:
    n: int | None
value = 3
"""


def test_schemas_by_class(tmp_path, monkeypatch):
    (tmp_path / "my_schemas_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    assert [m.name for m in parsed("my_schemas_of_a_test:Shop.Receipt")[0].root.members] == ["who"]
    assert json.loads(parsed("my_schemas_of_a_test:Plain")[1])["properties"].keys() == {"n"}
    for text, words in (("my_schemas_of_a_test:None_such", "cannot be imported"), ("no_such_module:A", "cannot be imported"), ("my_schemas_of_a_test:value", "not a class")):
        with pytest.raises(SchemaError, match=words):
            find_schema(text)
    assert sys.path[0] != str(tmp_path)


def test_a_file_named_like_a_built_in_schema_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "receipt").write_text(SCHEMA)
    assert json.loads(parsed("receipt")[1])["properties"].keys() == {"who"}
    with pytest.raises(SchemaError, match="receipt, table"):
        find_schema("recipt")


def test_a_run_goes_on_where_it_ended(vlm, folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert vlm("extract", folder / "0.png", folder / "1.png", "--schema", SCHEMA, "--out", out)[0] == 0
    code, _, err = vlm("extract", folder, "--schema", SCHEMA, "--out", out)
    assert code == 0 and "which holds 2 rows" in err and "6 pages in, 6 rows" in err and "2 of them before: 4 ok" in err
    assert sources(out.read_text()) == [f"{i}.png" for i in range(6)]
    code, _, err = vlm("extract", folder, "--schema", SCHEMA, "--out", out)
    assert code == 0 and "6 of them before: nothing new" in err
    code, _, err = vlm("extract", folder, "--schema", '{"other": "string"}', "--out", out)
    assert code == 2 and "another schema" in err


def test_errors_are_tried_again_when_asked(vlm, folder, tmp_path):
    out, bad = tmp_path / "rows.jsonl", folder / "2.png"
    good = bad.read_bytes()
    bad.write_bytes(b"bad")
    assert vlm("read", folder, "--out", out)[0] == 3
    bad.write_bytes(good)
    code, _, err = vlm("read", folder, "--out", out, "--retry-errors")
    assert code == 0 and "5 of them before: 1 ok" in err and [r["status"] for r in read_rows(out)] == ["ok"] * 6
    assert vlm("read", folder, "--retry-errors")[0] == 2


def test_a_bad_page_ends_the_run_when_asked(vlm, folder):
    (folder / "1.png").write_bytes(b"bad")
    for i in range(6, 40):
        (folder / f"{i:02d}.png").write_bytes(encoded(i))
    code, out, err = vlm("read", folder, "--json", "--on-error", "stop", "--batch-size", 1)
    assert code == 3 and 1 < len(out.splitlines()) < 40 and "stopped before the last page" in err


def test_shards_by_name(vlm, folder, tmp_path):
    for i in (1, 2):
        assert vlm("read", folder, "--out", tmp_path / "part{shard}.jsonl", "--shard", f"{i}/2")[0] == 0
    parts = [sources((tmp_path / f"part{i}.jsonl").read_text()) for i in (1, 2)]
    assert sorted(parts[0] + parts[1]) == [f"{i}.png" for i in range(6)]


def test_merge_and_report(vlm, folder, tmp_path):
    tiff(folder / "many.tiff", 3, 30)
    out, page = tmp_path / "docs.csv", tmp_path / "r.html"
    code, _, err = vlm("extract", folder, "--schema", SCHEMA, "--out", out, "--merge", "per_doc", "--report", page, "--pages", "1-2")
    assert code == 0 and len(out.read_text().splitlines()) == 8 and "data:image/jpeg" in page.read_text(), err
    code, _, err = vlm("report", tmp_path / "docs.csv.pages.jsonl", "--limit", 4)
    assert code == 0 and "4 pages in" in err and (tmp_path / "docs.csv.pages.html").exists()
    assert vlm("extract", folder, "--schema", SCHEMA, "--report", page)[0] == 2


def test_corrections_by_command(vlm, folder, tmp_path):
    out = tmp_path / "rows.csv"
    vlm("extract", folder, "--schema", SCHEMA, "--out", out)
    code, _, err = vlm("corrections", tmp_path / "rows.csv.pages.jsonl", out, "--schema", SCHEMA, "--out", tmp_path / "t")
    assert code == 0 and "6 conversations in" in err
    assert len(list((tmp_path / "t" / "pages").iterdir())) == len((tmp_path / "t" / "conversations.jsonl").read_text().splitlines()) == 6


def interrupt_at(monkeypatch, page, number=signal.SIGINT):
    """Send ourselves a signal when a page comes."""
    plain = Job._images

    def images(self, pages):
        for count, image in enumerate(plain(self, pages)):
            if count == page:
                os.kill(os.getpid(), number)
            yield image

    monkeypatch.setattr(Job, "_images", images)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_batch_in_hand(vlm, folder, tmp_path, monkeypatch, number):
    for i in range(6, 40):
        (folder / f"{i:02d}.png").write_bytes(encoded(i))
    out = tmp_path / "rows.jsonl"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, number)
        code, _, err = vlm("read", folder, "--out", out, "--batch-size", 1)
    assert code == 128 + number and "finishing the batch in hand" in err and "stopped before the last page" in err
    assert 6 <= len(list(read_rows(out))) < 40 and not (tmp_path / "rows.csv").exists()
    assert vlm("read", folder, "--out", out)[0] == 0 and len({r["id"] for r in read_rows(out)}) == 40


def test_the_second_signal_ends_at_once():
    halted = threading.Event()

    class Fake:
        def halt(self):
            halted.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
    try:
        with pytest.raises(KeyboardInterrupt), _finishing(Fake()):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            assert halted.wait(10)  # two signals that come together are one
            os.kill(os.getpid(), signal.SIGINT)
            halted.wait(0.01)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_full_disk_ends_in_a_line_and_the_run_goes_on_later(vlm, folder, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    real = os.write

    def write(file, data):
        if bytes(data).startswith(b'{"id"') and b"4.png" in bytes(data):
            real(file, bytes(data)[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr("app.journal.os.write", write)
        code, _, err = vlm("read", folder, "--out", out)
    assert code == 1 and "its 4 rows are complete" in err and "No space left" in err
    assert len(list(read_rows(out))) == 4
    assert vlm("read", folder, "--out", out)[0] == 0 and sources(out.read_text()) == [f"{i}.png" for i in range(6)]


BAD_OPTIONS = {
    "pages": (["--pages", "3-1"], "are no pages"), "dpi": (["--dpi", "0"], "--dpi is 0"), "timeout": (["--timeout", "0"], "--timeout is 0"),
    "workers": (["--workers", "0"], "--workers is 0"), "memory": (["--memory", "0"], "--memory is 0"), "shard": (["--shard", "3/2"], "no part 3 of 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_make_no_sense(vlm, folder, name):
    args, words = BAD_OPTIONS[name]
    code, out, err = vlm("read", folder, *args)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1
