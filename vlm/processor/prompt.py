"""A prompt is ids and media places, in order; its length is known once the media have been encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlm.errors import ContextLengthError, PromptError


@dataclass(frozen=True)
class IdsPart:
    """A run of token ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class MediaPart:
    """The place of media item `index`; its number of cells is the encoder's to say."""

    index: int
    kind: str = "image"


@dataclass(frozen=True)
class MediaSpan:
    """Where a media item lies in the prefix: positions `start` to `start + length`."""

    index: int
    start: int
    length: int


@dataclass(frozen=True)
class PromptLayout:
    """The prefix with its media filled in: `ids [P]` (the placeholder at media cells) and the spans of the media."""

    ids: list[int]
    spans: tuple[MediaSpan, ...]

    @property
    def length(self) -> int:
        """Number of prefix positions."""
        return len(self.ids)


@dataclass(frozen=True)
class Prompt:
    """What stands before the canvas: ids and media places in order, and the media themselves."""

    parts: tuple[IdsPart | MediaPart, ...]
    images: tuple[Any, ...] = ()
    media_id: int = field(default=0)  # the id that stands at media cells; its embedding is replaced

    @property
    def text_tokens(self) -> int:
        """Number of ids besides the media cells."""
        return sum(len(part.ids) for part in self.parts if isinstance(part, IdsPart))

    def without_first_after_media(self) -> Prompt:
        """The prompt as released LLaVA code assembles it behind a tokenizer that begins with bos: the first id of the text
        behind each picture is lost."""
        parts: list[IdsPart | MediaPart] = []
        for part in self.parts:
            behind = bool(parts) and isinstance(parts[-1], MediaPart)
            parts.append(IdsPart(part.ids[1:]) if behind and isinstance(part, IdsPart) else part)
        return replace(self, parts=tuple(parts))

    def lay_out(self, media_lengths: Sequence[int]) -> PromptLayout:
        """Fill in the media, `media_lengths[i]` cells for item i; PromptError when their number does not fit."""
        if len(media_lengths) != len(self.images):
            raise PromptError(f"{len(media_lengths)} media lengths for {len(self.images)} images", source="prompt")
        ids: list[int] = []
        spans = []
        for part in self.parts:
            if isinstance(part, IdsPart):
                ids.extend(part.ids)
            else:
                length = media_lengths[part.index]
                spans.append(MediaSpan(part.index, len(ids), length))
                ids.extend([self.media_id] * length)
        return PromptLayout(ids, tuple(spans))


def lay_out_within(prompt: Prompt, media_lengths: Sequence[int], answer_cells: int, limit: int) -> PromptLayout:
    """``prompt.lay_out(media_lengths)`` if it leaves room for the answer; ContextLengthError otherwise."""
    check_context(prompt, media_lengths, answer_cells, limit)
    return prompt.lay_out(media_lengths)


def check_context(prompt: Prompt, media_lengths: Sequence[int], answer_cells: int, limit: int) -> int:
    """Positions that prompt and answer need together; ContextLengthError, with the numbers, when beyond `limit`."""
    media = sum(media_lengths)
    total = prompt.text_tokens + media + answer_cells
    if total > limit:
        raise ContextLengthError(
            f"{total} positions are needed ({prompt.text_tokens} text, {media} image, {answer_cells} answer) and the "
            f"model has {limit}",
            source="prompt",
            remedy="Shorten the text, lower the answer length, or send fewer or smaller images",
        )
    return total
