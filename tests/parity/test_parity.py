"""Every case of every fixture under pytest; `pytest tests/parity -rA` prints the errors."""

from __future__ import annotations

import sys

import pytest

from tests.parity.cases import Case, Checks, fixtures, root
from tests.parity.handlers import find

pytestmark = pytest.mark.parity
CASES = [case for fixture in fixtures() for case in fixture.cases]


def test_fixtures_are_there() -> None:
    if not CASES:
        pytest.skip(f"no fixtures below {root()}; set PARITY_ROOT")
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    handler, reason = find(case)
    if handler is None:
        pytest.skip(reason)
    checks = Checks()
    handler(case, checks)
    sys.stdout.write(f"{case}  {checks}\n")
    assert checks.errors, "the handler compared nothing"
    assert not checks.failures, "; ".join(checks.failures)
