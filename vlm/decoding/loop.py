"""The one decoding loop: window, forward, proposal, score, quota, commit, revision, length, stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.commits import ThresholdElseQuota
from vlm.decoding.contracts import (
    CommitRule,
    Denoiser,
    JointProposer,
    LengthController,
    LogitTransform,
    Noise,
    Prediction,
    Proposer,
    Quota,
    Reviser,
    Scorer,
    Step,
    StopRule,
    Window,
)
from vlm.decoding.initializers import commit_first_cell, commit_known
from vlm.decoding.proposers import Ban, SampleProposer
from vlm.decoding.quotas import DimpleQuota
from vlm.decoding.scorers import ConfidenceScorer
from vlm.decoding.stops import Never
from vlm.decoding.windows import FullWindow
from vlm.errors import DecodingError


@dataclass(frozen=True)
class Recipe:
    """A decoding method as a combination of parts; the default is Dimple's threshold-else-quota.

    Attributes:
        banned: ids that can never come out, besides the mask id.
        max_forwards: model calls allowed; the last one commits everything that is open.
        reference_quirks: reproduce released code to the letter: the mask token may be proposed (and leaves its cell open), and
            steps may commit nothing.
        pooled: the open cells of all rows compete for one quota and one guarantee, as in Dream's and Dimple's released code;
            rows then depend on each other. For comparison only.
        first_cell: commit the first cell from the prompt alone before the loop (LaViDa-Dream behind a prefix cache), or the first
            cell of every block from what stands before it (Fast-dLLM v2). Not in scaffolds, whose cells must fit together.
        transforms: further links of the logit chain; joint: proposer of scaffold slots.
        driver: another outer loop than that over masks, for models of another kind of noise (:class:`vlm.decoding.uniform.Renoise`).
    """

    window: Window = field(default_factory=FullWindow)
    proposer: Proposer = field(default_factory=SampleProposer)
    scorer: Scorer = field(default_factory=ConfidenceScorer)
    quota: Quota | None = field(default_factory=DimpleQuota)
    commit: CommitRule = field(default_factory=ThresholdElseQuota)
    reviser: Reviser | None = None
    length: LengthController | None = None
    stop: StopRule = field(default_factory=Never)
    banned: tuple[int, ...] = ()
    max_forwards: int | None = None
    reference_quirks: bool = False
    pooled: bool = False
    first_cell: bool = False
    transforms: tuple[LogitTransform, ...] = ()
    joint: JointProposer | None = None
    driver: Driver | None = None

    def with_parts(self, **parts: object) -> Recipe:
        """The same recipe with some parts exchanged."""
        return replace(self, **parts)  # type: ignore[arg-type]


class Driver(Protocol):
    """An outer loop."""

    def __call__(self, denoiser: Denoiser, canvas: Canvas, recipe: Recipe, noise: Noise) -> Iterator[Frame]:
        """Fill the canvas in place, yielding a frame per step."""
        ...


@dataclass
class Frame:
    """What a step left behind.

    Attributes:
        step: number of the step, from 1; 0 is the canvas before the first.
        ids: [B, L]; state: [B, L] uint8 of GIVEN, MASK, NEW, KEPT, REMASKED; confidence: [B, L] score at commit, 0 before.
        forwards: [B] model calls so far.
    """

    step: int
    ids: Tensor
    state: Tensor
    confidence: Tensor
    forwards: Tensor

    @classmethod
    def of(cls, canvas: Canvas, step: int, before: Tensor) -> Frame:
        """The canvas as it stands; `before` [B, L] are the cells that were masked before the step."""
        return cls(step, canvas.ids.clone(), canvas.states(before), canvas.commit_confidence.clone(), canvas.forwards.clone())


def decode(denoiser: Denoiser, canvas: Canvas, recipe: Recipe, *, seed: int | Sequence[int] = 0, noise: Noise | None = None) -> Iterator[Frame]:
    """Fill the canvas in place, yielding a frame per step.

    Args:
        denoiser: the model behind its prefix.
        canvas: changed in place; what is frozen stays.
        recipe: the method.
        seed: of all random draws, one or one for each row; rows draw independently, so a batch equals its rows alone.
        noise: replaces the seeded generators (recorded draws in tests).

    Raises:
        DecodingError: a part breaks its contract (it names which).
    """
    noise = noise or Noise(seed, canvas.ids.shape[0])
    if recipe.driver is not None:
        yield from recipe.driver(denoiser, canvas, recipe, noise)
        return
    early = recipe.first_cell and recipe.joint is None
    foresees = hasattr(denoiser, "ahead")
    if early and not foresees:
        commit_first_cell(denoiser, canvas, recipe.banned)
    window = _window(denoiser, recipe).start(canvas)
    shared = canvas.pooled() if recipe.pooled else canvas
    quota = recipe.quota.start(shared) if recipe.quota else None
    commit = recipe.commit.start(shared)
    ban = Ban(tuple(sorted({*recipe.banned, *([] if recipe.reference_quirks else [canvas.mask_id])})))
    number = 0
    while True:
        cells = window.cells(canvas)
        if early and foresees and commit_known(denoiser, canvas, cells, recipe.banned):  # type: ignore[arg-type]
            recipe.stop(canvas)
            cells = window.cells(canvas)
        busy = cells.any(dim=1)
        if not bool(busy.any()):
            return
        number += 1
        before = canvas.masked.clone()
        step, prediction = _look(denoiser, canvas, cells, ban, recipe, noise)
        canvas.forwards += busy
        canvas.step += busy
        chosen = _choose(step, window, quota, commit, recipe, last=recipe.max_forwards is not None and number >= recipe.max_forwards)
        if recipe.reference_quirks:
            # released code writes the mask token where it is proposed, so the cell stays as it is; nothing else can come then
            kept = chosen & (step.proposal != canvas.mask_id)
            if bool(chosen.any()) and not bool(kept.any()):
                return
            chosen = kept
        _commit(canvas, step, prediction, chosen)
        if recipe.reviser is not None:
            recipe.reviser(canvas)
        if recipe.length is not None:
            canvas = recipe.length(canvas)
        recipe.stop(canvas)
        yield Frame.of(canvas, number, before)


def _window(denoiser: Denoiser, recipe: Recipe) -> Window:
    """The recipe's window; models that are causal over blocks have their own say (:class:`vlm.decoding.blocks.BlockDenoiser`)."""
    say = getattr(denoiser, "window", None)
    return recipe.window if say is None else say(recipe.window)


def _look(denoiser: Denoiser, canvas: Canvas, cells: Tensor, ban: Ban, recipe: Recipe, noise: Noise) -> tuple[Step, Prediction]:
    """Forward, constrain, propose and score."""
    prediction = denoiser(canvas, cells)
    row, column = cells.nonzero(as_tuple=True)
    if prediction.logits.shape[0] != len(row):
        raise DecodingError(f"the denoiser gave {prediction.logits.shape[0]} rows of logits for {len(row)} cells")
    logits = ban(canvas, cells, prediction.logits)
    for transform in recipe.transforms:
        logits = transform(canvas, cells, logits)
    step = Step(canvas, cells, row, column, logits, noise)
    joint = recipe.joint.propose(canvas, cells, logits) if recipe.joint is not None else None
    if joint is not None:
        step.proposal, step.score, step.filtered = joint[0], joint[1], logits
    else:
        step.proposal, step.filtered = recipe.proposer(step)
        step.score = recipe.scorer(step)
    return step, prediction


def _commit(canvas: Canvas, step: Step, prediction: Prediction, chosen: Tensor) -> None:
    """Write the chosen proposals ([N] bool) with their scores and copy sources."""
    picked = torch.zeros_like(step.cells)
    picked[step.cells] = chosen
    source, weight = prediction.source, prediction.source_weight
    if source is None or weight is None:
        canvas.commit(picked, step.proposal[chosen], step.score[chosen])
    else:
        canvas.commit(picked, step.proposal[chosen], step.score[chosen], source[chosen], weight[chosen])


def _choose(step: Step, window: Window, quota: Quota | None, commit: CommitRule, recipe: Recipe, last: bool) -> Tensor:
    """[N] cells to commit, at least one in every row that has any."""
    number = window.number(step.canvas)
    if recipe.pooled:
        step, number = step.pooled(), number[:1]
    if quota is not None:
        step.quota = quota(step, number)
    chosen = commit(step)
    if last:
        return torch.ones_like(chosen)
    if recipe.reference_quirks:
        return chosen
    rows = step.cells.shape[0]
    some = torch.zeros(rows, dtype=torch.bool).index_put((step.row,), chosen, accumulate=True)
    if bool(some[step.row].all()):
        return chosen
    dense = torch.full(step.cells.shape, float("-inf"), dtype=torch.float64)
    dense[step.cells] = step.score.double().nan_to_num(nan=-1e300)
    best = dense.argmax(dim=1)
    return chosen | (~some[step.row] & (step.column == best[step.row]))


def run(denoiser: Denoiser, canvas: Canvas, recipe: Recipe, *, seed: int | Sequence[int] = 0, noise: Noise | None = None) -> Canvas:
    """Decode to the end; returns the canvas."""
    for _ in decode(denoiser, canvas, recipe, seed=seed, noise=noise):
        pass
    return canvas
