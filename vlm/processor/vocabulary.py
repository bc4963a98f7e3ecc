"""Older vocabulary files (vocab.json, merges.txt, tokenizer_config.json) as the description that a tokenizer.json holds.

Dream and some Qwen checkpoints come without a tokenizer.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm.errors import CheckpointError

#: How Qwen2 cuts text before merging: contractions, words with one leading sign, single digits, signs, line ends, blanks.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: `tokenizer_class` values whose vocabulary is cut like Qwen2's.
CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "DreamTokenizer")


def qwen_spec(folder: Path) -> dict[str, Any]:
    """The tokenizer.json that a folder with vocab.json, merges.txt and tokenizer_config.json stands for.

    Raises:
        CheckpointError: a file is missing or malformed, or the tokenizer is of another kind.
    """
    config = _json(folder / "tokenizer_config.json")
    kind = config.get("tokenizer_class")
    if kind not in CLASSES:
        raise CheckpointError(
            f"tokenizer_class {kind!r} needs a tokenizer.json", source=str(folder), remedy="save the tokenizer with transformers' fast tokenizers"
        )
    vocab = _json(folder / "vocab.json")
    path = folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", source=str(path)) from error
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    tokens = [{"id": int(index), **token} for index, token in (config.get("added_tokens_decoder") or {}).items()]
    if not tokens:
        extra = _json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
        tokens = [{"id": index, "content": text, "special": True} for text, index in extra.items()]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    blank = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": sorted(({**blank, **t} for t in tokens), key=lambda t: t["id"]),
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": None,
        "decoder": {**level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
            "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read ({error})", source=str(path)) from error
    if not isinstance(data, dict):
        raise CheckpointError("holds no JSON object", source=str(path))
    return data
