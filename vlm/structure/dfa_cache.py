"""Automata on disk. Building one takes from a millisecond to seconds; those that took long are kept.

The folder is `$VLM_CACHE`, else `$XDG_CACHE_HOME/diffusion-vlm`, else `~/.cache/diffusion-vlm`; `VLM_CACHE=0` turns it off.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm.structure.dfa import Dfa

FORMAT = 2  # raised when the meaning of the files, or the building of automata, changes
SLOW = 0.01  # seconds from which a result is kept


def cache_root() -> Path | None:
    """The folder of the cache, None when it is off."""
    asked = os.environ.get("VLM_CACHE")
    if asked == "0":
        return None
    return Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion-vlm"


def stored(key: str, build: Callable[[], Dfa]) -> Dfa:
    """The automaton of a key, from disk when it took long to build before."""
    root = cache_root()
    if root is None:
        return build()
    file = root / "automata" / "bytes" / f"{hashlib.sha256(f'{FORMAT} {key}'.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}.npz"
    found = load_arrays(file, ("table", "accept"))
    if found is not None:
        return Dfa(found["table"].astype(np.int32), found["accept"])
    start = time.perf_counter()
    made = build()
    if time.perf_counter() - start > SLOW:
        save_arrays(file, {"table": made.table.astype(np.int16), "accept": made.accept})
    return made


def load_arrays(file: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]] | None:
    """Stored arrays; None when there are none, or none that can be read."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Store arrays under a name at once or not at all; a disk that cannot be written to is no error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        os.replace(out.name, file)
    except OSError:
        return
