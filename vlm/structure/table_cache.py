"""Lifted automata on disk, by automaton and vocabulary: at 126k tokens making one takes seconds, reading it milliseconds.

The folder is `$VLM_CACHE`, else `$XDG_CACHE_HOME/diffusion-vlm`, else `~/.cache/diffusion-vlm`; `VLM_CACHE=0` turns it off.
Small vocabularies are not worth a file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
import zipfile
from pathlib import Path

import numpy as np

from vlm.processor.tokenizer import Tokenizer
from vlm.structure.table import Symbols, TokenTable

FORMAT = 1  # raised when the meaning of the files changes
SMALL = 4096  # tokens up to which nothing is stored

_CACHES: weakref.WeakKeyDictionary[Tokenizer, TableCache] = weakref.WeakKeyDictionary()


class TableCache:
    """The files of one vocabulary."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TableCache:
        """The cache of a tokenizer."""
        if tokenizer not in _CACHES:
            _CACHES[tokenizer] = cls(_folder(tokenizer))
        return _CACHES[tokenizer]

    def _file(self, key: tuple[object, ...]) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256()
        for part in key:
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
            digest.update(b"|")
        return self.folder / f"{digest.hexdigest()[:40]}.npz"

    def load(self, key: tuple[object, ...], symbols: Symbols) -> TokenTable | None:
        """A stored table; None when there is none, or none that can be read."""
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as stored:
                parts = {name: stored[name] for name in ("class_of", "moves", "accept", "absent")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return TokenTable(
            parts["class_of"].astype(np.int32), parts["moves"].astype(np.int32), parts["accept"], symbols.pad, symbols.null if bool(parts["absent"]) else None
        )

    def save(self, key: tuple[object, ...], table: TokenTable) -> None:
        """Store a table; a disk that cannot be written to is no error."""
        file = self._file(key)
        if file is None:
            return
        small = np.int16 if table.classes < 2**15 and table.states < 2**15 else np.int32
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as out:
                np.savez_compressed(
                    out, class_of=table.class_of.astype(small), moves=table.moves.astype(small), accept=table.accept, absent=np.array(table.null is not None)
                )
            os.replace(out.name, file)
        except OSError:
            return


def _folder(tokenizer: Tokenizer) -> Path | None:
    asked = os.environ.get("VLM_CACHE")
    if asked == "0" or tokenizer.vocab_size <= SMALL:
        return None
    root = Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion-vlm"
    digest = hashlib.sha256(f"{FORMAT} {tokenizer.char_level} {sorted(tokenizer.control_ids)}".encode())
    for index in range(tokenizer.vocab_size):
        spelled = tokenizer.token_bytes(index)
        digest.update(len(spelled).to_bytes(4, "big") + spelled)
    return root / "automata" / digest.hexdigest()[:32]
