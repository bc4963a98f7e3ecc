"""Contracts of the decoding core: the denoiser, and the nine parts of a recipe.

initializer (``Canvas.from_rows``), window, proposer, scorer, quota, commit rule, reviser, length controller, stop rule;
the driver is :func:`vlm.decoding.loop.decode`. Parts are immutable descriptions; ``start`` gives a fresh working copy
for one run, so that a recipe can serve many runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.errors import OptionError


@dataclass
class Prediction:
    """What the model says about the asked cells, N of them in row-major order.

    Attributes:
        logits: [N, V] float32, raw, aligned: row n predicts the token of cell n itself.
        source: [N] prefix entry the copy head points at (-1: nowhere), or None; source_weight: [N] its attention.
    """

    logits: Tensor
    source: Tensor | None = None
    source_weight: Tensor | None = None


class Denoiser(Protocol):
    """A model with its prefix: canvas in, logits of the asked cells out. One call is one forward."""

    vocab_size: int

    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Predict the cells marked in `cells` [B, L]; rows without a marked cell need not be computed."""
        ...


@dataclass
class Step:
    """One round as the parts see it. N counts the cells under decoding.

    Attributes:
        canvas: the state before the commit.
        cells: [B, L]; row, column: [N] where the cells are.
        logits: [N, V] after bans and constraints, before temperature and filters.
        proposal: [N] proposed ids; filtered: [N, V] logits the proposal was drawn from.
        score: [N] higher is surer. quota: [B] how many to commit, None for threshold rules.
    """

    canvas: Canvas
    cells: Tensor
    row: Tensor
    column: Tensor
    logits: Tensor
    noise: Noise
    proposal: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    filtered: Tensor = field(default_factory=lambda: torch.zeros(0))
    score: Tensor = field(default_factory=lambda: torch.zeros(0))
    quota: Tensor | None = None

    def pooled(self) -> Step:
        """The same cells as those of one row."""
        length = self.cells.shape[1]
        return replace(
            self, canvas=self.canvas.pooled(), cells=self.cells.view(1, -1), row=torch.zeros_like(self.row), column=self.row * length + self.column
        )


class Noise:
    """Random numbers with one generator per row, so that a batch draws what its rows would draw alone.

    Args:
        seed: of the run, or one for each row. rows: batch size.
    """

    def __init__(self, seed: int | Sequence[int], rows: int) -> None:
        seeds = [seed] * rows if isinstance(seed, int) else list(seed)
        if len(seeds) != rows:
            raise OptionError(f"{len(seeds)} seeds for {rows} rows", remedy="give one seed, or one for each row")
        self.generators = [torch.Generator().manual_seed(s * 1_000_003 + 17) for s in seeds]

    def uniform(self, purpose: str, step: Step, width: int = 0) -> Tensor:
        """float64 uniforms in (0, 1): [N], or [N, width]; `purpose` ('token', 'score', 'commit') names the draw."""
        counts = torch.bincount(step.row, minlength=len(self.generators)).tolist()
        shape = (width,) if width else ()
        parts = [torch.rand((n, *shape), generator=g, dtype=torch.float64) for g, n in zip(self.generators, counts, strict=True) if n]
        return torch.cat(parts).clamp_min(1e-300)


class LogitTransform(Protocol):
    """A link of the proposer's chain: bans, constraints, guidance."""

    def __call__(self, canvas: Canvas, cells: Tensor, logits: Tensor) -> Tensor:
        """Logits [N, V] -> [N, V]."""
        ...


class JointProposer(Protocol):
    """Proposes cells together (the slots of a scaffold): the tokens of one step must fit each other.

    Whatever it needs to know about earlier steps it reads off the canvas.
    """

    def propose(self, canvas: Canvas, cells: Tensor, logits: Tensor) -> tuple[Tensor, Tensor] | None:
        """(ids [N], score [N]) of the asked cells, or None when it governs none of them."""
        ...


class Window(Protocol):
    """Which open cells are under decoding now."""

    def start(self, canvas: Canvas) -> Window: ...

    def cells(self, canvas: Canvas) -> Tensor:
        """[B, L] subset of ``canvas.open``."""
        ...

    def number(self, canvas: Canvas) -> Tensor:
        """[B] number of the block each row is in."""
        ...


class Proposer(Protocol):
    """A token for each cell."""

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        """(ids [N], filtered logits [N, V])."""
        ...


class Scorer(Protocol):
    """How sure each proposal is."""

    def __call__(self, step: Step) -> Tensor:
        """[N]; higher is surer."""
        ...


class Quota(Protocol):
    """How many cells a row commits in this step."""

    def start(self, canvas: Canvas) -> Quota: ...

    def __call__(self, step: Step, block: Tensor) -> Tensor:
        """[B] counts; `block` [B] is the window's block number."""
        ...


class CommitRule(Protocol):
    """Which cells are committed."""

    def start(self, canvas: Canvas) -> CommitRule: ...

    def __call__(self, step: Step) -> Tensor:
        """[N] bool. The loop adds the best cell of a row that would commit none."""
        ...


class Reviser(Protocol):
    """May take commits back after a step (methods of the decoding catalogue)."""

    def __call__(self, canvas: Canvas) -> None: ...


class LengthController(Protocol):
    """May insert or delete cells after a step (methods of the decoding catalogue)."""

    def __call__(self, canvas: Canvas) -> Canvas: ...


class StopRule(Protocol):
    """Closes rows that are done."""

    def __call__(self, canvas: Canvas) -> None:
        """Fill what need not be decoded any more."""
        ...
