"""The pages of the front end. A page is a module of this package that binds ``PAGE``; nothing else is edited to add one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Page:
    """A tab.

    Attributes:
        title: on the tab. place: pages are sorted by it. build: lays the page out and connects it, given the model.
        fits: whether the page has a use for a model. local_only: left out where other machines reach the server, unless asked for.
    """

    title: str
    place: int
    build: Callable[[Any], None]
    fits: Callable[[Any], bool] = lambda model: True
    local_only: bool = False


def all_pages() -> list[Page]:
    """Every page of this package, in order."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return sorted((module.PAGE for module in modules if hasattr(module, "PAGE")), key=lambda page: page.place)


def is_pocket(model: Any) -> bool:
    """Whether the model reads by itself and points: what Read and Ground need."""
    return bool(model.info().get("family") == "pocket")
