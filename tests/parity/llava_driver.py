"""Fixtures of the LLaVA kind as the library drives them: engines, pictures, prompts, conversations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.parity.cases import Case
from tests.parity.vision import picture
from vlm.processor.messages import ImagePart, Message, Part, TextPart
from vlm.processor.prompt import IdsPart, MediaPart, Prompt
from vlm.processor.template import Frame, Piece, Special, Template
from vlm.published import PublishedEngine

IMAGE = "<image>"  # how the cases spell the place of a picture


def engine_of(case: Case, dtype: torch.dtype | None = None) -> PublishedEngine:
    """The fixture's checkpoint as the library drives it, embedding and head cut as the reference's builder cuts them."""
    meta = case.fixture.meta
    tower = {"mm_vision_tower": str(case.fixture.folder / "siglip_tower")}  # config.json names one of other sizes
    columns = case.data.get("logit_columns", meta["logit_columns_recorded"])
    rows = max(meta["tokenizer_length"], min(columns, meta["vocab_rows_in_checkpoint"]))
    loaded = case.fixture.model(overrides=tower, vocab_rows=rows, head_rows=columns, dtype=dtype)
    return PublishedEngine(loaded, case.fixture.tokenizer)


def pictures_of(case: Case) -> list[Image.Image]:
    """The pictures of a case, in order."""
    names = case.data.get("images") or ([case.data["image"]] if case.data.get("image") else [])
    return [picture(case, name) for name in names]


def prompt_of(ids: Sequence[int], images: Sequence[Any], marker: int) -> Prompt:
    """Ids with markers as a prompt."""
    parts: list[IdsPart | MediaPart] = []
    run: list[int] = []
    for token in [*ids, None]:
        if token is not None and token != marker:
            run.append(token)
            continue
        if run:
            parts.append(IdsPart(tuple(run)))
        run = []
        if token is not None:
            parts.append(MediaPart(sum(isinstance(p, MediaPart) for p in parts)))
    return Prompt(tuple(parts), tuple(images[: sum(isinstance(p, MediaPart) for p in parts)]))


def ids_of_prompt(prompt: Prompt, marker: int) -> list[int]:
    """A prompt as ids with markers."""
    return [token for part in prompt.parts for token in (part.ids if isinstance(part, IdsPart) else (marker,))]


@torch.no_grad()
def merged(case: Case, engine: PublishedEngine, name: str = "input_ids") -> tuple[Prompt, list[Any], Tensor]:
    """(prompt, what the model saw, merged embeddings [1, P, D]) of a case's ids."""
    images = pictures_of(case)
    prompt = prompt_of(case.input(name).flatten().tolist(), images, case.fixture.meta["image_token_index"])
    seen = engine.see_all(images)
    return prompt, seen, engine.prefix([prompt], [seen])[0]


def turns_of(text: str, template: Template) -> list[tuple[str, str]]:
    """(role, content) of each turn of a spelled conversation, without the opened answer."""
    found = []
    for role, frame in template.roles.items():
        pattern = re.escape(spelled(frame.before)) + "(.*?)" + re.escape(spelled(frame.after))
        found += [(match.start(), role, match[1]) for match in re.finditer(pattern, text, re.DOTALL)]
    return [(role, content) for _, role, content in sorted(found)]


def spelled(pieces: Sequence[Piece]) -> str:
    """Template pieces as text."""
    return "".join(piece.name if isinstance(piece, Special) else piece for piece in pieces)


def literal(turns: list[tuple[str, str]]) -> list[Message]:
    """The turns with each marker replaced by a picture's place, and everything else left as it stands."""
    messages = []
    for role, content in turns:
        parts: list[Part] = []
        for i, run in enumerate(content.split(IMAGE)):
            parts += [ImagePart("picture")] if i else []
            parts += [TextPart(run)] if run else []
        messages.append(Message(role, tuple(parts)))
    return messages


def plain(turns: list[tuple[str, str]]) -> list[Message]:
    """The same as a caller says it: pictures first, no system turn where it is the family's own."""
    messages = []
    for role, content in turns:
        images = [ImagePart("picture")] * content.count(IMAGE)
        messages.append(Message(role, (*images, TextPart(content.replace(IMAGE, "").strip()))))
    return messages


def bare(template: Template) -> Template:
    """The template for messages that spell out everything inside their turns."""
    return replace(template, images_first=False, image=Frame(), image_gap="", after_images="", default_system=None, strip_text=False)
