"""Pocket's tokenizer: the id layout, exact inversion, and control tokens out of reach."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.pocket.build_tokenizer import PIECES, VOCAB_SIZE, build
from vlm.errors import CheckpointError, PromptError
from vlm.processor.tokenizer import Tokenizer, _byte_alphabet

POCKET = Tokenizer.pocket()
SPECIALS = list(POCKET.special)
any_text = st.text(st.characters(exclude_categories=("Cs",)))
hostile = st.lists(st.one_of(any_text, st.sampled_from(SPECIALS), st.sampled_from(PIECES))).map("".join)


def test_layout():
    fixed = ["<|pad|>", "<|mask|>", "<|bos|>", "<|eos|>", "<|null|>", "<|system|>", "<|user|>", "<|assistant|>",
             "<|image|>", "<|end|>", "<|r0|>", "<|r1|>", "<|r2|>", "<|r3|>", "<|r4|>", "<|r5|>"]  # fmt: skip
    assert [POCKET.special[name] for name in fixed] == list(range(16))
    assert POCKET.vocab_size == VOCAB_SIZE == 416
    assert [POCKET.token_bytes(16 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert [POCKET.char_id(chr(code)) for code in range(32, 127)] == list(range(272, 367))
    assert (POCKET.char_id("£"), POCKET.char_id("€"), POCKET.char_id("\n")) == (367, 368, 16 + 10)
    assert POCKET.token_bytes(369) == b'{"'


def test_checked_in_file_is_what_the_script_builds():
    from pathlib import Path

    import vlm

    path = Path(vlm.__file__).parent / "pocket" / "tokenizer.json"
    assert json.loads(path.read_text(encoding="utf-8")) == build()


def test_pieces_are_matched_longest_first():
    assert [POCKET.token_bytes(i) for i in POCKET.encode('{"a": [{"b": "c"}, {"b": true}]}')] == [
        b'{"', b"a", b'": [{"', b"b", b'": "', b"c", b'"}, {"', b"b", b'": ', b"true", b"}]}",
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(hostile)
def test_round_trip_and_no_control_ids(text):
    ids = POCKET.encode(text)
    assert POCKET.decode(ids) == text
    assert POCKET.control_ids.isdisjoint(ids)
    chars = POCKET.encode_chars(text)
    assert POCKET.decode(chars) == text
    assert POCKET.control_ids.isdisjoint(chars) and max(chars, default=0) < 369


@pytest.mark.parametrize("name", SPECIALS)
def test_every_special_typed_by_a_user_stays_text(name):
    for text in (name, f"a{name}b", name * 3, f" {name} "):
        assert POCKET.decode(POCKET.encode(text)) == text
        assert POCKET.control_ids.isdisjoint(POCKET.encode(text))
    assert POCKET.decode([POCKET.special[name], 300]) == POCKET.decode([300])
    assert POCKET.decode([POCKET.special[name]], specials=True) == name


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\udc80x"])
def test_lone_surrogates_are_refused(text):
    with pytest.raises(PromptError, match="lone surrogate"):
        POCKET.encode(text)
    with pytest.raises(PromptError, match="lone surrogate"):
        POCKET.encode_chars(text)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(CheckpointError):
        Tokenizer.from_file(tmp_path / "none.json")
    for content in ("[]", "{}", "nonsense", '{"model": {"type": "BPE", "vocab": 3}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError):
            Tokenizer.from_file(tmp_path)


def byte_level_spec(in_vocab):
    """A byte-level BPE vocabulary like Qwen's, with merges that could spell the specials."""
    letters = list(_byte_alphabet())
    vocab = {letter: index for index, letter in enumerate(letters)}
    merges = []
    for piece in ("<|", "|>", "im", "<|im", "<|im|>"):
        vocab.setdefault(piece, len(vocab))
    merges = ["< |", "| >", "i m", "<| im", "<|im |>"]
    special = ["<|im|>", "<|endoftext|>", "<mask>"]
    base = len(vocab)
    added = []
    for name in special:
        index = vocab.get(name)
        if index is None:
            index = base
            base += 1
            if in_vocab:
                vocab[name] = index
        added.append({"id": index, "content": name, "single_word": False, "lstrip": True, "rstrip": False,
                      "normalized": False, "special": name != "<mask>"})  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": True}}  # fmt: skip


@pytest.mark.parametrize("in_vocab", [False, True])
def test_published_kind_of_vocabulary(in_vocab):
    tokenizer = Tokenizer(byte_level_spec(in_vocab))
    assert set(tokenizer.special) == {"<|im|>", "<|endoftext|>", "<mask>"}
    for text in ("<|im|>", "a <|endoftext|> b", "x  <mask>", "é€ 漢 <|im|><|im|>", "im"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.control_ids.isdisjoint(ids)


def unigram_spec():
    """A SentencePiece-like vocabulary whose control tokens sit among the pieces, so that plain text matches them."""
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["<mask>", 0.0]]
    pieces += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)] + [["▁", -3.0]]
    pieces += [[chr(code), -4.0] for code in range(33, 127)]
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": pieces[i][0], "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False, "special": True} for i in range(4)],
            "normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
                                                  "split": False},
            "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [{"type": "Metaspace", "replacement": "▁"}]},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": True}}  # fmt: skip


def test_sentencepiece_kind_of_vocabulary():
    tokenizer = Tokenizer(unigram_spec())
    for text in ("<s>hello</s>", "a<mask>b", "é <unk>", "two  x"):
        ids = tokenizer.encode(text)
        assert tokenizer.control_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
