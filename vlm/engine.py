"""From prompts and pictures to a denoiser: the part of a model that the public API drives.

:class:`Engine` is what :class:`vlm.model.DiffusionVLM` asks of a model. :class:`PocketEngine` drives the embedded model,
``vlm.published.PublishedEngine`` every family of ``vlm.families`` over the one backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vision.adapter import VisualBatch
from vision.reading import Reading, fast_bf16, read_picture, read_pictures
from vision.tokens import CHAR, ROW_END, THING, VisualTokens
from vlm.backbone.packed import PackedPrefix, bounds_of
from vlm.backbone.slots import SlotTable, join
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser, Prediction
from vlm.decoding.loop import Recipe
from vlm.decoding.presets import DEFAULT, PRESETS, known_options, preset
from vlm.errors import ContextLengthError, OptionError
from vlm.families.pocket import PackedMemory, PackedPocket, PocketModel, Prefix, Slots, Words
from vlm.processor.messages import ImagePart, Message, Messages, TextPart
from vlm.processor.prompt import Prompt, lay_out_within
from vlm.processor.template import POCKET
from vlm.processor.tokenizer import Tokenizer
from vlm.processor.words import prompt_words
from vlm.results import Box
from vlm.structure.lift import Symbols
from vlm.structure.scaffold import Scaffold

#: Cells of one row -> the box of the page region they were copied from, None if there is none.
Locator = Callable[[list[int]], Box | None]


@dataclass(frozen=True)
class Plan:
    """How a request is decoded.

    Attributes:
        recipe: the method. seed: of all draws.
        prefix_cache: encode the prompt once and keep its keys and values; False runs it with the canvas in every forward;
            None leaves it to the family.
        guidance: scale of classifier-free guidance, 0 for none.
        reference_quirks: reproduce released code to the letter, in prompts as in decoding.
    """

    recipe: Recipe
    seed: int = 0
    prefix_cache: bool | None = None
    guidance: float = 0.0
    reference_quirks: bool = False


class Engine(Protocol):
    """A model with everything around it, as the public API needs it. What `see` gives is the engine's own business.

    Attributes:
        tokenizer: of the model. symbols: its mask, padding and null ids. stop_ids: control tokens that end an answer.
        default_preset: name of the decoding method when none is asked for. model: the module that holds the weights.
    """

    model: Any
    tokenizer: Tokenizer
    symbols: Symbols
    stop_ids: tuple[int, ...]
    default_preset: str

    def plan(self, decoding: Mapping[str, Any]) -> Plan:
        """A plan from the caller's options (``preset``, ``seed``, those of the preset and of the engine).

        Raises:
            OptionError: an option or value that does not exist.
        """
        ...

    def presets(self) -> dict[str, dict[str, Any]]:
        """Names of the decoding methods ``plan`` knows, with all their options and defaults."""
        ...

    def banned(self, plan: Plan, scaffold: Scaffold | None) -> tuple[int, ...]:
        """Ids that can never come out, in free text (None) or in the slots of a scaffold."""
        ...

    def prompt(self, messages: Messages, plan: Plan) -> Prompt:
        """The prompt of a conversation; raises PromptError."""
        ...

    def extraction(self, scaffold: Scaffold) -> str:
        """What the user says when a scaffold is to be filled from a picture; '' for nothing."""
        ...

    def see(self, image: Any) -> Any:
        """Encode an RGB PIL image that is alone in its prompt; the length of what comes is that of its part of the prompt."""
        ...

    def see_each(self, images: Sequence[Any]) -> list[Any]:
        """Encode RGB PIL images that are alone in their prompts, as :meth:`see` does."""
        ...

    def see_all(self, images: Sequence[Any]) -> list[Any]:
        """Encode the RGB PIL images of one prompt."""
        ...

    def denoiser(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Any]], answer_cells: int, plan: Plan, scaffold: Scaffold | None = None
    ) -> Denoiser:
        """Encode B prompts with what `see` gave for their images, for canvases [B, answer_cells]; raises ContextLengthError."""
        ...

    def locator(self, denoiser: Any, canvas: Canvas, row: int) -> Locator | None:
        """Where the cells of a finished row were copied from; None for models that do not point."""
        ...

    def info(self) -> dict[str, Any]:
        """Sizes and limits, JSON-safe."""
        ...


def seed_of(options: dict[str, Any]) -> int:
    """Take ``seed`` out of decoding options; OptionError unless it is a whole number."""
    seed = options.pop("seed", 0)
    if not isinstance(seed, int):
        raise OptionError(f"seed is {seed!r}", remedy="use an integer")
    return seed


def check_masks(recipe: Recipe, model: str) -> None:
    """OptionError for a method that works on another kind of noise than masks."""
    if recipe.driver is not None:
        raise OptionError(f"{model} fills masks, and this preset works on uniform noise", remedy="use another preset")


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


#: Options of presets that pocket sets otherwise than their papers.
POCKET_DEFAULTS: dict[str, dict[str, Any]] = {"dimple": {"gamma": 0.7}}
#: Places up to which the pads of a slot always stay on the canvas: training has seen slots this short with any value.
SHORT_SLOT = 12


class PocketDenoiser:
    """A pocket model behind encoded prompts; all rows fill the slots of `table`.

    A canvas is run without its padding (:class:`vlm.families.pocket.PackedPocket`), the last block only at the cells that
    are asked, and without the known pads at the ends of long slots: what remains is the canvas of a schema with smaller
    budgets, which is what training drew.
    """

    def __init__(self, model: PocketModel, prefix: Prefix, places: list[Places], table: SlotTable, half: bool, null: int) -> None:
        self.prefix, self.places, self.half, self.null = prefix, places, half, null
        self.null_bias = model.config.null_bias
        self.packed = PackedPocket(model)
        self.vocab_size = model.config.backbone.vocab_size
        #: Where the first cells of slots point, (row, column) -> [(entry, probability)]; kept where this is no None.
        self.pointed: dict[tuple[int, int], list[tuple[int, float]]] | None = None
        lengths = prefix.lengths.tolist()

        def flat(layers: list[Tensor]) -> list[Tensor]:
            return [torch.cat([t[row, :, :n] for row, n in enumerate(lengths)], dim=1) for t in layers]  # [Hkv, T, Dh]

        cache = prefix.cache
        hidden = torch.cat([cache.hidden[row, :n] for row, n in enumerate(lengths)])
        packed = PackedPrefix(flat(cache.keys), flat(cache.values), hidden, bounds_of(lengths))
        self.behind = PackedMemory(packed, prefix.memory, replace(prefix.labels), lengths)
        self._set(table)

    def _set(self, table: SlotTable) -> None:
        self._slot, self._slots = torch.from_numpy(table.slot), Slots.of(torch.zeros(0), table)
        self.behind.labels.spelled = None

    def lay_out(self, scaffolds: Sequence[Scaffold]) -> None:
        """From now on the canvases have these scaffolds, one a row; raises ContextLengthError when one is too long."""
        width, longest = max(map(len, scaffolds)), max(self.behind.lengths)
        limit = self.packed.model.config.backbone.max_position_embeddings
        if longest + width > limit:
            raise ContextLengthError(f"prompt and answer need {longest + width} positions and the model has {limit}", remedy="ask for less at once")
        self._set(join([SlotTable.of(scaffold) for scaffold in scaffolds], width))

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits and copy sources of the asked cells; rows without a cell are not computed."""
        kept = canvas.valid & cells.any(dim=1, keepdim=True) & ~spare_pads(canvas)
        counts = kept.sum(dim=1)
        rows = counts.nonzero(as_tuple=True)[0].tolist()
        slots = replace(self._slots, index=canvas.slot_index[kept], slot=self._slot.expand_as(kept)[kept])
        with torch.autocast(canvas.ids.device.type, torch.bfloat16, enabled=self.half):
            labels = self.behind.labels
            if labels.spelled is None and self._slot.dim() == 1:  # all rows have the same slots: they are looked up once
                labels.spelled = self.packed.model.spelled(slots, labels, torch.arange(len(slots.keys)))
            found = self.packed.cells(canvas.ids[kept], slots, cells[kept], counts[rows].tolist(), rows, self.behind)
        chances = torch.softmax(found.scores, dim=-1)
        weight, source = chances.max(dim=-1)
        if self.pointed is not None:
            self._note(chances, canvas, cells)
        nowhere = source == found.scores.shape[-1] - 1
        if self.null_bias:
            found.logits[:, self.null] += self.null_bias
        return Prediction(found.logits, torch.where(nowhere, -1, source), weight)

    def _note(self, chances: Tensor, canvas: Canvas, cells: Tensor) -> None:
        assert self.pointed is not None
        for n, (row, column) in enumerate(cells.nonzero().tolist()):
            if canvas.slot_index[row, column] == 1:
                top = chances[n, :-1].topk(min(32, chances.shape[1] - 1))
                self.pointed[row, column] = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def spare_pads(canvas: Canvas) -> Tensor:
    """[B, L] known pads beyond place SHORT_SLOT of a slot that follow another known pad; none on canvases of free text."""
    pad = (canvas.ids == canvas.pad_id) & ~canvas.masked
    after = torch.zeros_like(pad)
    after[:, 1:] = pad[:, :-1]  # in the same slot: the first place of a slot is never spare
    has_literals = ((canvas.slot_index == 0) & canvas.valid).any(dim=1, keepdim=True)
    return pad & after & (canvas.slot_index > SHORT_SLOT) & has_literals


class PocketEngine:
    """Encodes pictures and prompts for a :class:`PocketModel`.

    Args:
        model: taken over: put into evaluation mode, and where bf16 is the faster precision the matrices of its
            backbone are held in bf16 for good. Autocast would round them at every call, with the same result.
        tokenizer: pocket's.
    """

    def __init__(self, model: PocketModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.half = fast_bf16(next(model.parameters()).device)
        if self.half:
            for module in model.backbone.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        self.tower = self.model.tower.folded(torch.bfloat16 if self.half else torch.float32)
        self.colon = model.config.reader.alphabet.index(":") + 1
        self.symbols = Symbols.of(tokenizer)
        self.stop_ids: tuple[int, ...] = (tokenizer.special["<|eos|>"],)
        self.default_preset = DEFAULT

    @property
    def max_visual(self) -> int:
        """Most entries of one picture that go to the backbone."""
        return min(1600, self.model.config.backbone.max_position_embeddings // 2)

    def plan(self, decoding: Mapping[str, Any]) -> Plan:
        """A preset with its options; Dimple's threshold is lower than the paper's by default."""
        options = dict(decoding)
        seed = seed_of(options)
        name = options.pop("preset", None) or DEFAULT
        recipe = preset(name, **{**POCKET_DEFAULTS.get(name, {}), **options})
        check_masks(recipe, "pocket")
        return Plan(recipe, seed)

    def presets(self) -> dict[str, dict[str, Any]]:
        """The library's presets, with pocket's defaults."""
        return {name: {**options, **POCKET_DEFAULTS.get(name, {})} for name, options in known_options(PRESETS).items()}

    def banned(self, plan: Plan, scaffold: Scaffold | None) -> tuple[int, ...]:
        """All control tokens but those that end a text, or stand in a slot; and the recipe's own."""
        kept = (self.symbols.pad, *(self.stop_ids if scaffold is None else (self.symbols.null,)))
        return (*plan.recipe.banned, *(i for i in self.tokenizer.control_ids if i not in kept))

    def prompt(self, messages: Messages, plan: Plan | None = None) -> Prompt:
        """The prompt of a conversation."""
        return POCKET.build(messages, self.tokenizer)

    def extraction(self, scaffold: Scaffold) -> str:
        """Nothing: pocket learned to fill a scaffold without being told."""
        return ""

    def see(self, image: Any, rescale: bool = True) -> Reading:
        """Read an RGB PIL image."""
        return read_picture(self.tower, image, self.colon, rescale)

    def see_each(self, images: Sequence[Any]) -> list[Reading]:
        """Read RGB PIL images."""
        return read_pictures(self.tower, images, self.colon)

    def see_all(self, images: Sequence[Any]) -> list[Reading]:
        """The same: pocket reads a picture in one way only."""
        return self.see_each(images)

    def locator(self, denoiser: PocketDenoiser, canvas: Canvas, row: int) -> Locator:
        """Union of what the copy head pointed at."""
        places, source = denoiser.places[row], canvas.source[row].tolist()
        return lambda cells: places.union([source[c] for c in cells])

    def pointed(self, denoiser: PocketDenoiser, row: int, cell: int) -> list[tuple[Box, float]]:
        """What the first cell of a slot may point at, by probability; nothing unless the denoiser was told to remember."""
        found = (denoiser.pointed or {}).get((row, cell), [])
        boxes = [(denoiser.places[row].union([entry]), chance) for entry, chance in found]
        return [(box, chance) for box, chance in boxes if box is not None]

    def info(self) -> dict[str, Any]:
        """Name, sizes and limits of the model."""
        config = self.model.config
        count = {part: sum(p.numel() for p in getattr(self.model, part).parameters()) for part in ("tower", "adapter", "backbone")}
        return {
            "family": "pocket", "parameters": {**count, "total": sum(count.values())}, "dtype": "float32",
            "vocab_size": config.backbone.vocab_size, "context": config.backbone.max_position_embeddings,
            "layers": config.backbone.num_layers, "hidden_size": config.backbone.hidden_size, "default_preset": DEFAULT,
        }  # fmt: skip

    @torch.inference_mode()
    def denoiser(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Reading]], answer_cells: int, plan: Plan | None = None, scaffold: Scaffold | None = None
    ) -> PocketDenoiser:
        """Encode prompts with their pictures.

        Args:
            prompts: B prompts; pictures: the readings of each prompt's images, in order.
            answer_cells: length of the canvases.
            plan: makes no difference here. scaffold: on the canvases; None: free text.

        Raises:
            ContextLengthError: a prompt does not fit.
        """
        limit = self.model.config.backbone.max_position_embeddings
        layouts, tokens, features, places = [], [], [], []
        for prompt, readings in zip(prompts, pictures, strict=True):
            kept = [r.tokens.clipped(self.max_visual) for r in readings]
            layout = lay_out_within(prompt, [len(k) for k in kept], answer_cells, limit)
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
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.half):
            prefix = self.model.prefix(ids, valid, media, words, visual)
        table = SlotTable.none(answer_cells) if scaffold is None else SlotTable.of(scaffold)
        return PocketDenoiser(self.model, prefix, places, table, self.half, self.tokenizer.special["<|null|>"])


def user_turn(text: str) -> list[Message]:
    """A conversation of one picture and one text, the picture to be given later."""
    parts: tuple[Any, ...] = (ImagePart("picture"), TextPart(text)) if text else (ImagePart("picture"),)
    return [Message("user", parts)]


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
