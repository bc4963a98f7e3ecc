"""Text to ids and back, with control tokens out of reach of any text.

A `tokenizer.json` normally turns the text "<|mask|>" into the mask token wherever it occurs: an added token is cut out
of the input before the model sees it. Here the encoding half is built without its added tokens, and vocabulary entries
that share their spelling are renamed to something nobody can type, so that such text becomes ordinary tokens. Control
ids come from `Tokenizer.special` alone, put in place by the prompt builder.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import CheckpointError, PromptError
from vlm.processor.vocabulary import qwen_spec

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
METASPACE = "▁"
#: More than any vocabulary: a damaged id must not make a list of billions.
MOST_IDS = 1 << 24


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level vocabularies that GPT-2 introduced.

    Printable Latin-1 bytes stand for themselves; the others are numbered upwards from U+0100 in byte order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


def _mentions(part: Any, kind: str) -> bool:
    """Whether a normalizer, pre-tokenizer or decoder description contains an element of this type."""
    if isinstance(part, Mapping):
        return part.get("type") == kind or any(_mentions(value, kind) for value in part.values())
    if isinstance(part, list):
        return any(_mentions(value, kind) for value in part)
    return False


class Tokenizer:
    """A `tokenizer.json` whose control tokens no text can produce.

    `special` maps the spelling of each control token to its id. All added tokens count as control tokens, except
    those of nothing but blanks, which some vocabularies use for indentation.
    """

    def __init__(self, spec: Mapping[str, Any], *, source: str = "tokenizer") -> None:
        """`spec` is the parsed tokenizer.json; `source` names it in errors. CheckpointError when it makes no sense."""
        self.source = source
        try:
            added = [dict(token) for token in spec.get("added_tokens") or []]
            model = spec["model"]
            vocab = model["vocab"]
            pieces = dict(vocab) if isinstance(vocab, Mapping) else {piece: i for i, (piece, _) in enumerate(vocab)}
            _check_tokens(pieces, added)
            control = {t["content"]: t["id"] for t in added if t.get("special") or t["content"].strip()}
            control.pop(model.get("unk_token") or "", None)
            kept = [token for token in added if token["content"] not in control]
            self._encoder = _build_encoder(spec, control, kept)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not a usable tokenizer.json ({error})", source=source) from error
        #: Whether text comes out one token per character: a vocabulary without merges.
        self.char_level: bool = model.get("type") == "BPE" and not model.get("merges")
        self.special: dict[str, int] = control
        self.control_ids: frozenset[int] = frozenset(control.values())
        pieces.update({token["content"]: token["id"] for token in added})
        self.vocab_size: int = max(pieces.values()) + 1
        self._names: list[str] = [""] * self.vocab_size
        for piece, index in pieces.items():
            self._names[index] = piece
        self._bytes = self._spell(spec, {token["id"] for token in added})
        self._strip = _mentions(spec.get("decoder"), "Strip") or _prepends_blank(spec)
        self._chars: dict[str, int] = {}
        for index in range(self.vocab_size - 1, -1, -1):  # the lowest id wins, but a character beats a byte token
            self._note_char(index)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json, or the folder that holds it, or a folder with the vocab.json and merges.txt of a Qwen vocabulary.

        Raises:
            CheckpointError: missing or malformed.
        """
        file = Path(path)
        if file.is_dir():
            if not (file / "tokenizer.json").is_file() and (file / "vocab.json").is_file():
                return cls(qwen_spec(file), source=str(file / "vocab.json"))
            file = file / "tokenizer.json"
        try:
            spec = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"cannot be read ({error})", source=str(file)) from error
        if not isinstance(spec, Mapping):
            raise CheckpointError("holds no JSON object", source=str(file))
        return cls(spec, source=str(file))

    @classmethod
    def pocket(cls) -> Tokenizer:
        """The tokenizer of the embedded model."""
        return cls.from_file(Path(__file__).parents[1] / "pocket" / "tokenizer.json")

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never a control id. PromptError for a text that is no valid Unicode (lone surrogates)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for several texts at once."""
        for text in texts:
            _check_unicode(text)
        rows = [encoding.ids for encoding in self._encoder.encode_batch(list(texts), add_special_tokens=False)]
        for row in rows:
            if not self.control_ids.isdisjoint(row):  # cannot happen with the vocabularies we know; never let it pass
                names = sorted({self._names[index] for index in row if index in self.control_ids})
                raise PromptError(f"text came out as control tokens {names}", source=self.source)
        return rows

    def encode_chars(self, text: str) -> list[int]:
        """Ids of a text, one token per character, bytes for characters that have none; never a longer piece."""
        _check_unicode(text)
        ids: list[int] = []
        for char in text:
            index = self._chars.get(char)
            ids.extend([index] if index is not None else self._char_bytes(char))
        return ids

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Text of ids. Control tokens are left out, or spelled when `specials`; broken UTF-8 becomes U+FFFD."""
        spelled = bytearray()
        for index in ids:
            control = index in self.control_ids
            spelled += (self._names[index].encode() if specials else b"") if control else self._bytes[index]
        text = spelled.decode("utf-8", errors="replace")
        return text[1:] if self._strip and text.startswith(" ") else text

    def token_bytes(self, index: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        return self._bytes[index]

    def token_name(self, index: int) -> str:
        """The spelling of a token in the vocabulary, for people."""
        return self._names[index]

    def char_id(self, char: str) -> int:
        """The id of the token that is just this character; PromptError when there is none."""
        index = self._chars.get(char)
        if index is None:
            raise PromptError(f"no token is just the character {char!r}", source=self.source)
        return index

    def has_char(self, char: str) -> bool:
        """Whether some token is just this character."""
        return char in self._chars

    def _char_bytes(self, char: str) -> list[int]:
        found = [self._byte_ids.get(byte) for byte in char.encode()]
        if None in found:
            return self.encode(char)
        return [index for index in found if index is not None]

    def _spell(self, spec: Mapping[str, Any], added: set[int]) -> list[bytes]:
        """Bytes of every token, by the kind of vocabulary: byte-level, byte fallback, or plain text."""
        level = _mentions(spec.get("decoder"), "ByteLevel") or _mentions(spec.get("pre_tokenizer"), "ByteLevel")
        fallback = bool(spec["model"].get("byte_fallback")) or _mentions(spec.get("decoder"), "ByteFallback")
        alphabet = _byte_alphabet() if level else {}
        self._byte_ids: dict[int, int] = {}
        spelled = []
        for index, name in enumerate(self._names):
            match = BYTE_TOKEN.fullmatch(name) if fallback else None
            if index in self.control_ids:
                value = b""
            elif index in added:
                value = name.encode()
            elif match:
                value = bytes([int(match[1], 16)])
            elif level and all(char in alphabet for char in name):
                value = bytes(alphabet[char] for char in name)
            else:
                value = name.encode() if level else name.replace(METASPACE, " ").encode()
            spelled.append(value)
            if len(value) == 1 and (match or level):
                self._byte_ids.setdefault(value[0], index)
        return spelled

    def _note_char(self, index: int) -> None:
        try:
            char = self._bytes[index].decode()
        except UnicodeDecodeError:
            return
        if len(char) != 1:
            return
        is_byte = BYTE_TOKEN.fullmatch(self._names[index]) is not None
        if not is_byte or char not in self._chars:
            self._chars[char] = index


def _check_tokens(pieces: Mapping[Any, Any], added: Sequence[Mapping[str, Any]]) -> None:
    """Spellings are texts and ids numbers, no larger than a vocabulary with gaps has; ValueError."""
    for content, index in [*pieces.items(), *((token["content"], token["id"]) for token in added)]:
        if not isinstance(content, str) or isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MOST_IDS:
            raise ValueError(f"{content!r} has the id {index!r}")


def _build_encoder(spec: Mapping[str, Any], control: Mapping[str, int], kept: list[dict[str, Any]]) -> Any:
    """The encoding half: no added control tokens, and their namesakes in the vocabulary renamed out of reach."""
    from tokenizers import Tokenizer as Encoder  # heavy: only when a tokenizer is made

    safe = {key: value for key, value in spec.items() if key != "model"}
    model = dict(spec["model"])
    nonce = secrets.token_hex(16)  # a spelling that text cannot contain, because it is drawn after the text's author
    renamed = {name: f"<{nonce}:{index}>" for name, index in control.items()}
    if isinstance(model["vocab"], Mapping):
        model["vocab"] = {renamed.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("merges"):
        pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        model["merges"] = [
            list(pair) for pair in pairs if not {pair[0], pair[1], "".join(pair)}.intersection(renamed)
        ]  # a merge whose result is a control token would spell it out of ordinary pieces
    safe = copy.deepcopy({key: value for key, value in safe.items() if key not in ("added_tokens", "post_processor")})
    safe.update(added_tokens=kept, post_processor=None, truncation=None, padding=None, model=model)
    try:
        return Encoder.from_str(json.dumps(safe))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(str(error)) from error


def _prepends_blank(spec: Mapping[str, Any]) -> bool:
    """Whether encoding puts a blank before the text, as SentencePiece vocabularies do."""

    def search(part: Any) -> bool:
        if isinstance(part, Mapping):
            if part.get("type") == "Metaspace":
                return part.get("prepend_scheme", "always") != "never" and part.get("add_prefix_space", True)
            return part.get("type") == "Prepend" or any(search(value) for value in part.values())
        return isinstance(part, list) and any(search(value) for value in part)

    return search(spec.get("normalizer")) or search(spec.get("pre_tokenizer"))


def _check_unicode(text: str) -> None:
    if not isinstance(text, str):
        raise PromptError(f"expected text, got {type(text).__name__}", source="prompt")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"character {error.start} is a lone surrogate (U+{ord(text[error.start]):04X})",
            source="prompt",
            remedy="Replace it, e.g. text.encode('utf-8', 'replace').decode()",
        ) from error
