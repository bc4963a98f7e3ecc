"""Where rows end up: JSONL as they come, and CSV, Parquet or a row per document once they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.journal import WriteError, read_rows
from app.merge import merge_documents
from app.requests import Request
from app.rows import json_line
from app.tables import beside, pyarrow_module, write_csv, write_parquet
from vlm.errors import OptionError

TABLES = {".csv": write_csv, ".parquet": write_parquet}
#: Suffixes that promise a kind of file that is not written.
FOREIGN = frozenset({".xlsx", ".xls", ".ods", ".tsv", ".html", ".htm", ".xml", ".yaml", ".arrow", ".feather", ".orc", ".db", ".sqlite"})


class Output:
    """The file a user asked for.

    Args:
        path: its suffix says the kind; what is neither .csv nor .parquet is JSONL. merge: a row per document. overwrite: replace it.

    Raises:
        OptionError: a folder, a kind of file that is not written, or a file of somebody else. DependencyError: .parquet without pyarrow.

    Attributes:
        journal: JSONL file of the pages' rows, kept beside it where `path` is something else: a run goes on from it.
    """

    def __init__(self, path: Path, *, merge: bool = False, overwrite: bool = False) -> None:
        self.path, self.merge = path, merge
        if path.is_dir():
            raise OptionError("is a folder", source=f"--out {path}", remedy="name a file")
        if path.suffix.lower() in FOREIGN:
            raise OptionError(f"{path.suffix} is not written", source=f"--out {path}", remedy="use .jsonl, .csv or .parquet (--report writes HTML)")
        self.write = TABLES.get(path.suffix.lower())
        if path.suffix.lower() == ".parquet":
            pyarrow_module()  # before the work, not after it
        self.derived = merge or self.write is not None
        self.journal = path.with_name(path.name + ".pages.jsonl") if self.derived else path
        if self.derived and not overwrite and path.exists() and not self.journal.exists():
            what = f"exists already, and {self.journal.name} is not beside it"
            raise OptionError(what, source=f"--out {path}", remedy="name another file, or add --overwrite")

    def finish(self, request: Request) -> None:
        """Write what is made from the journal; raises WriteError."""
        if not self.derived:
            return
        rows: Iterator[dict[str, Any]] = merge_documents(self.journal) if self.merge else read_rows(self.journal)
        try:
            if self.write is not None:
                self.write(rows, self.path, request.tree)
                return
            with beside(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                for row in rows:
                    print(json_line(row), file=file)
        except OSError as error:
            what = f"cannot be written ({error.strerror or error}); the rows are complete in {self.journal}"
            raise WriteError(what, source=str(self.path), remedy="make room and run the same command again: nothing is computed twice") from error
