"""The file of rows: whole lines, continued after every kind of end, never mixed up with another run's."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from app.journal import Journal, WriteError, read_rows
from tests.app.support import encoded, job_of, load, write
from vlm.errors import OptionError

VERSIONS = {"request": "r", "model_hash": "m"}


def row(i, status="ok", versions=VERSIONS):
    return {"id": f"{i}", "source": f"{i}.png", "status": status, "versions": versions, "data": "x" * 20}


def fill(path, rows, **how):
    with Journal(path, VERSIONS, **how) as journal:
        for one in rows:
            journal.put(one)


def ids(path):
    return [r["id"] for r in read_rows(path)]


def test_rows_are_appended_and_known_again(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    fill(path, [row(1), row(2)])
    with Journal(path, VERSIONS) as journal:
        assert journal.total == 2 and journal.has_row("1", "1.png") and not journal.has_row("1", "1.png")
        assert not journal.has_row("2", "other.png") and not journal.has_row("3", "3.png")
        journal.put(row(3))
        journal.check()
    assert ids(path) == ["1", "2", "3"]


@pytest.mark.parametrize("cut", [1, 5, 40, 100])
def test_a_torn_last_line_is_done_again(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    fill(path, [row(1), row(2)])
    os.truncate(path, path.stat().st_size - cut)
    with Journal(path, VERSIONS) as journal:
        assert journal.total == 1 and not journal.has_row("2", "2.png")
        journal.put(row(2))
    assert ids(path) == ["1", "2"]


def test_a_torn_first_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, [row(1)])
    os.truncate(path, 30)
    fill(path, [row(1)])
    assert ids(path) == ["1"]


def test_zeros_at_the_end_as_a_power_cut_leaves_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, [row(1)])
    with path.open("ab") as file:
        file.write(bytes(300))
    fill(path, [row(2)])
    assert ids(path) == ["1", "2"]


def test_damage_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, [row(1), row(2), row(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"damage\n" + lines[2])
    with pytest.raises(OptionError, match="line 2"):
        Journal(path, VERSIONS)
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("words", [b"precious\n", b"precious", b'{"a": 1}\n', b"[1]\n"])
def test_the_file_of_somebody_else_is_left_alone(tmp_path, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(words)
    with pytest.raises(OptionError, match="exists already"):
        Journal(path, VERSIONS)
    assert path.read_bytes() == words
    fill(path, [row(1)], overwrite=True)
    assert ids(path) == ["1"]


@pytest.mark.parametrize(("key", "words"), [("request", "another schema"), ("model_hash", "another model")])
def test_rows_of_another_run_are_not_continued(tmp_path, key, words):
    path = tmp_path / "rows.jsonl"
    fill(path, [row(1)])
    with pytest.raises(OptionError, match=words):
        Journal(path, {**VERSIONS, key: "else"})


def test_errors_are_taken_out_to_be_tried_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, [row(1), row(2, "error"), row(3), row(4, "error")])
    with Journal(path, VERSIONS, retry_errors=True) as journal:
        assert journal.total == 2 and journal.has_row("1", "1.png") and not journal.has_row("2", "2.png")
        journal.put(row(2))
        journal.check()
    assert ids(path) == ["1", "3", "2"] and list(tmp_path.iterdir()) == [path]


def test_two_runs_do_not_write_to_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    with Journal(path, VERSIONS), pytest.raises(OptionError, match="another run"):
        Journal(path, VERSIONS)
    Journal(path, VERSIONS).close()


def test_the_count_is_checked_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    with Journal(path, VERSIONS) as journal:
        journal.put(row(1))
        with path.open("ab") as other:
            other.write(b"intruder\n")
        with pytest.raises(WriteError, match="holds 2 rows where 1"):
            journal.check()


FULL = """
import resource, signal, sys
from pathlib import Path
from app.journal import Journal, WriteError
from tests.app.test_journal import row, VERSIONS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with Journal(Path(sys.argv[1]), VERSIONS) as journal:
        for i in range(100):
            journal.put(row(i))
except WriteError as error:
    print(error)
"""


def test_a_full_disk_leaves_whole_rows(tmp_path):
    """The limit on the file's size makes the kernel write part of a row, as a full disk does."""
    path = tmp_path / "rows.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    whole = ids(path)
    assert len(whole) > 3 and path.stat().st_size <= 1000
    assert f"its {len(whole)} rows are complete" in done.stdout and "run the same command again" in done.stdout
    fill(path, [row(i) for i in range(len(whole), 20)])
    assert ids(path) == [str(i) for i in range(20)]


@pytest.fixture(scope="module")
def model(tiny, exact):
    return load(tiny)


@pytest.fixture
def pages(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(24):
        (folder / f"{i:02d}.png").write_bytes(encoded(i))
    (folder / "05b.png").write_bytes(b"bad")
    return folder


def comparable(rows):
    return [(r["id"], r["source"], r["status"], r["data"]) for r in rows]


def test_a_job_is_continued_wherever_its_file_ends(model, pages, tmp_path):
    out = tmp_path / "rows.jsonl"
    whole = write(job_of(model, [pages]), out)
    text = out.read_bytes()
    rng = random.Random(0)
    for _ in range(4):
        out.write_bytes(text[: rng.randrange(len(text))])
        assert comparable(write(job_of(model, [pages]), out)) == comparable(whole)


def test_files_of_equal_content_keep_a_row_each(model, pages, tmp_path):
    (pages / "30.png").write_bytes(encoded(3))
    out = tmp_path / "rows.jsonl"
    whole = write(job_of(model, [pages]), out)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:-1]))  # all but 30.png
    assert comparable(write(job_of(model, [pages]), out)) == comparable(whole)


KILLED = """
import sys
from pathlib import Path
from tests.app.support import job_of, load, write
write(job_of(load(sys.argv[1]), [Path(sys.argv[2])]), Path(sys.argv[3]))
"""


def test_killed_for_real_and_continued(tiny, pages, tmp_path):
    """SIGKILL between rows; what is left is continued to the same rows. benchmarks/batch_kills.py does it a hundred times."""
    out = tmp_path / "rows.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tiny), str(pages), str(out)])
    until = time.monotonic() + 120
    while (not out.exists() or out.stat().st_size < 500) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(out.read_bytes().splitlines())
    assert 0 < before < 26
    rows = write(job_of(load(tiny), [pages]), out)
    assert [r["source"].rsplit("/", 1)[1] for r in rows] == sorted(p.name for p in pages.iterdir())
    assert len({r["id"] for r in rows}) == len(rows) == 25
    json.loads(out.read_text().splitlines()[before - 1])
