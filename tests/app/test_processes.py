"""Several models in processes of their own: the same rows in the same order, and no page lost with a process."""

import os
import signal
from functools import partial

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
