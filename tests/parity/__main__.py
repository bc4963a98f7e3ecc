"""``python -m tests.parity [words]``: a line per case (those whose name holds one of the words), with its error."""

from __future__ import annotations

import sys
import traceback

from tests.parity.cases import Case, Checks, fixtures, root
from tests.parity.handlers import find


def line(case: Case) -> tuple[str, str]:
    """(outcome, text) of a case; outcome is 'pass', 'FAIL' or 'skip'."""
    handler, reason = find(case)
    if handler is None:
        return "skip", reason
    checks = Checks()
    try:
        handler(case, checks)
    except Exception:  # a case that cannot run is a failure of that case, the others still count
        return "FAIL", traceback.format_exc(limit=-2).strip().replace("\n", " | ")
    if checks.failures or not checks.errors:
        return "FAIL", f"{checks}  {'; '.join(checks.failures) or 'nothing was compared'}"
    return "pass", str(checks)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(words: list[str]) -> int:
    """Print all lines and a summary; 1 if a case failed, 2 if there are none."""
    cases = [case for fixture in fixtures() for case in fixture.cases if not words or any(w in str(case) for w in words)]
    if not cases:
        _say(f"no cases below {root()}" + (f" match {' '.join(words)}" if words else "; set PARITY_ROOT"))
        return 2
    counts = {"pass": 0, "FAIL": 0, "skip": 0}
    width = max(len(str(case)) for case in cases)
    for case in cases:
        outcome, text = line(case)
        counts[outcome] += 1
        _say(f"{outcome}  {case!s:<{width}}  {text}")
    _say(f"{counts['pass']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
