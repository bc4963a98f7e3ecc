"""The batch runner: one result for each input, whatever happens."""

import pytest

from app.batch import exit_code, run
from app.inputs import Input
from vlm.errors import ImageNotFoundError, SchemaError
from vlm.results import Result


def task(paths):
    """Fails without warning on whatever is called 'bad'."""
    if any("bad" in p for p in paths):
        raise ZeroDivisionError("oh")
    return [Result(p.upper(), source=p) for p in paths]


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_rows_in_order_and_none_lost(size):
    reports = []
    inputs = [Input("a"), Input("bad"), Input("b"), Input("x*", ImageNotFoundError("no file matches", source="x*")), Input("c")]
    results = list(run(inputs, task, size, reports.append))
    assert [r.source for r in results] == [i.path for i in inputs]
    assert [r.status for r in results] == ["ok", "error", "ok", "error", "ok"]
    assert results[1].error == {"type": "ZeroDivisionError", "message": "bad: oh", "stage": "internal"}
    assert results[3].error["type"] == "ImageNotFoundError"
    assert len(reports) == 1 and "ZeroDivisionError" in reports[0]


def test_a_wrong_request_ends_the_run():
    def refuse(paths):
        raise SchemaError("bad schema")

    with pytest.raises(SchemaError):
        list(run([Input("a"), Input("b")], refuse, 2))


def test_exit_codes():
    assert exit_code(["ok", "forced", "partial"]) == 0
    assert exit_code(["error", "error"]) == 1
    assert exit_code(["ok", "error"]) == 3
