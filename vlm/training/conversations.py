"""Training rows of the published families: whole conversations with their targets, pictures merged in, and their losses.

LaViDa (arXiv:2505.16839) hides complementary parts of one answer in two copies of a row; the picture is encoded once for
both. LLaDA-V (arXiv:2505.16933) hides each target by itself and learns every turn of a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlm.backbone.model import DiffusionBackbone
from vlm.errors import PromptError
from vlm.processor.messages import ImagePart, Message, TextPart, parse_messages
from vlm.processor.prompt import IdsPart, Prompt
from vlm.processor.template import Piece, Template, encode_pieces
from vlm.processor.tokenizer import Tokenizer
from vlm.training.losses import cell_weights, masked_cross_entropy
from vlm.training.masking import bernoulli_mask, complementary_pair

IGNORE = -100
MEDIA = -200


@dataclass(frozen=True)
class Row:
    """A conversation to learn.

    Attributes:
        prompt: ids and media places, answers included. labels: one for each id and each media place, IGNORE where there is
            nothing to learn. rounds: number of the round each belongs to.
    """

    prompt: Prompt
    labels: tuple[int, ...]
    rounds: tuple[int, ...]


def read_conversations(path: Path) -> Iterator[tuple[Message, ...]]:
    """Conversations of a JSONL file, one a line: {"messages": [...]} of the chat-completions kind, the last one the assistant's.

    Names of pictures are taken as relative to the file. ``vlm corrections`` writes such files.

    Raises:
        PromptError: a line that is no conversation with an answer, by its number.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                *asked, answer = json.loads(line)["messages"]
                if answer["role"] != "assistant" or not isinstance(answer["content"], str):
                    raise ValueError("the last message is not the assistant's")
                turns = (*parse_messages(asked), Message("assistant", (TextPart(answer["content"]),)))
            except (ValueError, KeyError, TypeError, PromptError) as error:
                remedy = "end it with a message of the assistant"
                raise PromptError(f"is no conversation to learn ({error})", source=f"{path}, line {number}", remedy=remedy) from error
            yield tuple(replace(turn, parts=tuple(_beside(part, path) for part in turn.parts)) for turn in turns)


def _beside(part: TextPart | ImagePart, path: Path) -> TextPart | ImagePart:
    return ImagePart(path.parent / part.image) if isinstance(part, ImagePart) and isinstance(part.image, str) else part


def training_row(template: Template, tokenizer: Tokenizer, turns: Sequence[Message], *, header: bool = False, everywhere: Sequence[str] = ()) -> Row:
    """Lay out a conversation with its answers.

    Args:
        turns: a leading system turn is put there by the template when it is missing.
        header: learn what opens an answer as well (LLaDA-V). everywhere: control tokens learned wherever they stand
            (LLaDA-V's bos, header and end-of-turn tokens).
    """
    turns = template.with_system(turns)
    always = {tokenizer.special[name] for name in everywhere}
    opening = len(_ids(tokenizer, template.answer))
    pieces: list[Piece | ImagePart] = [*template.begin]
    labels: list[int] = []
    rounds: list[int] = []
    number = 0
    for token in _ids(tokenizer, template.begin):
        labels.append(token if token in always else IGNORE)
        rounds.append(0)
    for i, turn in enumerate(turns):
        number += turn.role == "user" and any(t.role == "user" for t in turns[:i])
        own = template.turn(turn)
        pieces += own
        for place, token in enumerate(_ids(tokenizer, own)):
            learned = token in always or (turn.role == "assistant" and (header or place >= opening))
            labels.append(token if learned else IGNORE)
            rounds.append(number)
    images = tuple(image for turn in turns for image in turn.images)
    return Row(Prompt(tuple(encode_pieces(pieces, tokenizer)), images), tuple(labels), tuple(rounds))


def _ids(tokenizer: Tokenizer, pieces: Sequence[Piece | ImagePart]) -> list[int]:
    parts = encode_pieces(pieces, tokenizer)
    return [token for part in parts for token in (part.ids if isinstance(part, IdsPart) else (MEDIA,))]


@dataclass
class Merged:
    """Rows with their pictures in place, padded to one length.

    Attributes:
        embeds: [B, T, D]. ids: [B, T], MEDIA at pictures, IGNORE on padding. labels, rounds: [B, T]. valid: [B, T].
    """

    embeds: Tensor
    ids: Tensor
    labels: Tensor
    rounds: Tensor
    valid: Tensor


def merge(backbone: DiffusionBackbone, rows: Sequence[Row], features: Sequence[Sequence[Tensor]], *, reference_quirks: bool = False) -> Merged:
    """Put features [T_i, D] of each row's pictures into their places, with gradients.

    Args:
        reference_quirks: the zeros behind shorter rows are attended to, as in the released code; otherwise nothing sees them.
    """
    built = [_merged_row(backbone, row, seen) for row, seen in zip(rows, features, strict=True)]
    width = max(len(ids) for _, ids, _, _ in built)
    first = built[0][0]
    embeds = first.new_zeros(len(rows), width, first.shape[-1])
    ids, labels = (torch.full((len(rows), width), IGNORE) for _ in range(2))
    rounds = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.full((len(rows), width), reference_quirks)
    for i, (vectors, own, targets, numbers) in enumerate(built):
        n = len(own)
        embeds[i, :n] = vectors
        ids[i, :n], labels[i, :n], rounds[i, :n] = torch.tensor(own), torch.tensor(targets), torch.tensor(numbers)
        valid[i, :n] = True
    device = embeds.device
    return Merged(embeds, ids.to(device), labels.to(device), rounds.to(device), valid.to(device))


def _merged_row(backbone: DiffusionBackbone, row: Row, features: Sequence[Tensor]) -> tuple[Tensor, list[int], list[int], list[int]]:
    vectors: list[Tensor] = []
    ids: list[int] = []
    labels: list[int] = []
    rounds: list[int] = []
    at = 0
    device = backbone.token_embed.weight.device
    for part in row.prompt.parts:
        if isinstance(part, IdsPart):
            vectors.append(backbone.embed(torch.tensor(part.ids, device=device)))
            ids += part.ids
            labels += row.labels[at : at + len(part.ids)]
            rounds += row.rounds[at : at + len(part.ids)]
            at += len(part.ids)
            continue
        seen = features[part.index]
        vectors.append(seen.to(vectors[0].dtype) if vectors else seen)
        ids += [MEDIA] * len(seen)
        labels += [IGNORE] * len(seen)
        rounds += [row.rounds[at]] * len(seen)
        at += 1
    return torch.cat(vectors), ids, labels, rounds


@dataclass
class Loss:
    """A loss with what it was made of: masks [N, T] of the copies that were run, logits [R, V] of the masked cells, row by row."""

    value: Tensor
    masks: Tensor
    logits: Tensor


def masked_states(backbone: DiffusionBackbone, batch: Merged, masks: Tensor, rule: Tensor | None = None) -> Tensor:
    """Final hidden states [N, T, D] of copies with the cells `masks` [N, T] hidden, N a multiple of B; `rule` as the backbone takes it."""
    copies = len(masks) // len(batch.embeds)
    nothing = backbone.embed(torch.tensor(backbone.config.mask_token_id, device=masks.device))
    embeds = torch.where(masks.unsqueeze(-1), nothing, batch.embeds.repeat(copies, 1, 1))
    positions = torch.arange(masks.shape[1], device=masks.device).expand(len(masks), -1)
    return backbone(embeds, positions, batch.valid.repeat(copies, 1), rule=rule)


def _masked_logits(backbone: DiffusionBackbone, batch: Merged, masks: Tensor, rule: Tensor | None) -> Tensor:
    """[R, V] logits that speak of the masked cells."""
    hidden = masked_states(backbone, batch, masks, rule)
    if backbone.config.logit_shift:
        hidden = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
    return backbone.logits(hidden[masks])


def complementary_loss(
    backbone: DiffusionBackbone, batch: Merged, ratio: Tensor, *, noise: Tensor | None = None, never: Sequence[int] = (), reference_quirks: bool = False
) -> Loss:
    """LaViDa's: two copies that hide complementary parts of the targets, the mean cross-entropy over all of them.

    Args:
        ratio: [B] share that the first copy hides. noise: [B, T] uniforms that replace the draw. never: ids that are neither
            hidden nor learned (the marker that ends an infilled slot).
        reference_quirks: see :func:`complementary_pair`.
    """
    answer = batch.labels != IGNORE
    if never:
        answer &= ~torch.isin(batch.ids, torch.tensor(list(never), device=answer.device))
    masks = torch.cat(complementary_pair(answer, ratio, noise=noise, reference_quirks=reference_quirks))
    logits = _masked_logits(backbone, batch, masks, None)
    target = batch.labels.repeat(2, 1)[masks]
    return Loss(masked_cross_entropy(logits, target, torch.ones_like(target, dtype=torch.float32)), masks, logits)


def bound_loss(
    backbone: DiffusionBackbone, batch: Merged, ratio: Tensor, *, noise: Tensor | None = None, rounds_are_causal: bool = False
) -> Loss:
    """LLaDA's and LLaDA-V's: each target is hidden with the chance `ratio` [B]; cross-entropy / ratio / targets of the row.

    Args:
        noise: [B, T] uniforms that replace the draw. rounds_are_causal: a round does not see later ones (LLaDA-V's ablation).
    """
    answer = batch.labels != IGNORE
    mask = bernoulli_mask(answer, ratio, noise=noise)
    weights, total = cell_weights(mask.unsqueeze(1), answer, ratio.unsqueeze(1), "llada")
    rule = batch.rounds.unsqueeze(1) <= batch.rounds.unsqueeze(2) if rounds_are_causal else None  # [B, asks, is seen]
    logits = _masked_logits(backbone, batch, mask, rule)
    return Loss(masked_cross_entropy(logits, batch.labels[mask], weights[:, 0][mask], total), mask, logits)
