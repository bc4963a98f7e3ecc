"""Training logs: JSON lines always, TensorBoard event files beside them when ``tensorboard`` is installed (extra `train`)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TrainingLog:
    """Appends to ``NAME.jsonl`` and to the event files in ``NAME.events/``.

    Args:
        path: of the checkpoint; its suffix is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = path.with_suffix(".jsonl").open("a", encoding="utf-8")
        self._events: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(path.with_suffix(".events")))  # type: ignore[no-untyped-call]

    def row(self, step: int, values: Mapping[str, float], group: str | None = None) -> None:
        """One row at `step`; values of a `group` are nested under its name."""
        rounded = {k: round(float(v), 4) for k, v in values.items()}
        self._lines.write(json.dumps({"step": step, **({group: rounded} if group else rounded)}) + "\n")
        self._lines.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{group or 'train'}/{name}", float(value), step)
            self._events.flush()

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        if self._events is not None:
            self._events.close()
