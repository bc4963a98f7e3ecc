"""Which family a config.json belongs to. Families are found by looking through this package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import vlm.families
from vlm.errors import CheckpointError
from vlm.families.family import Family


@cache
def families() -> dict[str, Family]:
    """All families by name: every module of ``vlm.families`` that binds ``FAMILY``."""
    found = {}
    for module in pkgutil.iter_modules(vlm.families.__path__):
        family = getattr(importlib.import_module(f"vlm.families.{module.name}"), "FAMILY", None)
        if isinstance(family, Family):
            found[family.name] = family
    return found


def find_family(config: Mapping[str, Any], source: str = "config.json") -> Family:
    """The family that claims a config.json most strongly.

    Raises:
        CheckpointError: none does, or several equally.
    """
    claims = {name: family.claim(config) for name, family in families().items()}
    best = max(claims.values(), default=0)
    winners = sorted(name for name, claim in claims.items() if claim == best)
    if best == 0:
        kind = f"model_type {config.get('model_type')!r} and architectures {config.get('architectures')!r}"
        raise CheckpointError(f"{kind} belong to no family we know", source=source, remedy=f"known families: pocket, {', '.join(sorted(claims))}")
    if len(winners) > 1:
        raise CheckpointError(f"could be any of {', '.join(winners)}", source=source, remedy="name the family")
    return families()[winners[0]]
