"""From prompts and pictures to a denoiser: the part of a model that the public API drives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vision.adapter import VisualBatch
from vision.reading import Reading, fast_bf16, read_picture
from vision.tokens import CHAR, ROW_END, THING, VisualTokens
from vlm.backbone.slots import SlotTable
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Prediction
from vlm.families.pocket import PocketModel, Prefix, Slots, Words
from vlm.processor.prompt import Prompt, check_context
from vlm.processor.tokenizer import Tokenizer
from vlm.processor.words import prompt_words
from vlm.results import Box


@dataclass(frozen=True)
class Places:
    """Where the visual entries of one prompt lie: for each prefix position its picture (-1: text), box and kind."""

    picture: list[int]
    boxes: list[Box]
    kinds: list[int]

    def union(self, sources: Sequence[int], picture: int = 0) -> Box | None:
        """Union box of the pointed-at entries on one picture, blanks and row ends left out; None if there are none."""
        shown = [s for s in sources if 0 <= s < len(self.boxes) and self.picture[s] == picture]
        found = [self.boxes[s] for s in shown if self.kinds[s] in (CHAR, THING)]
        if not found:
            return None
        return (min(b[0] for b in found), min(b[1] for b in found), max(b[2] for b in found), max(b[3] for b in found))


class PocketDenoiser:
    """A pocket model behind encoded prompts; all rows fill the slots of `table`."""

    def __init__(self, model: PocketModel, prefix: Prefix, places: list[Places], table: SlotTable) -> None:
        self.model, self.prefix, self.places = model, prefix, places
        self.vocab_size = model.config.backbone.vocab_size
        self._slot, self._keys, self._kind, self._item = (torch.from_numpy(a) for a in (table.slot, table.keys, table.kind, table.item))

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits and copy sources of the asked cells; rows without a cell are not computed."""
        busy = cells.any(dim=1)
        everything = bool(busy.all())
        rows = busy.nonzero(as_tuple=True)[0]
        prefix = self.prefix if everything else self.prefix.select(rows)
        ids, valid, index, asked = (t if everything else t[rows] for t in (canvas.ids, canvas.valid, canvas.slot_index, cells))
        slots = Slots(index, self._slot.expand_as(ids), self._keys, self._kind, self._item)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16(ids.device) and ids.shape[1] > 64):  # by length: a batch computes as its rows alone
            hidden, found = self.model.canvas(ids, valid, slots, prefix)
            logits = self.model.cell_logits(hidden[asked], found.copied[asked])
        attention = torch.softmax(found.scores[asked], dim=-1)
        weight, source = attention.max(dim=-1)
        nowhere = source == attention.shape[-1] - 1
        return Prediction(logits.float(), torch.where(nowhere, -1, source), weight)


class PocketEngine:
    """Encodes pictures and prompts for a :class:`PocketModel`.

    Args:
        model: in evaluation mode. tokenizer: pocket's.
    """

    def __init__(self, model: PocketModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.colon = model.config.reader.alphabet.index(":") + 1

    @property
    def max_visual(self) -> int:
        """Most entries of one picture that go to the backbone."""
        return min(1600, self.model.config.backbone.max_position_embeddings // 2)

    def see(self, image: Any, rescale: bool = True) -> Reading:
        """Read an RGB PIL image."""
        return read_picture(self.model.tower, image, self.colon, rescale)

    @torch.inference_mode()
    def denoiser(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Reading]], answer_cells: int, table: SlotTable | None = None
    ) -> PocketDenoiser:
        """Encode prompts with their pictures.

        Args:
            prompts: B prompts; pictures: the readings of each prompt's images, in order.
            answer_cells: length of the canvases.
            table: what their cells know of their slots; None: free text.

        Raises:
            ContextLengthError: a prompt does not fit.
        """
        limit = self.model.config.backbone.max_position_embeddings
        layouts, tokens, features, places = [], [], [], []
        for prompt, readings in zip(prompts, pictures, strict=True):
            kept = [r.tokens.clipped(self.max_visual) for r in readings]
            check_context(prompt, [len(k) for k in kept], answer_cells, limit)
            layout = prompt.lay_out([len(k) for k in kept])
            layouts.append(layout)
            for k, r in zip(kept, readings, strict=True):
                tokens.append(k)
                features.append(r.features[: len(k)])
            places.append(_places(layout.length, layout.spans, kept))
        width = max(layout.length for layout in layouts)
        ids = torch.zeros(len(layouts), width, dtype=torch.long)
        valid = torch.zeros(len(layouts), width, dtype=torch.bool)
        media = torch.zeros_like(valid)
        for i, layout in enumerate(layouts):
            ids[i, : layout.length] = torch.tensor(layout.ids)
            valid[i, : layout.length] = True
            for span in layout.spans:
                media[i, span.start : span.start + span.length] = True
        rows, word = prompt_words([layout.ids for layout in layouts], self.tokenizer, width)
        words = Words(torch.from_numpy(rows), torch.from_numpy(word))
        visual = None
        if any(len(t) for t in tokens):
            visual = VisualBatch.collate(tokens, [None] * len(tokens), self.model.config.reader.width)
            for i, feature in enumerate(features):
                visual.features[i, : len(feature)] = feature
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16(ids.device)):
            prefix = self.model.prefix(ids, valid, media, words, visual)
        return PocketDenoiser(self.model, prefix, places, table or SlotTable.none(answer_cells))


def _places(length: int, spans: Sequence[Any], kept: Sequence[VisualTokens]) -> Places:
    picture, kinds = [-1] * length, [ROW_END] * length
    boxes: list[Box] = [(0.0, 0.0, 0.0, 0.0)] * length
    for span in spans:
        tokens = kept[span.index]
        for k in range(span.length):
            picture[span.start + k] = span.index
            x0, y0, x1, y1 = tokens.boxes[k].tolist()
            boxes[span.start + k] = (x0, y0, x1, y1)
            kinds[span.start + k] = int(tokens.kind[k])
    return Places(picture, boxes, kinds)
