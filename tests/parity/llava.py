"""How the cases of the LLaVA kind are run (LaViDa, LLaDA-V): prompts, merged embeddings, logits, caches, generations.

A family's handler module says how the arguments of its sampler become one of our recipes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.rope import apply_rope, rope_table
from tests.parity.cases import Case, Checks
from tests.parity.common import Recorded, RecordedNoise, record, shifted
from tests.parity.handlers import Handler
from tests.parity.llava_driver import IMAGE, bare, engine_of, ids_of_prompt, literal, merged, plain, turns_of
from tests.parity.llava_training import Trainer
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser
from vlm.decoding.loop import Recipe
from vlm.decoding.quotas import linear_table, shaped_table
from vlm.engine import Plan
from vlm.published import PublishedEngine


def check_prompt(case: Case, checks: Checks) -> None:
    """Ids of inference with the reference's loss behind pictures, of a plain request, and the merged embeddings."""
    engine, marker = engine_of(case), case.fixture.meta["image_token_index"]
    template, tokenizer = engine.family.template, engine.tokenizer
    turns = turns_of(case.data["text"], template)
    prompt = bare(template).build(literal(turns), tokenizer)
    theirs = prompt.without_first_after_media() if engine.family.lost_after_media else prompt
    checks.equal("ids", ids_of_prompt(theirs, marker), case.input("input_ids").flatten().tolist())
    if all(content.count(IMAGE) < 2 for _, content in turns):  # how several pictures are joined is the caller's business there
        own = [turn for turn in turns if turn[1] != template.default_system]
        asked = template.build(plain(own), tokenizer)
        checks.equal("as asked", ids_of_prompt(asked, marker), ids_of_prompt(prompt, marker))
    if "first_token_after_image_dropped" in case.data:
        checks.equal("dropped", ids_of_prompt(theirs, marker) != ids_of_prompt(prompt, marker), case.data["first_token_after_image_dropped"])
    if "merged_embeds" not in case.data.get("tensors", {}):
        return
    _, seen, embeds = merged(case, engine)
    checks.close("merged_embeds", embeds, case.tensor("merged_embeds"))
    checks.equal("merged_length", embeds.shape[1], case.data["merged_length"])
    if "visual_tokens_per_image" in case.data:
        checks.equal("tokens", [len(p) for p in seen], case.data["visual_tokens_per_image"])
    if "num_visual_tokens" in case.data:
        checks.equal("tokens", [len(p) for p in seen], [case.data["num_visual_tokens"]])


@torch.no_grad()
def forward(engine: PublishedEngine, embeds: Tensor, canvas: Tensor) -> Tensor:
    """Raw logits [B, P + L, V] of prompt embeddings [1, P, D] and canvases [B, L] under full attention."""
    backbone = engine.model.backbone
    both = torch.cat((embeds.expand(len(canvas), -1, -1), backbone.embed(canvas)), dim=1)
    positions = torch.arange(both.shape[1]).expand(len(both), -1)
    return backbone.logits(backbone(both, positions, torch.ones_like(positions, dtype=torch.bool)))


def canvas_of(engine: PublishedEngine, ids: Tensor) -> Canvas:
    """Ids [B, L] as a canvas, masks open."""
    rows = [[None if token == engine.config.mask_token_id else token for token in row] for row in ids.tolist()]
    return Canvas.from_rows(rows, mask_id=engine.config.mask_token_id, pad_id=engine.config.pad_token_id)


def check_logits(case: Case, checks: Checks) -> None:
    """Raw logits of the whole sequence under full attention, and the denoiser's aligned ones."""
    engine = engine_of(case)
    prompt, seen, embeds = merged(case, engine)
    steps = [name for name in case.data["inputs"] if name != "input_ids"]
    for name in steps:
        canvas = case.input(name)
        logits = forward(engine, embeds, canvas)
        length, suffix = embeds.shape[1], "" if len(steps) == 1 else f"_{name}"
        checks.close(f"answer{suffix}", logits[:, length:], case.tensor(f"answer{suffix}"))
        for sampled in [t for t in case.data["tensors"] if t.startswith("prompt") and t.endswith(suffix)]:
            every = re.search(r"every_(\d+)th", sampled)
            places = torch.arange(0, length, int(every[1])) if every else torch.tensor(case.data["sampled_positions"])
            checks.close(sampled, logits[:, places], case.tensor(sampled))
        plan = Plan(Recipe(), prefix_cache=False)
        denoiser = engine.denoiser([prompt] * len(canvas), [seen] * len(canvas), canvas.shape[1], plan)
        everywhere = torch.ones_like(canvas, dtype=torch.bool)
        aligned = denoiser(canvas_of(engine, canvas), everywhere).logits.view(*canvas.shape, -1)
        theirs = shifted(logits) if engine.config.logit_shift else logits
        checks.close(f"denoiser{suffix}", aligned, theirs[:, length:])
    half = engine_of(case, torch.bfloat16)
    logits = forward(half, merged(case, half)[2], case.input(steps[-1]))[:, length:]
    checks.top1("bf16 top-1", logits, case.tensor(f"answer{suffix}"))


@torch.no_grad()
def check_prefix(case: Case, checks: Checks) -> None:
    """Keys and values of the prompt alone, and answers against them."""
    engine = engine_of(case)
    prompt, seen, embeds = merged(case, engine)
    backbone, places = engine.model.backbone, torch.tensor(case.data["sampled_positions"])
    positions = torch.arange(embeds.shape[1]).unsqueeze(0)
    cache = backbone.prefill(embeds, positions, torch.ones_like(positions, dtype=torch.bool))
    prefill = backbone.logits(cache.hidden)
    checks.close("prefill_last_position_logits", prefill[:, -1], case.tensor("prefill_last_position_logits"))
    checks.close("prefill_sampled_logits", prefill[:, places], case.tensor("prefill_sampled_logits"))
    keys = case.tensor("last_layer_key_sampled")
    if case.data["cached_keys"].startswith("un-rotated"):  # ours are stored rotated
        config = engine.config
        keys = apply_rope(keys, rope_table(places.unsqueeze(0), config.width_per_head, config.rope_theta), config.rope_fp32)
    checks.close("keys", cache.keys[-1][:, :, places], keys)
    checks.close("values", cache.values[-1][:, :, places], case.tensor("last_layer_value_sampled"))
    if case.data["first_answer_token_from_prefill"] is not None:
        checks.equal("first token", int(prefill[0, -1].argmax()), case.data["first_answer_token_from_prefill"])
    denoiser = engine.denoiser([prompt], [seen], case.input("step1").shape[1], Plan(Recipe(), prefix_cache=True))
    for name in ("step1", "step2"):
        canvas = case.input(name)
        ahead = torch.arange(embeds.shape[1], embeds.shape[1] + canvas.shape[1]).unsqueeze(0)
        raw = backbone.logits(backbone(backbone.embed(canvas), ahead, torch.ones_like(canvas, dtype=torch.bool), cache=cache))
        checks.close(f"logits_{name}", raw, case.tensor(f"logits_{name}"))
        aligned = denoiser(canvas_of(engine, canvas), torch.ones_like(canvas, dtype=torch.bool)).logits.unsqueeze(0)
        theirs = torch.cat((prefill[:, -1:], raw[:, :-1]), dim=1) if engine.config.logit_shift else raw
        checks.close(f"denoiser_{name}", aligned, theirs)


@dataclass(frozen=True)
class Sampler:
    """How a reference's sampler is run with our parts.

    Attributes:
        recipe: (case, settings) -> recipe. length: its argument for the number of answer cells. cached: whether the
            settings ask for the prefix cache. scores: whether confidences are comparable.
    """

    recipe: Callable[[Case, dict[str, Any]], Recipe]
    length: str
    cached: Callable[[dict[str, Any]], bool]
    scores: Callable[[dict[str, Any]], bool] = lambda _: True

    def __call__(self, case: Case, checks: Checks) -> None:
        """Canvas by canvas, count by count, and the confidences."""
        engine, settings = engine_of(case), case.settings()
        prompt, seen, _ = merged(case, engine)
        canvas = self.canvas(case, engine, settings)
        plan = Plan(self.recipe(case, settings), prefix_cache=self.cached(settings), guidance=float(settings.get("cfg_scale") or 0.0))
        denoiser: Denoiser = engine.denoiser([prompt], [seen], canvas.ids.shape[1], plan)
        draws = [case.input(name) for name in case.data["inputs"] if name.startswith("uniform_step")]
        run = record(denoiser, canvas, plan.recipe, RecordedNoise({"commit": draws}) if draws else None)
        check_history(case, checks, run, scores=self.scores(settings))

    def canvas(self, case: Case, engine: PublishedEngine, settings: dict[str, Any]) -> Canvas:
        """Masks, with the draft, the pinned cells and the suffix of the case in their places."""
        mask = engine.config.mask_token_id
        row: list[int | None] = [None] * settings[self.length]
        if case.has_input("draft_tokens"):
            draft = case.input("draft_tokens").flatten().tolist()
            row[: len(draft)] = [None if token == mask else token for token in draft]
        for place, token in (settings.get("pinned_answer_positions") or {}).items():
            row[int(place)] = token
        row += case.data.get("suffix_ids") or []
        return Canvas.from_rows([row], mask_id=mask, pad_id=engine.config.pad_token_id)


def check_history(case: Case, checks: Checks, run: Recorded, *, scores: bool) -> None:
    """A run of one row against its record; what lies behind a stop is cut off at the end, as the reference does."""
    ours, theirs = run.history[:, 0], case.tensor("history")
    checks.equal("history", ours, theirs)
    checks.equal("final", ours[-1][: cut(ours[-1].tolist(), case)], case.tensor("final")[0])
    checks.equal("steps", len(ours), case.data["steps_run"])
    if scores and ours.shape == theirs.shape:
        checks.close("confidence", run.score[:, 0], case.tensor("confidence"))


def cut(ids: list[int], case: Case) -> int:
    """Where the first stop of the case begins, the length without one."""
    stops = case.data.get("stop_token_ids") or []
    starts = [i for run in stops for i in range(len(ids)) if ids[i : i + len(run)] == run]
    return min(starts, default=len(ids))


def shape_of(settings: dict[str, Any]) -> tuple[str, float]:
    """(shape, shift) of a LaViDa schedule; names it does not know are linear."""
    name = settings.get("schedule")
    shape = "even" if name is None else name if name in ("shift", "cosine", "logit_normal") else "linear"
    return shape, float((settings.get("schedule_kwargs") or {}).get("shift", 3.0))


def check_schedules(case: Case, checks: Checks) -> None:
    """Tables of tokens per step."""
    ours = []
    for table in case.data["tables"]:
        masks, steps = table["masks"], table["steps"]
        shape, shift = shape_of(table)
        ours.append(linear_table(masks, steps) if shape == "even" else shaped_table(masks, steps, shape, shift))
    checks.equal(f"{len(ours)} tables", ours, [table["counts"] for table in case.data["tables"]])


def handlers(generation: Sampler, training: Trainer) -> dict[str, Handler]:
    """Handlers by kind of case, besides those of the vision cases."""

    def prompt(case: Case, checks: Checks) -> None:
        (training.check_prompt if "conversation" in case.data else check_prompt)(case, checks)

    return {"training": training, "prompt": prompt, "logits": check_logits, "prefix_cache": check_prefix, "generation": generation, "schedule_tables": check_schedules}
