"""Several models in processes of their own: the same rows in the same order, and no page lost with a process."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from app import extract_iter
from app.cli import main
from app.journal import read_rows
from app.processes import Processes
from app.requests import Request
from tests.app.support import SCHEMA, encoded, load, noise
from vlm.errors import OptionError

DEADLY = (56, 56)


class Mortal:
    """A model that a picture of one size kills."""

    def __init__(self, folder):
        self.model = load(folder)
        self.batch_size = 1

    def extract(self, images, *args, **options):
        def looked():
            for image in images:
                if getattr(image, "size", None) == DEADLY:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield image

        return self.model.extract(looked(), *args, **options)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    for i in range(9):
        (place / f"{i}.png").write_bytes(encoded(i) if i != 4 else b"no picture")
    return place


def test_rows_are_those_of_one_process(tiny, folder):
    def told(rows):
        return [{k: v for k, v in row.items() if k != "usage"} for row in rows]

    alone = told(extract_iter(folder, SCHEMA, model=tiny, batch_size=2))
    several = told(extract_iter(folder, SCHEMA, model=tiny, batch_size=2, processes=2))
    assert [row["source"] for row in several] == [row["source"] for row in alone] and len(several) == 9
    assert [(row["status"], row["data"]) for row in several] == [(row["status"], row["data"]) for row in alone]
    assert several[4]["error"] == alone[4]["error"] and several[4]["error"]["type"] == "ImageFormatError"
    for a, b in zip(alone, several, strict=True):
        for pointer, field in (a["fields"] or {}).items():
            assert b["fields"][pointer]["confidence"] == pytest.approx(field["confidence"], abs=2e-2)


def test_a_page_that_kills_its_process_costs_nobody_else_theirs(tiny):
    pictures = [noise(i, DEADLY if i in (3, 4) else (40, 24)) for i in range(8)]
    with Processes(partial(Mortal, tiny), 2, 1) as several:
        results = list(several.run(Request.extract(SCHEMA), pictures))
    assert [r.status == "error" for r in results] == [i in (3, 4) for i in range(8)]
    assert results[3].error["type"] == "ModelDiedError" and results[3].error["stage"] == "decode"


def test_pages_are_taken_as_they_are_needed(tiny):
    taken = []

    def pictures():
        for i in range(100):
            taken.append(i)
            yield noise(i)

    with Processes(partial(load, tiny), 1, 1) as several:
        results = several.run(Request.extract(SCHEMA), pictures())
        next(results)
        assert len(taken) == 4  # two parts of two
        results.close()


KILLED = """
import os, sys, time
from functools import partial
from app.processes import Processes
from app.requests import Request
from tests.app.support import SCHEMA, load, noise

if __name__ == "__main__":
    several = Processes(partial(load, sys.argv[1]), 2, 1)
    results = several.run(Request.extract(SCHEMA), (noise(i) for i in range(10_000)))
    next(results)
    print(*several._pool._processes, flush=True)
    time.sleep(100)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_processes_end_with_one_that_is_killed(tiny, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    surroundings = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, str(script), str(tiny)], stdout=subprocess.PIPE, env=surroundings, text=True)
    assert parent.stdout is not None
    children = [Path("/proc") / number for number in parent.stdout.readline().split()]
    assert len(children) == 2 and all(child.exists() for child in children)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while any(child.exists() for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(child.exists() for child in children)


def test_no_process_is_no_number_of_processes():
    with pytest.raises(OptionError, match="processes is 0"):
        Processes(load, 0, 1)


def test_a_loaded_model_cannot_be_handed_over(tiny, folder):
    with pytest.raises(OptionError, match="folder or Hub id"):
        extract_iter(folder, SCHEMA, model=load(tiny), processes=2)


def test_from_the_command_line(tiny, folder, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    schema = '{"who": "string"}'
    code = main(["extract", str(folder), "--schema", schema, "--out", str(out), "--model", str(tiny), "--processes", "2", "--quiet"])
    assert code == 3  # one bad file
    rows = list(read_rows(out))
    assert sorted(row["source"] for row in rows) == sorted(str(p) for p in folder.iterdir())
    assert main(["extract", str(folder), "--schema", schema, "--model", str(tiny), "--processes", "0"]) == 2
    assert "--processes is 0" in capsys.readouterr().err
