"""Messages, templates and prompts: control tokens by construction only, and bad input refused by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.errors import ConfigError, ContextLengthError, PromptError
from vlm.processor.messages import ImagePart, Message, TextPart, parse_messages, user
from vlm.processor.prompt import IdsPart, MediaPart, check_context
from vlm.processor.template import POCKET, Frame, Special, Template
from vlm.processor.tokenizer import Tokenizer

TOKENIZER = Tokenizer.pocket()
S = TOKENIZER.special


def flat(prompt):
    """Ids of a prompt with ("image", index) at media places."""
    out = []
    for part in prompt.parts:
        out.extend(part.ids if isinstance(part, IdsPart) else [("image", part.index)])
    return out


def test_pocket_layout_of_one_question():
    prompt = POCKET.build(user("one.png is not an image", ImagePart("a.png")), TOKENIZER)
    text = TOKENIZER.encode("one.png is not an image")
    assert flat(prompt) == [S["<|bos|>"], S["<|user|>"], ("image", 0), *text, S["<|end|>"], S["<|assistant|>"]]
    assert prompt.images == ("a.png",) and prompt.media_id == S["<|image|>"]


def test_many_turns_and_images():
    messages = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "image", "image": "1"},
                                     {"type": "image_url", "image_url": {"url": "2"}}]},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": ["C", {"type": "image", "path": "3"}]},
    ]  # fmt: skip
    prompt = POCKET.build(messages, TOKENIZER)
    c = TOKENIZER.char_id
    assert flat(prompt) == [
        S["<|bos|>"], S["<|system|>"], *TOKENIZER.encode("short"), S["<|end|>"],
        S["<|user|>"], ("image", 0), ("image", 1), c("A"), S["<|end|>"],
        S["<|assistant|>"], c("B"), S["<|end|>"],
        S["<|user|>"], ("image", 2), c("C"), S["<|end|>"], S["<|assistant|>"],
    ]  # fmt: skip
    assert prompt.images == ("1", "2", "3")
    layout = prompt.lay_out([2, 0, 3])
    assert [(span.index, span.length) for span in layout.spans] == [(0, 2), (1, 0), (2, 3)]
    for span in layout.spans:
        assert layout.ids[span.start : span.start + span.length] == [S["<|image|>"]] * span.length
    assert layout.length == prompt.text_tokens + 5
    with pytest.raises(PromptError):
        prompt.lay_out([1])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(list(S)), st.text(st.characters(exclude_categories=("Cs",))))).map("".join))
def test_text_adds_no_control_token(text):
    parts = (TextPart("?" + text), ImagePart(0))
    count = sum(1 for index in flat(POCKET.build([Message("user", parts)], TOKENIZER)) if index in TOKENIZER.control_ids)
    assert count == 4  # bos, user, end, assistant


def test_touching_words_are_encoded_together():
    template = Template("t", {"user": Frame((Special("<|user|>"), "tr"), ("e",))}, images_first=False)
    assert flat(template.build("u", TOKENIZER)) == [S["<|user|>"], *TOKENIZER.encode("true")]
    assert len(TOKENIZER.encode("true")) == 1


def test_order_of_images_is_kept_when_asked():
    template = Template("t", {"user": Frame()}, image=Frame(("[",), ("]",)), images_first=False)
    prompt = template.build(user("a", ImagePart(1), "b"), TOKENIZER)
    assert [type(part) for part in prompt.parts] == [IdsPart, MediaPart, IdsPart]
    assert TOKENIZER.decode(prompt.parts[0].ids) == "a[" and TOKENIZER.decode(prompt.parts[2].ids) == "]b"


def test_default_system_turn():
    template = Template("t", {"user": Frame(), "system": Frame((), ("|",))}, default_system="hi")
    assert TOKENIZER.decode(flat(template.build("x", TOKENIZER))) == "hi|x"
    messages = [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]
    assert TOKENIZER.decode(flat(template.build(messages, TOKENIZER))) == "own|x"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "empty"),
        ("", "empty"),
        ("  \n", "empty"),
        (3, "messages are a int"),
        ([3], "message 0"),
        ([{"role": "user"}], "keys role"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "tool_calls"),
        ([{"role": "wizard", "content": "x"}], "wizard"),
        ([{"role": None, "content": "x"}], "None"),
        ([{"role": "user", "content": 7}], "content is a int"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "video"),
        ([{"role": "user", "content": [{"type": "image"}]}], "names no image"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "no text"),
        ([{"role": "user", "content": [None]}], "message 0, part 0"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "only come first"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "End with a user"),
        ([{"role": "system", "content": [{"type": "image", "image": "x"}]}, {"role": "user", "content": "x"}], "image"),
        ([Message("user", (ImagePart(None),))], "names no image"),
        ([Message("user", (TextPart(3),))], "text is a int"),
        ([user(*[ImagePart(i) for i in range(9)])], "9 images"),
        ("\ud800", "surrogate"),
    ],
)
def test_bad_messages_are_refused_by_name(messages, words):
    with pytest.raises(PromptError, match=words):
        POCKET.build(messages, TOKENIZER)


def test_missing_role_and_missing_special():
    with pytest.raises(PromptError, match="no system turns"):
        Template("t", {"user": Frame()}).build(
            [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], TOKENIZER
        )
    with pytest.raises(ConfigError, match="nothere"):
        Template("t", {"user": Frame((Special("<|nothere|>"),))}).build("b", TOKENIZER)


def test_context_check_names_the_numbers():
    prompt = POCKET.build(user("hello", ImagePart(0)), TOKENIZER)
    assert check_context(prompt, [10], 20, 39) == 39
    with pytest.raises(ContextLengthError, match=r"39 positions .*9 text, 10 image, 20 answer.* 38"):
        check_context(prompt, [10], 20, 38)
    assert issubclass(ContextLengthError, Exception)


def test_parse_keeps_messages():
    message = Message("user", (TextPart("a"),))
    assert parse_messages([message]) == (message,)
