"""How the cases of each family are run.

A module here serves the families it lists:

    FAMILIES = ("llada",)                  # `family` of cases.json
    HANDLERS = {"logits": run_logits}      # kind -> function(case, checks)
    def skip(case) -> str | None: ...      # optional: why a case is not run

`select(case)`, if a module has it, picks the handler itself (for fixtures without kinds). A handler compares by
`checks.close` and `checks.equal`; it must not contain a number of a fixture.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from types import ModuleType

from tests.parity.cases import Case, Checks

Handler = Callable[[Case, Checks], None]


@cache
def _modules() -> dict[str, ModuleType]:
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for family in getattr(module, "FAMILIES", ()):
            if family in found:
                raise RuntimeError(f"{module.__name__} and {found[family].__name__} both serve {family}")
            found[family] = module
    return found


def find(case: Case) -> tuple[Handler | None, str]:
    """(handler, '') of a case, or (None, why it is not run)."""
    module = _modules().get(case.fixture.family)
    if module is None:
        return None, f"no handlers for family {case.fixture.family}"
    reason = module.skip(case) if hasattr(module, "skip") else None
    if reason:
        return None, reason
    handler = module.select(case) if hasattr(module, "select") else module.HANDLERS.get(case.kind)
    return (handler, "") if handler else (None, f"no handler for kind {case.kind!r} of family {case.fixture.family}")
