"""Turns one pickle file of tensors into safetensors. Run as a program, in a process that has nothing to lose:

``python -I unpickle_process.py IN OUT``

Only what torch's weights-only loader allows is read: tensors in dicts and lists, no code. The last line on stdout is a JSON
object, {"tensors": N, "passed_over": [...]} or {"error": ..., "key": ...}. Imports nothing of this package.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from typing import Any

#: Under these keys of the outer dict trainers put the state dict.
NESTS = ("state_dict", "model", "module", "model_state_dict")


class Refused(Exception):
    """What cannot be converted, and the key it is about."""

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.key = key


def state_of(found: Any, tensor_type: type) -> tuple[dict[str, Any], list[str]]:
    """(tensors by key, outer keys that were passed over) of what a file held."""
    passed: list[str] = []
    while isinstance(found, dict) and not any(isinstance(value, tensor_type) for value in found.values()):
        inner = next((key for key in NESTS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        passed += [str(key) for key in found if key != inner]
        found = found[inner]
    if not isinstance(found, dict):
        raise Refused(f"holds a {type(found).__name__}, not a state dict")
    if not found:
        raise Refused("holds no tensors")
    for key, value in found.items():
        if not isinstance(key, str):
            raise Refused(f"has a key that is no text ({key!r})")
        if not isinstance(value, tensor_type):
            raise Refused(f"{key} is a {type(value).__name__}, not a tensor", key)
    return found, passed


def read(path: str) -> dict[str, Any]:
    """The tensors of a file, each with memory of its own; and what was passed over."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise Refused(f"holds more than tensors, or is damaged ({_first_line(error)})") from error
    except (EOFError, OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Refused(f"cannot be read ({_first_line(error)})") from error
    state, passed = state_of(found, torch.Tensor)
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
            raise Refused(f"{key} is no plain tensor ({value.layout}, {value.dtype})", key)
    # cloned: tied tensors share memory, and views of larger ones would take those along
    return {"state": {key: value.detach().contiguous().clone() for key, value in state.items()}, "passed_over": passed}


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]  # torch says how to switch the check off first
    return " ".join((named or lines or [type(error).__name__])[0].split())[:300]


def main(source: str, target: str) -> int:
    """Convert one file; 0 if it worked."""
    try:
        found = read(source)
        from safetensors.torch import save_file

        partial = f"{target}.partial"
        save_file(found["state"], partial, metadata={"format": "pt"})
        os.replace(partial, target)
    except Refused as error:
        print(json.dumps({"error": str(error), "key": error.key}))  # noqa: T201
        return 3
    except OSError as error:
        print(json.dumps({"error": f"cannot be converted ({error})", "key": ""}))  # noqa: T201
        return 3
    print(json.dumps({"tensors": len(found["state"]), "passed_over": found["passed_over"]}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
