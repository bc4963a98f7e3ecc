"""A chat template as data: what stands around each turn. Families bring their own `Template` values.

Control tokens enter a prompt here and nowhere else. The words of a template and the words of a user that touch are
encoded in one go, as the published templates do, but through the encoder that knows no control token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vlm.errors import ConfigError, PromptError
from vlm.processor.messages import ImagePart, Message, Messages, Part, TextPart, parse_messages
from vlm.processor.prompt import IdsPart, MediaPart, Prompt
from vlm.processor.tokenizer import Tokenizer


@dataclass(frozen=True)
class Special:
    """A control token, by its spelling in the tokenizer."""

    name: str


Piece = Special | str  # a string is template text, encoded like any other text


@dataclass(frozen=True)
class Frame:
    """What stands before and after something."""

    before: tuple[Piece, ...] = ()
    after: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Template:
    """How messages become a prompt.

    `roles` frames each turn, `image` frames each picture, `answer` opens the reply. With `images_first` the pictures
    of a turn precede its text whatever the order given; `image_gap` stands between them and `after_images` behind the last.
    `default_system` is used when the caller gives no system turn.
    """

    name: str
    roles: Mapping[str, Frame]
    begin: tuple[Piece, ...] = ()
    answer: tuple[Piece, ...] = ()
    image: Frame = field(default_factory=Frame)
    media_token: str = "<|image|>"
    images_first: bool = True
    max_images: int = 16
    default_system: str | None = None
    image_gap: str = ""
    after_images: str = ""
    text_roles: Mapping[str, Frame] = field(default_factory=dict)  # frames of turns without media, where they differ
    system_frame: Frame | None = None  # frame of the default system turn, where it differs
    strip_text: bool = False  # blanks around the text of a turn are dropped, as some published templates do

    def build(self, messages: Messages, tokenizer: Tokenizer) -> Prompt:
        """The prompt of a conversation; PromptError for what `parse_messages` refuses or too many images."""
        turns = parse_messages(messages)
        images = tuple(image for turn in turns for image in turn.images)
        if len(images) > self.max_images:
            raise PromptError(
                f"{len(images)} images, and {self.name} takes at most {self.max_images}",
                source="prompt",
                remedy="Send fewer images at once",
            )
        turns = self.with_system(turns)
        if self.strip_text:
            turns = tuple(_stripped(turn) for turn in turns)
        pieces: list[Piece | ImagePart] = [*self.begin]
        for turn in turns:
            pieces.extend(self.turn(turn))
        pieces.extend(self.answer)
        return Prompt(tuple(encode_pieces(pieces, tokenizer)), images, _special(self.media_token, tokenizer))

    def with_system(self, turns: Sequence[Message]) -> tuple[Message, ...]:
        """The turns behind a system turn, the template's own where the caller gives none."""
        if self.default_system is None or turns[0].role == "system":
            return tuple(turns)
        return (Message("system", (TextPart(self.default_system),)), *turns)

    def turn(self, turn: Message) -> list[Piece | ImagePart]:
        """A turn with everything that stands around it; PromptError when there are no turns of its role."""
        frame = self._frame(turn)
        if frame is None:
            raise PromptError(f"{self.name} has no {turn.role} turns", source="prompt")
        inside = [piece for part in self._ordered(turn) for piece in self._framed(part)]
        return [*frame.before, *inside, *frame.after]

    def _frame(self, turn: Message) -> Frame | None:
        if self.system_frame is not None and turn.role == "system" and turn.text == self.default_system:
            return self.system_frame
        bare = self.text_roles.get(turn.role) if not turn.images else None
        return bare or self.roles.get(turn.role)

    def _ordered(self, turn: Message) -> list[Part]:
        if not self.images_first:
            return list(turn.parts)
        images: list[Part] = [part for part in turn.parts if isinstance(part, ImagePart)]
        texts: list[Part] = [part for part in turn.parts if not isinstance(part, ImagePart)]
        ordered: list[Part] = []
        for i, image in enumerate(images):
            ordered += [image, TextPart(self.image_gap if i < len(images) - 1 else self.after_images)]
        return [*ordered, *texts]

    def _framed(self, part: Part) -> list[Piece | ImagePart]:
        if isinstance(part, TextPart):
            return [part.text]
        return [*self.image.before, part, *self.image.after]


def _stripped(turn: Message) -> Message:
    """The turn without blanks before its first and after its last part, where those are text."""
    parts = list(turn.parts)
    if parts and isinstance(parts[0], TextPart):
        parts[0] = TextPart(parts[0].text.lstrip())
    if parts and isinstance(parts[-1], TextPart):
        parts[-1] = TextPart(parts[-1].text.rstrip())
    return replace(turn, parts=tuple(parts))


def _special(name: str, tokenizer: Tokenizer) -> int:
    index = tokenizer.special.get(name)
    if index is None:
        raise ConfigError(f"the tokenizer has no control token {name!r}", source=tokenizer.source)
    return index


def encode_pieces(pieces: Sequence[Piece | ImagePart], tokenizer: Tokenizer) -> list[IdsPart | MediaPart]:
    """Ids and media places of template pieces; text that touches is encoded in one go."""
    parts: list[IdsPart | MediaPart] = []
    ids: list[int] = []
    text = ""
    media = 0
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        ids += tokenizer.encode(text) if text else []
        text = ""
        if isinstance(piece, Special):
            ids.append(_special(piece.name, tokenizer))
            continue
        if ids:
            parts.append(IdsPart(tuple(ids)))
            ids = []
        parts.append(MediaPart(media))
        media += 1
    ids += tokenizer.encode(text) if text else []
    return [*parts, IdsPart(tuple(ids))] if ids else parts


POCKET = Template(
    name="pocket",
    begin=(Special("<|bos|>"),),
    roles={role: Frame((Special(f"<|{role}|>"),), (Special("<|end|>"),)) for role in ("system", "user", "assistant")},
    answer=(Special("<|assistant|>"),),
    max_images=8,
)
