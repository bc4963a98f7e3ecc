"""Writes pocket's tokenizer: `python -m examples.pocket.build_tokenizer [out.json]`.

Nothing is learned. Pocket copies characters off a page, so each printable character is one token: a copied
character, its cell in the answer and its glyph on the page then correspond one to one. Only the punctuation of JSON
has longer tokens, because a scaffold writes it and nobody copies it.

Ids: 0-15 specials, 16-271 bytes, 272-366 printable ASCII, 367 pound sign, 368 euro sign, 369- JSON pieces, padded with
reserved specials to 416.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

VOCAB_SIZE = 416
SPECIALS = ["<|pad|>", "<|mask|>", "<|bos|>", "<|eos|>", "<|null|>", "<|system|>", "<|user|>", "<|assistant|>",
            "<|image|>", "<|end|>"] + [f"<|r{i}|>" for i in range(6)]  # fmt: skip
PIECES = ['{"', '": "', '", "', '"}', '": ', ', "', '": [', '[{"', '"}, {"', "}, {", '}, {"', '"}]', "}]",
          "true", "false", "null", '": {"', '"}, "', '"]', '["', '}, "', '], "', '": ["', '": [{"', '"}}', "}}",
          "]}", '"]}', "}]}", '"}]}', '}], "', '"}], "', '"], "', '", ', '""', "[]", "{}"]  # fmt: skip


def build() -> dict[str, Any]:
    """The tokenizer.json object: a merge-less BPE model with byte fallback behind a split into pieces."""
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(32, 127)), "£", "€", *PIECES]
    reserved = [f"<|r{i}|>" for i in range(6, 6 + VOCAB_SIZE - len(tokens))]
    tokens += reserved
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != VOCAB_SIZE:
        raise ValueError(f"{len(vocab)} different tokens instead of {VOCAB_SIZE}")
    # The split hands the model one piece or one character at a time, longest piece first; the model then only looks
    # it up, and spells what it does not find in bytes.
    longest_first = sorted(PIECES, key=len, reverse=True)
    pattern = "|".join(re.escape(piece).replace('"', r"\x22") for piece in longest_first) + r"|[\s\S]"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[t], "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for t in SPECIALS + reserved
        ],  # fmt: skip
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": True, "ignore_merges": True,
                  "vocab": vocab, "merges": []},
    }  # fmt: skip


def main() -> None:
    """Write the file."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "vlm" / "pocket" / "tokenizer.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(build(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {VOCAB_SIZE} tokens")


if __name__ == "__main__":
    main()
