"""The evaluation: its sets, its counting on made-up results, and a run on a model that knows nothing."""

import json
import shutil
from pathlib import Path

import pytest

from examples.pocket.evaluate_packs import _strict
from examples.pocket.evaluate_rendered import ODD_SCHEMAS, DocumentScore
from examples.pocket.evaluation import Bench, Figure, Validity, as_table, share
from examples.pocket.held_out import LAYOUTS, Case
from vlm.results import FieldInfo, Item, Result

pytest.importorskip("jsonschema")
DATA = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(scope="module")
def fonts():
    """Skips where no font of both halves is installed."""
    if shutil.which("fc-list") is None:
        pytest.skip("fc-list is not installed")
    from examples.pocket.page import families

    if not families(True) or not families(False):
        pytest.skip("no fonts for drawing held-out pages")


@pytest.fixture
def small(quiet):
    """A random model."""
    from vlm.model import DiffusionVLM

    return DiffusionVLM.from_pretrained(quiet)


def result(data, boxes, status="ok"):
    fields = {p: FieldInfo(None, 1.0, box) for p, box in boxes.items()}
    return Result(json.dumps(data), data, fields=fields, status=status)


def test_document_score_counts_right_filled_and_boxed():
    case = Case("form", None, None, "", {"/a": "x y", "/b": 2}, ("/c", "/d"), {"/a": (0, 0, 10, 10), "/b": (20, 0, 30, 10)})
    score = DocumentScore()
    score.add(case, result({"a": "x  y", "b": 3, "c": None, "d": "made up"}, {"/a": (0, 0, 10, 9), "/b": None}))
    assert (score.right, score.leaves, score.filled, score.absent, score.boxed, score.boxes, score.perfect) == (1, 2, 1, 2, 1, 2, 0)
    score.add(case, Result(status="error"))
    assert (score.right, score.leaves, score.filled, score.absent, score.boxed, score.boxes) == (1, 4, 1, 4, 1, 4)


def test_document_score_counts_rows_by_place():
    case = Case("table_rows", None, None, "", {"/rows/0/q": 1, "/rows/1/q": 2}, (), {}, {"/rows": 2})
    score = DocumentScore()
    score.add(case, result({"rows": [{"q": 1}, {"q": 2}]}, {}))
    score.add(case, result({"rows": [{"q": 2}]}, {}))
    assert (score.right, score.leaves, score.rows, score.arrays, score.perfect, score.pages) == (2, 4, 1, 2, 1, 2)


def test_validity_sees_wrong_types_formats_and_texts_that_differ():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "d": {"type": "string", "format": "date"}}, "required": ["n"]}
    seen = Validity()
    assert seen.check(result({"n": 1, "d": "2024-02-29"}, {}), schema)
    for bad in ({"n": "1"}, {}, {"n": 1, "d": "2023-02-29"}):
        assert not seen.check(result(bad, {}), schema)
    assert not seen.check(Result('{"n": 1}', {"n": 2}), schema)
    assert not seen.check(Result('{"n": 1', {"n": 1}), schema)
    assert (seen.checked, seen.valid) == (6, 1)


def test_scene_rule_of_the_pack():
    true = {"type": "circle", "color": "blue", "size": 20, "bbox": [10, 10, 30, 30]}
    assert _strict(Item("circle", "blue", (11, 12, 32, 30), 1.0), true)
    here = (10, 10, 30, 30)
    for kind, color, box in (("square", "blue", here), ("circle", "black", here), ("circle", "blue", (13, 10, 33, 30)), ("circle", "blue", (10, 10, 38, 38))):
        assert not _strict(Item(kind, color, box, 1.0), true)


@pytest.mark.parametrize(
    ("value", "smaller", "verdict"),
    [(0.8, False, "below floor"), (0.9, False, "floor"), (0.99, False, "aim"), (0.8, True, "aim"), (0.9, True, "below floor"), (0.85, True, "floor")],
)
def test_verdicts(value, smaller, verdict):
    floor, aim = (0.85, 0.8) if smaller else (0.85, 0.97)
    figure = Figure("t", "m", value, 10, floor, aim, smaller)
    assert figure.verdict == verdict
    assert verdict in as_table([figure])


def test_nothing_measured_reaches_nothing():
    assert share("t", "m", 0, 0, floor=0.0).verdict == ""


def test_limit_spreads_over_all_rows(small):
    assert Bench(small, None, limit=3).some(list(range(10))) == [0, 3, 6]
    assert Bench(small, None, limit=30).some([1, 2]) == [1, 2]


@pytest.mark.usefixtures("fonts")
def test_cases_are_fixed_and_hold_their_answers():
    from examples.pocket.held_out import DOCUMENT_KINDS, document_cases, line_case, screen_cases

    for index in range(len(DOCUMENT_KINDS)):
        cases, again = document_cases(index), document_cases(index)
        for case, other in zip(cases, again, strict=True):
            assert (case.image == other.image).all() and case.truth == other.truth and case.schema == other.schema
            height, width = case.image.shape[:2]
            assert case.truth and (case.absent or case.rows)
            assert set(case.absent).isdisjoint(case.truth)
            for x0, y0, x1, y1 in case.boxes.values():
                assert x0 < x1 and y0 < y1 and x0 > -8 and y0 > -8 and x1 < width + 8 and y1 < height + 8
    assert (document_cases(0, 1)[0].image.shape, document_cases(0, 1)[0].truth) != (document_cases(0)[0].image.shape, document_cases(0)[0].truth)
    assert len(line_case(0)[1]) >= 3
    for index in range(4):
        assert screen_cases(index)


@pytest.mark.usefixtures("fonts")
def test_every_fact_is_asked_and_some_that_are_not_there():
    import numpy as np

    from examples.pocket.held_out import ask_all, random, unseen

    for index, layout in enumerate(LAYOUTS):
        sample = unseen(random(9, index), layout)
        query = ask_all(sample.facts, np.random.default_rng(index))
        stated = [v for v in query.values.values() if v is not None]
        missing = len(query.values) - len(stated)
        assert len(stated) == len(sample.facts) and 1 <= missing <= 3
        assert list(query.schema["properties"]) == query.schema["required"] == list(query.answer)


@pytest.mark.usefixtures("fonts")
def test_held_out_fonts_never_serve_training():
    from examples.pocket.page import families

    assert {g[0].family for g in families(True)}.isdisjoint({g[0].family for g in families(False)})


@pytest.mark.usefixtures("fonts")
def test_a_run_on_drawn_sets_writes_figures_that_are_valid_json(quiet, tmp_path, capsys):
    from examples.pocket.evaluate import main

    out = tmp_path / "out.json"
    tasks = "documents,absent,boxes,captions,lines,screens,schema_valid,gui"
    assert main(["--tasks", tasks, "--limit", "2", "--model", str(quiet), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    figures = {(f["task"], f["metric"]): f for f in report["figures"]}
    assert figures["documents", "field exact match"]["n"] >= 2
    assert figures["lines", "lines exact"]["n"] == figures["captions", "whole captions"]["n"] == 2
    valid = figures["schema_valid", "results that satisfy their schema"]
    assert valid["value"] == 1.0 and valid["n"] >= 2 * len(ODD_SCHEMAS) + 2
    assert report["command"].startswith("python -m examples.pocket.evaluate --tasks")
    assert report["skipped"] == {"gui": "no gui/manifest.jsonl under the data root"}
    table = capsys.readouterr().out
    assert "field exact match" in table and "below floor" in table and "gui: not measured" in table


def test_a_run_on_packs(quiet, tmp_path):
    from examples.pocket.evaluate import main

    if not (DATA / "sroie" / "manifest.jsonl").is_file():
        pytest.skip("../shared/data is not here")
    out = tmp_path / "out.json"
    tasks = "easy_vqa,nlvr,nlvr_scene,sroie_read,sroie_fields,gui"
    assert main(["--data", str(DATA), "--tasks", tasks, "--limit", "1", "--model", str(quiet), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    measured = {f["task"] for f in report["figures"] if f["n"]}
    assert measured == {"easy_vqa", "nlvr", "nlvr_scene", "sroie_read", "sroie_fields", "gui"} and not report["refused"]


def test_unknown_task_is_refused(capsys):
    from examples.pocket.evaluate import main

    with pytest.raises(SystemExit) as stop:
        main(["--tasks", "documents,poetry"])
    assert stop.value.code == 2 and "unknown task poetry" in capsys.readouterr().err
