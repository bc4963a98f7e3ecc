"""Many files through one task: a row for each, in order, written as soon as it is known."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence

from app.inputs import Input
from vlm.errors import OptionError, PromptError, SchemaError, VLMError
from vlm.results import Result

Task = Callable[[list[str]], list[Result]]

#: Errors of the request itself, not of one of its files: they end the run before the first row.
OF_THE_REQUEST = (SchemaError, OptionError, PromptError)


def run(inputs: Sequence[Input], task: Task, size: int, report: Callable[[str], None] | None = None) -> Iterator[Result]:
    """Yield exactly one result for each input, in order.

    Args:
        inputs: from :func:`app.inputs.expand`.
        task: paths -> results, bad files as results with status 'error'.
        size: files handed over at once.
        report: gets the traceback of unexpected errors.

    Raises:
        SchemaError, OptionError, PromptError: the request itself cannot be met.
    """
    for start in range(0, len(inputs), size):
        chunk = inputs[start : start + size]
        results = iter(_attempt([i.path for i in chunk if i.error is None], task, report))
        for one in chunk:
            yield next(results) if one.error is None else failed_row(one.error, "find", one.path)


def _attempt(paths: list[str], task: Task, report: Callable[[str], None] | None) -> list[Result]:
    """Results of a chunk; when something unforeseen breaks it, its files are tried one by one."""
    if not paths:
        return []
    try:
        return task(paths)
    except OF_THE_REQUEST:
        raise
    except Exception as error:  # one bad file must not take the others along
        if len(paths) > 1:
            return [result for path in paths for result in _attempt([path], task, report)]
        if report is not None:
            report(traceback.format_exc())
        return [failed_row(error, "internal", paths[0])]


def failed_row(error: Exception, stage: str, path: str) -> Result:
    """The row of a file that gave no result."""
    message = str(error) if isinstance(error, VLMError) else f"{path}: {error or 'unexpected error'}"
    return Result(status="error", error={"type": type(error).__name__, "message": message, "stage": stage}, source=path)


def exit_code(statuses: Sequence[str]) -> int:
    """0 when no row failed, 1 when all did, 3 when some did."""
    failed = sum(status == "error" for status in statuses)
    if not failed:
        return 0
    return 1 if failed == len(statuses) else 3
