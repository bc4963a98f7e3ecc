"""Diffusion over uniform noise: models whose canvas starts as random tokens and which know no mask (DiffusionGemma).

Canvases of one length are written from left to right. In each step the model predicts every cell; the surest cells take a
draw from their prediction, all others take new random tokens, also those that were sure before. What the canvas is in the
end is the most probable token of each cell in the last step. Cells that are given stand in every canvas the model sees, and
their prediction is certain: so a scaffold holds, which the published loop does not let it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vlm.decoding.canvas import KEPT, NEW, Canvas
from vlm.decoding.contracts import Noise, Step
from vlm.decoding.loop import Frame, Recipe
from vlm.decoding.stops import EndOfText
from vlm.errors import DecodingError, OptionError

#: Cells whose distributions are summed up at a time: in float64 a canvas of 256 over 262144 tokens would take half a gigabyte.
SLICE = 32


@runtime_checkable
class NoiseDenoiser(Protocol):
    """A model of uniform noise behind B prompts.

    Attributes:
        vocab_size: V. canvas_length: C, cells of a canvas.
    """

    vocab_size: int
    canvas_length: int

    def step(self, ids: Tensor, guess: Tensor | None, rows: Tensor) -> Tensor:
        """Logits [n, C, V] float32, on the model's device, of the canvases ids [n, C] of the given rows; one forward.

        Args:
            guess: [n, C, V] processed logits of the step before (self-conditioning); None in the first step of a canvas.
        """
        ...

    def advance(self, ids: Tensor, rows: Tensor) -> None:
        """Take the finished canvases ids [n, C] of the given rows into the prefix; other rows are not asked for any more."""
        ...


@dataclass(frozen=True)
class EntropyBound:
    """The surest cells of a row, as long as the entropies before the last of them sum to at most `bound` nats (arXiv:2505.24857).

    The sum bounds what these cells know of each other, so that they may be drawn independently.
    """

    bound: float = 0.1

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise OptionError(f"entropy_bound is {self.bound}", remedy="use a positive number of nats")

    def __call__(self, entropy: Tensor) -> Tensor:
        """[n, C] accepted cells, of entropies [n, C] in nats; always the surest of each row."""
        ordered, index = entropy.sort(dim=-1)
        chosen = ordered.cumsum(dim=-1) - ordered <= self.bound
        return torch.zeros_like(chosen).scatter(-1, index, chosen)


@dataclass(frozen=True)
class Cooling:
    """A temperature that falls from `high` towards `low` over `steps` steps: low + (high - low) n / steps with n steps left."""

    low: float = 0.4
    high: float = 0.8
    steps: int = 48

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise OptionError(f"temperatures go from {self.high} to {self.low}", remedy="use t_max > t_min >= 0")
        if self.steps < 1:
            raise OptionError(f"steps is {self.steps}", remedy="use 1 or more")

    def __call__(self, left: int) -> float:
        """What logits are divided by with `left` steps to go, this one counted."""
        return self.low + (self.high - self.low) * (left / self.steps)


@dataclass
class Settled:
    """A row is done when its best tokens were the same in the `stability` steps before and the mean entropy is below `confidence`.

    Attributes:
        stability: steps; 0 looks at the entropy alone. confidence: nats per cell.
    """

    stability: int = 1
    confidence: float = 0.005
    _before: list[Tensor] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.stability < 0:
            raise OptionError(f"stability is {self.stability}", remedy="use 0 or more steps")
        if not self.confidence > 0:
            raise OptionError(f"confidence is {self.confidence}", remedy="use a positive number of nats, or None to run all steps")

    def start(self) -> Settled:
        """A copy that has seen nothing."""
        return replace(self, _before=[])

    def __call__(self, best: Tensor, entropy: Tensor) -> Tensor:
        """[B] rows that are done; `best` [B, C] ids, `entropy` [B, C] in nats. Called once a step."""
        known = len(self._before) >= self.stability
        same = torch.full((len(best),), known, dtype=torch.bool, device=best.device)
        for ids in self._before[len(self._before) - self.stability :] if self.stability and known else ():
            same &= (ids == best).all(dim=1)
        self._before = [*self._before, best.clone()][-self.stability :] if self.stability else []
        return same & (entropy.mean(dim=1).to(best.device) < self.confidence)


@dataclass(frozen=True)
class Candidates:
    """Proposes a draw from each cell's distribution as it stands, by inverting its cumulative sum in float64."""

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        """(ids [N], logits [N, V])."""
        uniform = step.noise.uniform("token", step)
        drawn = []
        for logits, u in zip(step.logits.split(SLICE), uniform.split(SLICE), strict=True):
            cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
            below = torch.searchsorted(cumulative, u.to(cumulative.device).unsqueeze(-1) * cumulative[:, -1:])
            drawn.append(below.squeeze(-1).clamp_max(logits.shape[-1] - 1))
        return torch.cat(drawn), step.logits


def entropies(logits: Tensor) -> Tensor:
    """Entropy in nats over the last axis; -inf is impossible."""
    log = torch.log_softmax(logits, dim=-1)
    return -(log.exp() * log.clamp_min(torch.finfo(log.dtype).min)).sum(dim=-1)


@dataclass
class _Block:
    """The canvas under work: B rows of C cells, of which the first `width` lie on the answer.

    Attributes:
        first: column of its first cell in the answer. free: [B, C] cells the model fills; given: [B, C] ids of the others.
        ids: [B, C] what the model sees. best: [B, C] most probable tokens; sure: [B, C] their probability.
        accepted: [B, C] cells accepted in the last step. running: [B] rows that are not done.
    """

    first: int
    width: int
    free: Tensor
    given: Tensor
    ids: Tensor
    best: Tensor
    sure: Tensor
    accepted: Tensor
    running: Tensor


@dataclass(frozen=True)
class Renoise:
    """The outer loop (``Recipe.driver``) for models of uniform noise. Of the recipe it takes proposer, transforms, joint, banned,
    stop and reference_quirks.

    Attributes:
        accept, cooling: which cells are accepted, and the temperature; `cooling.steps` are run at most in each canvas.
        settle: ends a row's canvas early; None runs all steps.
        tail: (end, fill) ids that stand behind a scaffold up to the end of its last canvas.
    """

    accept: EntropyBound = EntropyBound()
    cooling: Cooling = Cooling()
    settle: Settled | None = field(default_factory=Settled)
    tail: tuple[int, int] | None = None

    def __call__(self, denoiser: object, canvas: Canvas, recipe: Recipe, noise: Noise) -> Iterator[Frame]:
        """Fill the canvas in place, yielding a frame per step; open cells that were not accepted show as masks."""
        if not isinstance(denoiser, NoiseDenoiser):
            raise DecodingError("this method works on uniform noise, and the model has masks", remedy="use another preset")
        number, size, length = 0, denoiser.canvas_length, canvas.ids.shape[1]
        done: Tensor | None = None  # the canvas before
        for first in range(0, length, size):
            left = canvas.open[:, first:].any(dim=1)
            if not bool(left.any()):
                return
            if done is not None:
                rows = left.nonzero(as_tuple=True)[0]
                denoiser.advance(done[rows], rows)
                canvas.forwards += left
            block = self._begin(denoiser, canvas, recipe, noise, first)
            for frame in self._steps(denoiser, canvas, recipe, noise, block):
                number += 1
                yield replace(frame, step=number)
            done = torch.where(block.free, block.best, block.given)
            done[:, : block.width] = canvas.ids[:, first : first + block.width]

    def _begin(self, denoiser: NoiseDenoiser, canvas: Canvas, recipe: Recipe, noise: Noise, first: int) -> _Block:
        """A canvas of random tokens with what is given in its places."""
        rows, size = canvas.ids.shape[0], denoiser.canvas_length
        width = min(size, canvas.ids.shape[1] - first)
        view = slice(first, first + width)
        free = torch.ones(rows, size, dtype=torch.bool)
        given = torch.full((rows, size), canvas.pad_id)
        free[:, :width], given[:, :width] = canvas.open[:, view], canvas.ids[:, view]
        if width < size and recipe.joint is not None and self.tail is not None:
            free[:, width:] = False
            given[:, width], given[:, width + 1 :] = self.tail
        running = free[:, :width].any(dim=1)
        drawn = _random(denoiser.vocab_size, canvas, noise, "canvas", running, size)
        held = running.unsqueeze(1) & (free | recipe.reference_quirks)  # released code has what is given in the predictions alone
        nothing = torch.zeros(rows, size)
        return _Block(first, width, free, given, torch.where(held, drawn, given), given.clone(), nothing, nothing.bool(), running)

    def _steps(self, denoiser: NoiseDenoiser, canvas: Canvas, recipe: Recipe, noise: Noise, block: _Block) -> Iterator[Frame]:
        """Denoise one canvas, and commit it with its last step."""
        settle = None if self.settle is None else self.settle.start()
        guess: Tensor | None = None
        entropy = torch.full(block.ids.shape, math.inf)
        before = canvas.masked.clone()
        for left in range(self.cooling.steps, 0, -1):
            if not bool(block.running.any()):
                return
            rows = block.running.nonzero(as_tuple=True)[0]
            raw = denoiser.step(block.ids[rows], guess, rows)
            raw, best = self._constrained(raw, canvas, recipe, block, rows)
            block.sure[rows] = (raw.gather(2, best.unsqueeze(2)).squeeze(2) - raw.logsumexp(dim=-1)).exp().cpu()
            block.best[rows] = best.cpu()
            guess = raw.div_(self.cooling(left))
            entropy[rows] = entropies(guess).cpu()
            self._renoise(denoiser, canvas, recipe, noise, block, rows, guess, entropy)
            canvas.step += block.running
            canvas.forwards += block.running
            ran = block.running.clone()
            if settle is not None:
                block.running &= ~settle(block.best, entropy)
                guess = guess[block.running[rows].to(guess.device)]
            if left == 1 or not bool(block.running.any()):
                self._commit(canvas, recipe, block)
                yield Frame.of(canvas, 0, before)
                return
            yield self._frame(canvas, block, ran)

    def _constrained(self, raw: Tensor, canvas: Canvas, recipe: Recipe, block: _Block, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [n, C, V] after bans, transforms, the scaffold and what is given; most probable fitting tokens [n, C])."""
        where = raw.device
        if recipe.banned:
            raw.index_fill_(2, torch.tensor(recipe.banned, device=where), -torch.inf)
        cells = torch.zeros_like(canvas.masked)
        cells[rows, block.first : block.first + block.width] = block.free[rows, : block.width]
        inside = torch.zeros_like(block.free)
        inside[:, : block.width] = cells[:, block.first : block.first + block.width]
        inside = inside[rows].to(where)
        chain = [*recipe.transforms, *([recipe.joint] if callable(recipe.joint) else [])]  # a joint proposer may also exclude
        logits = raw[inside] if chain or recipe.joint is not None else None
        if logits is not None and chain:
            for transform in chain:
                logits = transform(canvas, cells, logits)
            raw[inside] = logits
        given = (~block.free[rows]).to(where)
        raw[given] = -torch.inf
        raw[(*given.nonzero(as_tuple=True), block.given[rows].to(where)[given])] = 0.0
        best = raw.argmax(dim=-1)
        if logits is not None and recipe.joint is not None and (joint := recipe.joint.propose(canvas, cells, logits)) is not None:
            best[inside] = joint[0]
        return raw, best

    def _renoise(
        self, denoiser: NoiseDenoiser, canvas: Canvas, recipe: Recipe, noise: Noise, block: _Block, rows: Tensor, logits: Tensor, entropy: Tensor
    ) -> None:
        """What the model sees next: draws where it is sure, new noise elsewhere."""
        size = block.ids.shape[1]
        ids, _ = recipe.proposer(_look(canvas, noise, block.running, size, logits.flatten(0, 1)))
        fresh = _random(denoiser.vocab_size, canvas, noise, "renoise", block.running, size)[rows]
        accepted = self.accept(entropy[rows])
        block.accepted[rows] = accepted
        seen = torch.where(accepted, ids.view(-1, size).cpu(), fresh)
        block.ids[rows] = torch.where(block.free[rows], seen, block.given[rows])

    def _commit(self, canvas: Canvas, recipe: Recipe, block: _Block) -> None:
        """Write the best tokens into the answer, up to the first end of each row."""
        columns = slice(block.first, block.first + block.width)
        free, best = block.free[:, : block.width], block.best[:, : block.width]
        if isinstance(recipe.stop, EndOfText) and recipe.stop.ids:
            ends = free & torch.isin(best, torch.tensor(recipe.stop.ids))
            free = free & (ends.int().cumsum(dim=1) - ends.int() == 0)
        cells = torch.zeros_like(canvas.masked)
        cells[:, columns] = free
        canvas.commit(cells, best[free], block.sure[:, : block.width][free])
        recipe.stop(canvas)

    def _frame(self, canvas: Canvas, block: _Block, ran: Tensor) -> Frame:
        """The answer as it stands: the best tokens of cells that were accepted, and of rows that are done."""
        columns = slice(block.first, block.first + block.width)
        free = block.free[:, : block.width]
        ids, state = canvas.ids.clone(), canvas.states(canvas.masked)
        ids[:, columns] = torch.where(free, block.best[:, : block.width], ids[:, columns])
        known = free & (block.accepted[:, : block.width] | ~block.running.unsqueeze(1))
        new = torch.where(ran.unsqueeze(1), NEW, KEPT)
        state[:, columns] = torch.where(known, new, state[:, columns]).to(state.dtype)
        return Frame(0, ids, state, canvas.commit_confidence.clone(), canvas.forwards.clone())


def _look(canvas: Canvas, noise: Noise, running: Tensor, size: int, logits: Tensor) -> Step:
    """All cells of the running rows of a canvas of `size` cells, as the parts see a step."""
    cells = running.unsqueeze(1).expand(-1, size)
    row, column = cells.nonzero(as_tuple=True)
    return Step(canvas, cells, row, column, logits, noise)


def _random(vocab_size: int, canvas: Canvas, noise: Noise, purpose: str, running: Tensor, size: int) -> Tensor:
    """[B, C] uniform token ids in the running rows, 0 in others."""
    step = _look(canvas, noise, running, size, torch.empty(0))
    ids = torch.zeros(len(running), size, dtype=torch.long)
    ids[step.cells] = (noise.uniform(purpose, step) * vocab_size).long().clamp_max(vocab_size - 1)
    return ids
