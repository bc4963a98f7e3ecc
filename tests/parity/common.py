"""What the handlers of several families share: forwards over rows, recorded runs, recorded noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks
from vlm.backbone.model import DiffusionBackbone
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser, Noise, Scorer, Step
from vlm.decoding.loop import Recipe, decode


@torch.no_grad()
def logits_of(backbone: DiffusionBackbone, ids: Tensor, valid: Tensor | None = None, **rule: Any) -> Tensor:
    """Raw logits [B, T, V] of ids [B, T] in one pass, positions counted over valid cells."""
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid.bool()
    positions = (valid.long().cumsum(1) - 1).clamp_min(0)
    return backbone.logits(backbone(backbone.embed(ids), positions, valid, **rule))


def shifted(logits: Tensor) -> Tensor:
    """Logits that speak of their own cell: the row before, the first row twice."""
    return torch.cat((logits[:, :1], logits[:, :-1]), dim=1)


def check_hidden(case: Case, checks: Checks, backbone: DiffusionBackbone, ids: Tensor, every: int = 3) -> None:
    """Inputs of the blocks and the final hidden states, at every third position, where the case has them."""
    taps: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, args: taps.append(args[0])) for block in backbone.blocks]
    with torch.no_grad():
        taps.append(backbone(backbone.embed(ids), torch.arange(ids.shape[1]).unsqueeze(0), torch.ones_like(ids, dtype=torch.bool)))
    for handle in handles:
        handle.remove()
    for i, tap in enumerate(taps):
        if f"hidden_{i}" in case.data["tensors"]:
            checks.close(f"hidden_{i}", tap[:, ::every], case.tensor(f"hidden_{i}"))


def check_prefix_cache(checks: Checks, backbone: DiffusionBackbone, ids: Tensor, prompt: int) -> None:
    """The exact prefix cache against the same rule in one pass."""
    valid = torch.ones_like(ids, dtype=torch.bool)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    embeds = backbone.embed(ids)
    with torch.no_grad():
        whole = backbone(embeds, positions, valid, prefix_lengths=torch.full((len(ids),), prompt))
        cache = backbone.prefill(embeds[:, :prompt], positions[:, :prompt], valid[:, :prompt])
        cached = backbone(embeds[:, prompt:], positions[:, prompt:], valid[:, prompt:], cache=cache)
        checks.close("cached", backbone.logits(cached), backbone.logits(whole[:, prompt:]))


@dataclass
class Recorded:
    """A recorded run.

    Attributes:
        history: [T, B, L] canvas after each step. score: [T, B, L] of every cell under decoding, -inf elsewhere.
    """

    history: Tensor
    score: Tensor


@dataclass
class _Watch:
    """A scorer that keeps what it gave."""

    scorer: Scorer
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, step: Step) -> Tensor:
        score = self.scorer(step)
        dense = torch.full(step.cells.shape, float("-inf"))
        dense[step.cells] = score.float()
        self.seen.append(dense)
        return score


def record(denoiser: Denoiser, canvas: Canvas, recipe: Recipe, noise: Noise | None = None) -> Recorded:
    """Run a recipe, keeping the canvas and the scores of every step."""
    watch = _Watch(recipe.scorer)
    frames = [frame.ids for frame in decode(denoiser, canvas, recipe.with_parts(scorer=watch), noise=noise)]
    return Recorded(torch.stack(frames), torch.stack(watch.seen))


class RecordedNoise(Noise):
    """Uniforms that a reference drew: for each purpose, one tensor per step, [N] or [B, L] or [B, L, V]."""

    def __init__(self, draws: Mapping[str, list[Tensor]]) -> None:
        self.draws = {purpose: list(tensors) for purpose, tensors in draws.items()}

    def uniform(self, purpose: str, step: Step, width: int = 0) -> Tensor:
        drawn = self.draws[purpose].pop(0)
        if drawn.shape[:2] == step.cells.shape and drawn.ndim >= 2:
            drawn = drawn[step.cells]
        return drawn[: len(step.row)].double()


def check_run(case: Case, checks: Checks, run: Recorded, *, scores: bool = True) -> None:
    """Canvas by canvas, count by count, and the confidences."""
    history = case.tensor("history")
    checks.equal("history", run.history, history)
    checks.equal("final", run.history[-1], case.tensor("final"))
    if run.history.shape != history.shape:
        return
    if scores:
        checks.close("confidence", run.score, case.tensor("confidence"))
    checks.equal("steps", len(run.history), case.data["steps_run"])


def check_prompt(case: Case, checks: Checks) -> None:
    """Chat template and ids; the template's spelling too, where the case has it."""
    loaded, tokenizer = case.fixture.model(), case.fixture.tokenizer
    prompt = loaded.family.template.build(case.data["messages"], tokenizer)
    ids = prompt.lay_out([]).ids
    checks.equal("ids", [ids], case.input("input_ids"))
    if "text" in case.data:
        checks.equal("text", tokenizer.decode(ids, specials=True), case.data["text"])
