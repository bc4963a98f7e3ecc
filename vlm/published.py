"""The engine of published checkpoints: any family of ``vlm.families`` over the one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.backbone.inputs import Inputs
from vlm.checkpoints.hub import find_folder
from vlm.checkpoints.load import Loaded, load
from vlm.decoding.blocks import BlockDenoiser
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser
from vlm.decoding.denoiser import BackboneDenoiser, GuidedDenoiser
from vlm.decoding.presets import PRESETS, UNIFORM, known_options
from vlm.engine import Locator, Plan, check_masks, seed_of
from vlm.errors import OptionError, PromptError
from vlm.families.family import Family, Picture
from vlm.processor.messages import Messages
from vlm.processor.prompt import Prompt, PromptLayout, lay_out_within
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.fields import ChoiceField
from vlm.structure.lift import Symbols
from vlm.structure.scaffold import Scaffold

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PublishedEngine:
    """Prompts, pictures and denoisers of a loaded checkpoint.

    Args:
        loaded: the checkpoint. tokenizer: beside it.
    """

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer) -> None:
        self.loaded, self.tokenizer = loaded, tokenizer
        self.family: Family = loaded.family
        self.model: Any = loaded.model
        self.config = loaded.config.backbone
        fill = tokenizer.special.get(loaded.config.fill_token, self.config.pad_token_id)
        self.symbols = Symbols(fill, self.config.mask_token_id)
        self.stop_ids = self.family.stop_ids(tokenizer)
        self.default_preset = self.family.default_preset

    @classmethod
    def open(
        cls, path: str | Path, *, device: str | None = None, dtype: str | None = None, variant: str | None = None, tower: str | Path | None = None,
        **placement: Any,
    ) -> PublishedEngine:  # fmt: skip
        """Load a checkpoint.

        Args:
            path: a folder, or the id of a Hub repository. device, dtype: None is the CPU, and the stored dtype.
            variant: one of the family's; None reads it off the end of the name. tower: folder of the base vision tower.
            placement: ``device_map``, ``max_memory``, ``offload_folder`` of :func:`vlm.checkpoints.placement.place`.

        Raises:
            CheckpointError, OptionError.
        """
        if dtype is not None and dtype not in DTYPES:
            raise OptionError(f"dtype {dtype!r} is not supported", remedy=f"use one of {', '.join(DTYPES)}")
        try:
            where = None if device is None else torch.device(device)
        except RuntimeError as error:
            raise OptionError(f"there is no device {device!r}", remedy="use 'cpu' or 'cuda'") from error
        folder = find_folder(path)
        overrides = variant_overrides(folder, str(path), variant)
        if tower is not None:
            overrides["mm_vision_tower"] = str(find_folder(tower, "the base vision tower").resolve())
        tokenizer = Tokenizer.from_file(folder)  # first: a damaged one is found before gigabytes are read
        loaded = load(folder, dtype=DTYPES[dtype] if dtype else None, device=where, overrides=overrides, **placement)
        return engine_of(loaded, tokenizer)

    def plan(self, decoding: Mapping[str, Any]) -> Plan:
        """A preset of the family or of the library; besides its options ``prefix_cache`` and ``guidance`` count."""
        options = dict(decoding)
        seed, cache, guidance = seed_of(options), options.pop("prefix_cache", None), options.pop("guidance", 0.0)
        if cache not in (None, True, False):
            raise OptionError(f"prefix_cache is {cache!r}", remedy="use True, False, or None for what the family does")
        if not isinstance(guidance, int | float) or guidance < 0:
            raise OptionError(f"guidance is {guidance!r}", remedy="use 0 (none) or a positive number")
        recipe = self.family.recipe(self.tokenizer, self.config.logit_size, options.pop("preset", None), restrict=False, **options)
        check_masks(recipe, self.family.name)
        plan = Plan(recipe, seed, cache, float(guidance), recipe.reference_quirks)
        if self.loaded.config.blocks is not None and (cache is False or guidance):
            raise OptionError(f"{self.family.name} works in blocks, always behind their exact cache", remedy="leave prefix_cache and guidance out")
        early = self._cached(plan) or self.loaded.config.blocks is not None
        return plan if early else replace(plan, recipe=recipe.with_parts(first_cell=False))

    def presets(self) -> dict[str, dict[str, Any]]:
        """The library's presets and the family's own, with the options of the engine: ``prefix_cache`` and ``guidance``."""
        known = known_options(UNIFORM if self.family.corruption == "uniform" else PRESETS)
        own = {name: {**known[base], **options} for name, (base, options) in self.family.presets.items()}
        return {name: {**options, "prefix_cache": None, "guidance": 0.0} for name, options in {**known, **own}.items()}

    def _cached(self, plan: Plan) -> bool:
        return self.family.attention == "prefix" if plan.prefix_cache is None else plan.prefix_cache

    def banned(self, plan: Plan, scaffold: Scaffold | None) -> tuple[int, ...]:
        """The recipe's own, ids without a spelling, and unless quirks are wanted control tokens that neither end an answer nor fill a slot."""
        found = {*plan.recipe.banned, *range(self.tokenizer.vocab_size, self.config.logit_size)}
        if not plan.reference_quirks:
            found.update(self.family.banned(self.tokenizer, self.config.logit_size))
        if scaffold is not None:
            found.update(self.stop_ids)
            found.discard(self.symbols.pad)
        return tuple(sorted(found))

    def prompt(self, messages: Messages, plan: Plan) -> Prompt:
        """The prompt of a conversation in the family's format."""
        prompt = self.family.template.build(messages, self.tokenizer)
        quirk = plan.reference_quirks and self.family.lost_after_media
        return prompt.without_first_after_media() if quirk else prompt

    def extraction(self, scaffold: Scaffold) -> str:
        """The shape of the JSON that is wanted, in words."""
        return outline_request(scaffold)

    @torch.inference_mode()
    def see_all(self, images: Sequence[Any]) -> list[Picture]:
        """Features of the RGB images of one prompt."""
        if not images:
            return []
        if not hasattr(self.model, "see"):
            raise PromptError(f"{self.family.name} takes no images", source="prompt", remedy="load a vision-language checkpoint")
        found: list[Picture] = self.model.see(images)
        return found

    def see(self, image: Any) -> Picture:
        """Features of an RGB image that is alone in its prompt."""
        return self.see_all([image])[0]

    def see_each(self, images: Sequence[Any]) -> list[Picture]:
        """Features of RGB images that are alone in their prompts."""
        return [self.see(image) for image in images]

    @torch.inference_mode()
    def denoiser(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Picture]], answer_cells: int, plan: Plan, scaffold: Scaffold | None = None
    ) -> Denoiser:
        """Encode prompts; with guidance the same model behind prompts that say nothing stands beside it."""
        inputs = self.inputs(prompts, pictures, answer_cells)
        denoiser = self._behind(inputs, plan)
        if not plan.guidance:
            return denoiser
        nothing = self.model.backbone.embed(torch.tensor(self.config.mask_token_id, device=inputs.embeds.device)).expand_as(inputs.embeds)
        return GuidedDenoiser(denoiser, self._behind(replace(inputs, embeds=nothing, deep=()), plan), plan.guidance)

    def _behind(self, inputs: Inputs, plan: Plan) -> Denoiser:
        """The backbone behind prompts, by the family's attention rule."""
        blocks = self.loaded.config.blocks
        if blocks is None:
            return BackboneDenoiser.of(self.model.backbone, inputs, "prefix" if self._cached(plan) else "full")
        return BlockDenoiser(self.model.backbone, inputs, blocks)

    def inputs(self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Picture]], answer_cells: int = 0) -> Inputs:
        """What the backbone takes of B prompts; raises ContextLengthError."""
        embeds, valid, positions, start = self.prefix(prompts, pictures, answer_cells)
        depth = max((len(p.deep) for seen in pictures for p in seen), default=0)
        deep = tuple(torch.zeros_like(embeds) for _ in range(depth))
        for i, (prompt, seen) in enumerate(zip(prompts, pictures, strict=True)):
            for span in prompt.lay_out([len(p) for p in seen]).spans:
                for level, feature in zip(deep, seen[span.index].deep, strict=False):
                    level[i, span.start : span.start + span.length] = feature.to(level)
        if positions is None or start is None:
            positions, start = (valid.long().cumsum(1) - 1).clamp_min(0), valid.sum(1)
        return Inputs(embeds, valid, positions, start, deep)

    def prefix(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Picture]], answer_cells: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(embeddings [B, P, D] with the media in their places, valid [B, P], positions, start) of B prompts.

        The last two are None unless the model has a ``positions(layout, pictures) -> ([P, 3], start)`` of its own.

        Raises:
            ContextLengthError: a prompt does not fit.
        """
        layouts = []
        for prompt, seen in zip(prompts, pictures, strict=True):
            layouts.append(lay_out_within(prompt, [len(p) for p in seen], answer_cells, self.config.max_position_embeddings))
        width = max(layout.length for layout in layouts)
        ids = torch.full((len(layouts), width), self.config.pad_token_id)
        valid = torch.zeros(len(layouts), width, dtype=torch.bool)
        for i, layout in enumerate(layouts):
            ids[i, : layout.length] = torch.tensor(layout.ids)
            valid[i, : layout.length] = True
        table = self.model.backbone.token_embed.weight
        embeds = self.model.backbone.embed(ids.clamp_max(len(table) - 1).to(table.device)).clone()
        for i, (layout, seen) in enumerate(zip(layouts, pictures, strict=True)):
            for span in layout.spans:
                embeds[i, span.start : span.start + span.length] = seen[span.index].features.to(embeds)
        return embeds, valid, *self._positions(layouts, pictures, width)

    def _positions(self, layouts: Sequence[PromptLayout], pictures: Sequence[Sequence[Picture]], width: int) -> tuple[Tensor | None, Tensor | None]:
        if not hasattr(self.model, "positions"):
            return None, None
        rows = [self.model.positions(layout, seen) for layout, seen in zip(layouts, pictures, strict=True)]
        positions = torch.zeros(len(rows), width, *rows[0][0].shape[1:], dtype=torch.long)
        for i, (row, _) in enumerate(rows):
            positions[i, : len(row)] = row
        return positions, torch.tensor([int(start) for _, start in rows])

    def locator(self, denoiser: Any, canvas: Canvas, row: int) -> Locator | None:
        """Nothing: these models have no copy head."""
        return None

    def info(self) -> dict[str, Any]:
        """Family, sizes and limits."""
        count = {name: sum(p.numel() for p in part.parameters()) for name, part in self.model.named_children()}
        weight = self.model.backbone.token_embed.weight
        return {
            "family": self.family.name, "parameters": {**count, "total": sum(p.numel() for p in self.model.parameters())},
            "dtype": str(weight.dtype).removeprefix("torch."), "device": str(weight.device), "vocab_size": self.config.vocab_size,
            "context": self.config.max_position_embeddings, "layers": self.config.num_layers, "hidden_size": self.config.hidden_size,
            "default_preset": self.default_preset, "presets": sorted(self.family.presets), "proven": self.family.proven, "notes": list(self.loaded.notes),
        }  # fmt: skip


def engine_of(loaded: Loaded, tokenizer: Tokenizer) -> PublishedEngine:
    """The engine for a loaded checkpoint, by what its family's training corrupts text with."""
    if loaded.family.corruption == "uniform":
        from vlm.gemma import GemmaEngine

        return GemmaEngine(loaded, tokenizer)
    return PublishedEngine(loaded, tokenizer)


def variant_overrides(folder: Path, name: str, variant: str | None) -> dict[str, Any]:
    """Keys that a variant lays over config.json; without a name the end of the checkpoint's name is looked at.

    Raises:
        OptionError: the family has no such variant.
    """
    from vlm.checkpoints.load import read_json
    from vlm.families.registry import find_family

    family = find_family(read_json(folder / "config.json"), str(folder / "config.json"))
    if variant is None:
        tail = name.rstrip("/").lower().replace("low-res", "lowres").replace("_", "-")
        variant = next((known for known in family.variants if tail.endswith(f"-{known}")), None)
    elif variant not in family.variants:
        raise OptionError(f"{family.name} has no variant {variant!r}", remedy=f"known: {', '.join(family.variants) or 'none'}")
    return dict(family.variants[variant]) if variant else {}


def outline_request(scaffold: Scaffold) -> str:
    """What a user says who wants a scaffold filled from a picture."""
    return f"Read the image and answer with one JSON object of this form, null for what it does not show:\n{outline(scaffold)}"


def outline(scaffold: Scaffold) -> str:
    """A scaffold as text, its slots as what may stand in them."""
    text, cell = "", 0
    for slot in scaffold.slots:
        text += scaffold.tokenizer.decode(scaffold.ids[cell : slot.start]) + f"<{_wanted(slot.field, slot.kind)}>"
        cell = slot.start + slot.budget
    return text + scaffold.tokenizer.decode(scaffold.ids[cell:])


def _wanted(field: Any, kind: str) -> str:
    if isinstance(field, ChoiceField):
        return " | ".join(field.texts)
    return kind
