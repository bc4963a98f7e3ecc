"""What people touch: the command line, and batch jobs from Python. Names are loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.batch import Summary, extract_batch, extract_iter
    from app.pages import PageOptions
    from app.stage import PageStage, extract_dataset

_WHERE = {
    "extract_iter": "app.batch", "extract_batch": "app.batch", "Summary": "app.batch", "PageOptions": "app.pages",
    "PageStage": "app.stage", "extract_dataset": "app.stage",
}  # fmt: skip

__all__ = ["PageOptions", "PageStage", "Summary", "extract_batch", "extract_dataset", "extract_iter"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'app' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
