"""What is asked of every page: the task with its words or schema, and how it is decoded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.pages import digest
from app.schemas import parsed
from vlm.errors import PromptError
from vlm.results import Result

if TYPE_CHECKING:
    from vlm.model import DiffusionVLM
    from vlm.structure.fields import Schema

TASKS = ("caption", "ask", "extract", "ground", "read")


@dataclass(frozen=True)
class Request:
    """A task on any number of pages.

    Attributes:
        task: one of TASKS. words: question or instruction. tree, schema: of extract, as fields and as canonical JSON text.
        decoding: preset, seed and other keyword arguments of the task.
        dpi: at which PDF pages are drawn; it changes what is read, so it belongs to the request.
    """

    task: str
    words: str = ""
    tree: Schema | None = None
    schema: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)
    dpi: float = 0.0

    @classmethod
    def extract(cls, schema: Any, decoding: dict[str, Any] | None = None, dpi: float = 0.0) -> Request:
        """Fill a schema, given in any form that :func:`app.schemas.find_schema` knows; raises SchemaError.

        ``lenient=True`` among the decoding options leaves out keywords that cannot be guaranteed; rows warn of them.
        """
        tree, text = parsed(schema, lenient=bool((decoding or {}).get("lenient")))
        return cls("extract", tree=tree, schema=text, decoding=dict(decoding or {}), dpi=dpi)

    @classmethod
    def about(cls, task: str, words: str, decoding: dict[str, Any], dpi: float = 0.0) -> Request:
        """A question or instruction; raises PromptError when it is empty."""
        if not words.strip():
            raise PromptError(f"the {'question' if task == 'ask' else 'instruction'} is empty", remedy="write one")
        return cls(task, words, decoding=decoding, dpi=dpi)

    @property
    def hash(self) -> str:
        """What the request is known by in rows: schema or words, task, decoding and resolution."""
        said = [self.task, self.words, self.schema, self.dpi, sorted(self.decoding.items())]
        return digest(json.dumps(said, default=str).encode())[:16]

    def run(self, model: DiffusionVLM, images: Iterable[Any]) -> Iterator[Result]:
        """One result for each image, in order, computed in batches as the images come; bad ones have status 'error'."""
        stream = iter(images)
        found: Iterator[Result]
        if self.task == "extract":
            found = model.extract(stream, self.tree, on_error="row", **self.decoding)
        elif self.task in ("ask", "ground"):
            found = getattr(model, self.task)(stream, self.words, on_error="row", **self.decoding)
        else:
            found = getattr(model, self.task)(stream, on_error="row", **self.decoding)
        return found
