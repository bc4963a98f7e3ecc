"""Words of a prompt, as the features of :mod:`vision.words`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vision.words import FEATURES, rows_of, split_words
from vlm.processor.tokenizer import Tokenizer


@lru_cache(maxsize=8)
def _characters(tokenizer: Tokenizer) -> list[str]:
    """The character each token stands for, '' for control tokens, bytes and longer pieces."""
    out = []
    for index in range(tokenizer.vocab_size):
        try:
            text = "" if index in tokenizer.control_ids else tokenizer.token_bytes(index).decode()
        except UnicodeDecodeError:
            text = ""
        out.append(text if len(text) == 1 else "")
    return out


def prompt_words(prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words of B prompts of a character-level vocabulary.

    Returns:
        (rows [1 + W, FEATURES] of the word table, entry 0 'no word'; word [B, width] of each token).
    """
    chars = _characters(tokenizer)
    rows = [np.zeros((1, FEATURES), np.int64)]
    word = np.zeros((len(prompts), width), np.int64)
    count = 1
    for i, ids in enumerate(prompts):
        words, of = split_words([chars[t] for t in ids])
        word[i, : len(ids)] = np.where(of >= 0, of + count, 0)
        rows.append(rows_of(words))
        count += len(words)
    return np.concatenate(rows), word
