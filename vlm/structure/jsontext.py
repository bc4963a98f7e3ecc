"""Automata of JSON texts from automata of raw texts."""

from __future__ import annotations

import numpy as np

from vlm.structure.dfa import Dfa

_SHORT = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}


def json_texts(raw: Dfa) -> Dfa:
    """The JSON strings, quotes and escapes included, of the texts of a language; one spelling of each (RFC 8259, section 7).

    Quotes, backslashes and control characters are escaped, everything else is written as it is.
    """
    if raw.is_empty:
        return raw
    size = raw.size
    rows = [np.full(256, -1, np.int32) for _ in range(size + 2)]  # the raw states, then: start, end
    start, end = size, size + 1
    rows[start][0x22] = 0

    def state() -> int:
        rows.append(np.full(256, -1, np.int32))
        return len(rows) - 1

    for index in range(size):
        targets = raw.table[index]
        plain = targets.copy()
        plain[:0x20] = -1
        plain[[0x22, 0x5C]] = -1
        rows[index] = plain
        if raw.accept[index]:
            rows[index][0x22] = end
        escaped = [byte for byte in (*range(0x20), 0x22, 0x5C) if targets[byte] >= 0]
        if not escaped:
            continue
        slash = state()
        rows[index][0x5C] = slash
        long = [byte for byte in escaped if byte not in _SHORT]
        for byte in escaped:
            if byte in _SHORT:
                rows[slash][ord(_SHORT[byte])] = targets[byte]
        if long:  # \u00XX
            first, second, third = state(), state(), state()
            rows[slash][ord("u")], rows[first][ord("0")], rows[second][ord("0")] = first, second, third
            for half in sorted({byte >> 4 for byte in long}):
                last = state()
                rows[third][ord("0") + half] = last
                for byte in long:
                    if byte >> 4 == half:
                        rows[last][ord(f"{byte & 15:x}")] = targets[byte]
    accept = np.zeros(len(rows), bool)
    accept[end] = True
    order = [start, *(i for i in range(len(rows)) if i != start)]
    number = np.empty(len(rows) + 1, np.int32)
    number[order], number[-1] = np.arange(len(rows)), -1
    return Dfa.build(number[np.stack(rows)[order]], accept[order])
