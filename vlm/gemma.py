"""The engine of DiffusionGemma: uniform noise instead of masks, the rest as for every published checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vlm.checkpoints.load import Loaded
from vlm.decoding.gemma import GemmaDenoiser
from vlm.decoding.uniform import Renoise
from vlm.engine import Plan, seed_of
from vlm.errors import OptionError
from vlm.families.diffusion_gemma import NO_THOUGHT
from vlm.families.family import Picture
from vlm.processor.messages import Messages
from vlm.processor.prompt import Prompt, lay_out_within
from vlm.processor.tokenizer import Tokenizer
from vlm.published import PublishedEngine
from vlm.structure.scaffold import Scaffold

#: Keys of generation_config.json that the checkpoint's own defaults come from -> options of the preset.
GENERATION = {
    "max_denoising_steps": "steps", "entropy_bound": "entropy_bound", "t_min": "t_min", "t_max": "t_max", "stability_threshold": "stability",
    "confidence_threshold": "confidence",
}  # fmt: skip


class GemmaEngine(PublishedEngine):
    """Prompts, pictures and denoisers of a loaded DiffusionGemma.

    Canvases have the length of config.json: an answer of fewer cells is cut out of one, and behind a scaffold stands the end
    of the turn.
    """

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer) -> None:
        super().__init__(loaded, tokenizer)
        eos = loaded.generation.get("eos_token_id")
        named = eos if isinstance(eos, list) else [eos]
        self.stop_ids = tuple(dict.fromkeys((*self.stop_ids, *(int(i) for i in named if i in tokenizer.control_ids))))
        self.canvas_length: int = self.model.module.config.canvas_length
        template = self.family.template
        self.template = replace(template, answer=(*template.answer, *NO_THOUGHT)) if self._thinks() else template

    def _thinks(self) -> bool:
        """Whether the chat template beside the weights opens answers with an empty thought."""
        path = self.loaded.folder / "chat_template.jinja"
        return path.is_file() and "<|channel>thought\\n<channel|>" in path.read_text(encoding="utf-8")

    def plan(self, decoding: Mapping[str, Any]) -> Plan:
        """The preset with the defaults of the checkpoint's generation_config.json."""
        options = dict(decoding)
        seed = seed_of(options)
        for name in ("prefix_cache", "guidance"):
            if options.pop(name, None):
                raise OptionError(f"{self.family.name} always works behind its exact prefix, and without guidance", remedy=f"leave {name} out")
        name = options.pop("preset", None) or self.default_preset
        if name in self.family.presets:
            options = {**self._defaults(), **options}
        recipe = self.family.recipe(self.tokenizer, self.config.logit_size, name, restrict=False, **options)
        if not isinstance(recipe.driver, Renoise):
            raise OptionError(f"{self.family.name} works on uniform noise, and preset {name!r} on masks", remedy="use preset 'entropy-bound'")
        tail = (self.stop_ids[0] if self.stop_ids else self.symbols.pad, self.symbols.pad)
        return Plan(recipe.with_parts(driver=replace(recipe.driver, tail=tail)), seed, reference_quirks=recipe.reference_quirks)

    def _defaults(self) -> dict[str, Any]:
        """Options of the preset that the checkpoint's own generation_config.json sets."""
        stored = {**self.loaded.generation, **(self.loaded.generation.get("sampler_config") or {})}
        return {option: stored[key] for key, option in GENERATION.items() if stored.get(key) is not None}

    def prompt(self, messages: Messages, plan: Plan) -> Prompt:
        """The prompt of a conversation."""
        return self.template.build(messages, self.tokenizer)

    @torch.inference_mode()
    def denoiser(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Picture]], answer_cells: int, plan: Plan, scaffold: Scaffold | None = None
    ) -> GemmaDenoiser:
        """Encode prompts, padded on the left; raises ContextLengthError."""
        cells = -(-answer_cells // self.canvas_length) * self.canvas_length
        layouts = []
        for prompt, seen in zip(prompts, pictures, strict=True):
            layouts.append(lay_out_within(prompt, [len(p) for p in seen], cells, self.config.max_position_embeddings))
        width = max(layout.length for layout in layouts)
        ids = torch.full((len(layouts), width), self.config.pad_token_id)
        valid = torch.zeros(len(layouts), width, dtype=torch.bool)
        media = torch.zeros_like(valid)
        for i, layout in enumerate(layouts):
            ids[i, width - layout.length :], valid[i, width - layout.length :] = torch.tensor(layout.ids), True
        table = self.model.module.model.encoder.get_input_embeddings()
        embeds = table(ids.to(table.weight.device)).clone()
        for i, (layout, seen) in enumerate(zip(layouts, pictures, strict=True)):
            for span in layout.spans:
                place = slice(width - layout.length + span.start, width - layout.length + span.start + span.length)
                embeds[i, place], media[i, place] = seen[span.index].features.to(embeds), True
        return GemmaDenoiser(self.model.module, embeds, valid, media)

    def info(self) -> dict[str, Any]:
        """Family, sizes and limits."""
        module, text = self.model.module, self.model.module.config.text_config
        count = {"vision": sum(p.numel() for p in module.model.encoder.vision_tower.parameters()), "total": sum(p.numel() for p in module.parameters())}
        return {
            "family": self.family.name, "parameters": count, "dtype": str(module.dtype).removeprefix("torch."), "device": str(module.device),
            "vocab_size": text.vocab_size, "context": text.max_position_embeddings, "layers": text.num_hidden_layers, "hidden_size": text.hidden_size,
            "experts": text.num_experts, "canvas_length": self.canvas_length, "default_preset": self.default_preset, "presets": sorted(self.family.presets),
            "proven": self.family.proven, "notes": list(self.loaded.notes),
        }  # fmt: skip
