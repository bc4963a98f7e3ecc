"""What a caller says: messages of typed parts, checked before anything is encoded.

Accepted besides `Message` objects: a bare string (one user message), and dictionaries in the style of the OpenAI and
transformers chat formats: `{"role": ..., "content": text | [{"type": "text", "text": ...}, {"type": "image",
"image": ...}]}`. Every other shape is a PromptError that names the message and the part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.errors import PromptError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class TextPart:
    """A run of text. Whatever it contains, it stays text."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """A picture in any form the image loader takes: path, bytes, PIL image or array."""

    image: Any


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One turn of the conversation."""

    role: str
    parts: tuple[Part, ...]

    @property
    def images(self) -> tuple[Any, ...]:
        """The pictures of this turn in order."""
        return tuple(part.image for part in self.parts if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        """The text parts of this turn, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


Messages = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]


def user(*parts: str | Part | Any) -> Message:
    """A user message of strings, parts, and anything else taken as an image."""
    return Message("user", tuple(_loose_part(part) for part in parts))


def parse_messages(messages: Messages) -> tuple[Message, ...]:
    """Typed messages of any accepted form.

    PromptError: no message, an unknown role or part type, a system message anywhere but first, an assistant message
    last, an image outside a user message, or a last user message with neither text nor image.
    """
    if isinstance(messages, str):
        messages = [Message("user", (TextPart(messages),))]
    elif isinstance(messages, Message | Mapping):
        messages = [messages]
    elif not isinstance(messages, Iterable):
        raise PromptError(
            f"messages are a {type(messages).__name__}",
            source="prompt",
            remedy="Give a string, or a list of messages with role and content",
        )
    parsed = tuple(_parse_message(message, index) for index, message in enumerate(messages))
    if not parsed:
        raise PromptError("the prompt is empty", source="prompt", remedy="Give at least one user message")
    for index, message in enumerate(parsed):
        _check_message(message, index)
    if parsed[-1].role != "user":
        raise PromptError(
            f"the last message is of role {parsed[-1].role!r}", source="prompt", remedy="End with a user message"
        )
    if not parsed[-1].images and not parsed[-1].text.strip():
        raise PromptError("the prompt is empty", source="prompt", remedy="Write a question or add an image")
    return parsed


def _loose_part(part: Any) -> Part:
    if isinstance(part, TextPart | ImagePart):
        return part
    return TextPart(part) if isinstance(part, str) else ImagePart(part)


def _parse_message(message: Any, index: int) -> Message:
    where = f"message {index}"
    if isinstance(message, Message):
        for number, part in enumerate(message.parts):
            _parse_part(part, f"{where}, part {number}")
        return message
    if not isinstance(message, Mapping):
        raise PromptError(f"is a {type(message).__name__}, not a message", source=where)
    unknown = set(message) - {"role", "content", "name"}
    if unknown or "role" not in message or "content" not in message:
        keys = ", ".join(map(str, message)) or "none"
        raise PromptError(f"has the keys {keys}", source=where, remedy="A message has the keys role and content")
    content = message["content"]
    if isinstance(content, str):
        return Message(message["role"], (TextPart(content),))
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Iterable):
        raise PromptError(
            f"content is a {type(content).__name__}", source=where, remedy="Content is a string or a list of parts"
        )
    parts = tuple(_parse_part(part, f"{where}, part {number}") for number, part in enumerate(content))
    return Message(message["role"], parts)


def _parse_part(part: Any, where: str) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if isinstance(part, TextPart):
        if not isinstance(part.text, str):
            raise PromptError(f"text is a {type(part.text).__name__}", source=where)
        return part
    if isinstance(part, ImagePart):
        if part.image is None:
            raise PromptError("names no image", source=where)
        return part
    if not isinstance(part, Mapping):
        raise PromptError(
            f"is a {type(part).__name__}", source=where, remedy="A part is a string, a TextPart or an ImagePart"
        )
    kind = part.get("type")
    if kind in ("text", "input_text"):
        if not isinstance(part.get("text"), str):
            raise PromptError("has no text", source=where)
        return TextPart(part["text"])
    if kind in ("image", "image_url", "input_image"):
        for key in ("image", "image_url", "url", "path"):
            value = part.get(key)
            if isinstance(value, Mapping):
                value = value.get("url")
            if value is not None:
                return ImagePart(value)
        raise PromptError("names no image", source=where, remedy="Put it under the key 'image'")
    raise PromptError(f"unknown part type {kind!r}", source=where, remedy="Known types: text, image")


def _check_message(message: Message, index: int) -> None:
    where = f"message {index}"
    if message.role not in ROLES:
        raise PromptError(f"unknown role {message.role!r}", source=where, remedy=f"Known roles: {', '.join(ROLES)}")
    if message.role == "system" and index > 0:
        raise PromptError("a system message may only come first", source=where)
    if message.images and message.role != "user":
        raise PromptError(f"an image in a {message.role} message", source=where, remedy="Put it in a user message")
