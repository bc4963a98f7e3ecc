"""A byte-level BPE vocabulary of any size, made up but shaped like those of language models.

Real vocabularies of 126k to 152k tokens are not shipped with this project. This one has the 256 bytes, the letters of
several scripts, and pieces that merge two earlier ones, short ones far more often, with and without a leading blank.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vlm.processor.tokenizer import Tokenizer, _byte_alphabet

CONTROL = ("<|endoftext|>", "<|mdm_mask|>", "<|im_start|>", "<|im_end|>")
SCRIPTS = ((0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939), (0x3041, 0x3096), (0x4E00, 0x51FF), (0xAC00, 0xADFF))


def spec(size: int, seed: int = 0) -> dict[str, Any]:
    """The tokenizer.json of a vocabulary of `size` tokens, control tokens included."""
    rng = np.random.default_rng(seed)
    letter = {byte: char for char, byte in _byte_alphabet().items()}
    pieces = [letter[byte] for byte in range(256)]
    known, merges = set(pieces), []

    def merge(left: str, right: str) -> None:
        if left + right not in known:
            known.add(left + right)
            pieces.append(left + right)
            merges.append([left, right])

    for low, high in SCRIPTS:
        for point in range(low, high + 1):
            spelled = "".join(letter[byte] for byte in chr(point).encode())
            for end in range(2, len(spelled) + 1):
                merge(spelled[: end - 1], spelled[end - 1])
    blank, letters = letter[0x20], [letter[b] for b in b"etaoinshrdlucmfwypvbgkjqxz" for _ in range(26 - b"etaoinshrdlucmfwypvbgkjqxz".index(b))]
    for first in "0123456789":
        for second in "0123456789":
            merge(first, second)
    for char in dict.fromkeys(letters):
        merge(blank, char)
    for count in range(2, 33):
        merge(blank * (count - 1), blank)
    ascii_pieces = [p for p in pieces if p[-1].isascii() and p[-1].isalpha() and p.strip()] or letters
    while len(pieces) < size - len(CONTROL):
        at = int(len(ascii_pieces) * rng.random() ** 2)
        left = ascii_pieces[at]
        right = str(rng.choice(letters)) if rng.random() < 0.6 else ascii_pieces[int(len(ascii_pieces) * rng.random() ** 3)].lstrip(blank)
        if right in known and left + right not in known and len(left + right) <= 24:
            merge(left, right)
            ascii_pieces.append(left + right)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    added = [{"id": len(pieces) + i, "content": name, "special": True} for i, name in enumerate(CONTROL)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": False, "unk_token": None},
    }  # fmt: skip


def tokenizer(size: int, seed: int = 0) -> Tokenizer:
    """That vocabulary as a tokenizer."""
    return Tokenizer(spec(size, seed), source=f"made-up vocabulary of {size} tokens")
