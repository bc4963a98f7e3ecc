"""Lifted automata on disk, by field and vocabulary: at 126k tokens making one takes seconds, reading it milliseconds.

Small vocabularies are not worth a file. See :mod:`vlm.structure.dfa_cache` for the folder.
"""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path

import numpy as np

from vlm.processor.tokenizer import Tokenizer
from vlm.structure.dfa_cache import FORMAT, cache_root, load_arrays, save_arrays
from vlm.structure.table import Symbols, TokenTable

SMALL = 4096  # tokens up to which nothing is stored

_DIGESTS: weakref.WeakKeyDictionary[Tokenizer, str] = weakref.WeakKeyDictionary()


class TableCache:
    """The files of one vocabulary; `folder` None: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TableCache:
        """The cache of a tokenizer."""
        root = cache_root()
        if root is None or tokenizer.vocab_size <= SMALL:
            return cls(None)
        if tokenizer not in _DIGESTS:
            _DIGESTS[tokenizer] = _digest(tokenizer)
        return cls(root / "automata" / _DIGESTS[tokenizer])

    def _file(self, key: tuple[object, ...]) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256(repr(key).encode('utf-8', 'surrogatepass')).hexdigest()[:40]}.npz"

    def load(self, key: tuple[object, ...], symbols: Symbols) -> TokenTable | None:
        """A stored table; None when there is none, or none that can be read."""
        file = self._file(key)
        found = load_arrays(file, ("class_of", "moves", "accept", "null")) if file is not None else None
        if found is None:
            return None
        null = symbols.null if bool(found["null"]) else None
        return TokenTable(found["class_of"].astype(np.int32), found["moves"].astype(np.int32), found["accept"], symbols.pad, null)

    def save(self, key: tuple[object, ...], table: TokenTable) -> None:
        """Store a table."""
        file = self._file(key)
        if file is not None:
            small = np.int16 if table.classes < 2**15 and table.states < 2**15 else np.int32
            null = np.array(table.null is not None)
            save_arrays(file, {"class_of": table.class_of.astype(small), "moves": table.moves.astype(small), "accept": table.accept, "null": null})


def _digest(tokenizer: Tokenizer) -> str:
    """A name for a vocabulary: what its tokens spell, and which are control tokens."""
    digest = hashlib.sha256(f"{FORMAT} {tokenizer.char_level} {sorted(tokenizer.control_ids)}".encode())
    for index in range(tokenizer.vocab_size):
        spelled = tokenizer.token_bytes(index)
        digest.update(len(spelled).to_bytes(4, "big") + spelled)
    return digest.hexdigest()[:32]
