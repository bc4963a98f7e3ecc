"""Models of uniform noise: prompts as the denoiser takes them, and whole generations step by step.

Generations are driven by the draws that were recorded: start canvases, candidates and new noise. Released code puts what is
given into the predictions alone, which is done here under `reference_quirks`; each pinned case is run once more as the library
does it by default, with draws of its own, and must hold every pin in every canvas the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks
from tests.parity.common import RecordedNoise
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Step
from vlm.decoding.gemma import GemmaDenoiser
from vlm.decoding.loop import Recipe, decode
from vlm.decoding.presets import preset
from vlm.decoding.stops import EndOfText, Never
from vlm.decoding.uniform import Candidates, Renoise


def expected(case: Case, name: str) -> Tensor:
    """A recorded tensor by the name the case gives it."""
    return case.fixture.expected[case.data["expected"][name]]


def denoiser(case: Case, prompt: str, *, pictures: bool = True, **load: Any) -> GemmaDenoiser:
    """Behind the prompts a case names: 'text', 'image' or 'batch'."""
    inputs, module = case.fixture.inputs, case.fixture.model(**load).model.module
    ids = inputs[f"{prompt}_ids"]
    valid = inputs[f"{prompt}_mask"].bool() if f"{prompt}_mask" in inputs else torch.ones_like(ids, dtype=torch.bool)
    media = torch.zeros_like(valid)
    with torch.no_grad():
        embeds = module.model.encoder.get_input_embeddings()(ids).clone()
        if prompt == "image":
            media = inputs["mm_token_type_ids"].bool()
            embeds[media] = features(case, **load)
        return GemmaDenoiser(module, embeds, valid, media & pictures)


@torch.no_grad()
def features(case: Case, **load: Any) -> Tensor:
    """[T, D] of the fixture's picture."""
    inputs, encoder = case.fixture.inputs, case.fixture.model(**load).model.module.model.encoder
    return encoder.get_image_features(inputs["pixel_values"].to(encoder.dtype), inputs["image_position_ids"], return_dict=True).pooler_output


@dataclass
class _Step:
    """What one step of a run said: number of the canvas, rows that ran, their canvases and processed logits [n, C, V]; best tokens,
    accepted cells and flags as we find them (best and flags of all rows)."""

    canvas: int
    rows: list[int]
    ids: Tensor
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))
    accepted: Tensor = field(default_factory=lambda: torch.zeros(0))
    best: Tensor = field(default_factory=lambda: torch.zeros(0))
    flags: Tensor = field(default_factory=lambda: torch.zeros(0))


class _Tape:
    """A denoiser that keeps what passes through, and the parts of a recipe, which keep what they find.

    With a recorded trace candidates come from there, and the run goes on with the recorded acceptances and ends, so that a
    decision that falls otherwise (and is reported) does not lead the rest astray.
    """

    def __init__(self, inner: GemmaDenoiser, driver: Renoise, trace: Mapping[str, Tensor] | None = None) -> None:
        assert driver.settle is not None
        self.inner, self.trace, self.steps = inner, trace, list[_Step]()
        self.vocab_size, self.canvas_length, self.advance = inner.vocab_size, inner.canvas_length, inner.advance
        self._accept, self._settle, self._first, self._canvas = driver.accept, driver.settle, driver.settle, -1

    def step(self, ids: Tensor, guess: Tensor | None, rows: Tensor) -> Tensor:
        self._canvas += guess is None
        self.steps.append(_Step(self._canvas, rows.tolist(), ids.clone()))
        return self.inner.step(ids, guess, rows)

    def propose(self, step: Step) -> tuple[Tensor, Tensor]:
        last = self.steps[-1]
        last.logits = step.logits.clone().view(len(last.rows), -1, self.vocab_size)
        if self.trace is None:
            return Candidates()(step)
        return self.trace["sampled"][len(self.steps) - 1][step.cells], step.logits

    def accept(self, entropy: Tensor) -> Tensor:
        last = self.steps[-1]
        last.accepted = self._accept(entropy)
        return last.accepted if self.trace is None else self.trace["accepted"][len(self.steps) - 1][last.rows]

    def start(self) -> _Tape:
        self._settle = self._first.start()
        return self

    def __call__(self, best: Tensor, entropy: Tensor) -> Tensor:
        last = self.steps[-1]
        last.best, last.flags = best.clone(), self._settle(best, entropy)
        return last.flags if self.trace is None else self.trace["finished_after"][len(self.steps) - 1]

    def recipe(self, recipe: Recipe, **parts: Any) -> Recipe:
        """The recipe with its parts on tape."""
        assert isinstance(recipe.driver, Renoise)
        driver = replace(recipe.driver, accept=self.accept, settle=self)  # type: ignore[arg-type]
        return recipe.with_parts(driver=driver, proposer=self.propose, **parts)


def run_generation(case: Case, checks: Checks) -> None:
    """A whole run on the recorded draws."""
    settings, prompt = case.settings(), case.fixture.inputs[f"{case.data['inputs']}_ids"]
    trace = {name.removeprefix("trace_"): case.fixture.expected[key] for name, key in case.data["expected"].items() if name.startswith("trace_")}
    tape, canvas = _replay(case, trace)
    if len(tape.steps) != len(trace["canvas_in"]):
        checks.equal("steps", len(tape.steps), len(trace["canvas_in"]))
        return
    last = _compare(case, checks, trace, tape)
    sequences = expected(case, "sequences")
    new = sequences[:, prompt.shape[1] :]
    known = last.T.repeat_interleave(tape.canvas_length, dim=1)[:, : new.shape[1]]
    checks.equal("sequences", canvas.ids[:, : new.shape[1]][known], new[known])
    pad = settings["pad_token_id"]
    count = torch.full((len(prompt),), new.shape[1]) if pad is None else (new != pad).sum(dim=1)
    checks.close("tokens per forward", count / canvas.step, expected(case, "tokens_per_forward"))
    if case.data.get("pins"):
        _hold(case, checks)


def _replay(case: Case, trace: Mapping[str, Tensor], **load: Any) -> tuple[_Tape, Canvas]:
    """The run of a case on the recorded draws."""
    recipe = _recipe(case, reference_quirks=True)
    assert isinstance(recipe.driver, Renoise)
    tape = _Tape(denoiser(case, case.data["inputs"], **load), recipe.driver, trace)
    noise = RecordedNoise({
        "canvas": [_uniform(trace["canvas_in"][i], tape.vocab_size) for i in _starts(trace)],
        "renoise": [_uniform(ids, tape.vocab_size) for ids in trace["random_canvas"]],
    })  # fmt: skip
    canvas = _canvas(case, tape.canvas_length, tape.vocab_size)
    for _ in decode(tape, canvas, tape.recipe(recipe), noise=noise):  # type: ignore[arg-type]
        pass
    return tape, canvas


def _starts(trace: Mapping[str, Tensor]) -> list[int]:
    """First step of each canvas."""
    lengths = trace["confirmed_len"].tolist()
    return [i for i, n in enumerate(lengths) if i == 0 or n != lengths[i - 1]]


def _recipe(case: Case, **options: Any) -> Recipe:
    settings = case.settings()
    names = {"max_denoising_steps": "steps", "t_min": "t_min", "t_max": "t_max", "stability_threshold": "stability", "confidence_threshold": "confidence"}
    options.update({ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs) is not None and ours not in options})
    if "entropy_bound" in case.data:
        options["entropy_bound"] = case.data["entropy_bound"]
    ends = settings.get("eos_token_id")
    stop = Never() if ends is None else EndOfText(tuple(ends) if isinstance(ends, list) else (ends,))
    return preset("entropy-bound", **options).with_parts(stop=stop)


def _canvas(case: Case, size: int, vocab_size: int) -> Canvas:
    """An open canvas with the pins of a case; ids from `vocab_size` on stand for nothing."""
    settings, rows = case.settings(), len(case.fixture.inputs[f"{case.data['inputs']}_ids"])
    pins = _pins(case)
    row = [pins.get(place) for place in range(math.ceil(settings["max_new_tokens"] / size) * size)]
    return Canvas.from_rows([row] * rows, mask_id=vocab_size, pad_id=settings.get("pad_token_id") or 0)


def _pins(case: Case) -> dict[int, int]:
    return {int(place): int(token) for place, token in case.data.get("pins", {}).items()}


def _uniform(ids: Tensor, vocab_size: int) -> Tensor:
    """Numbers in (0, 1) that mean these ids."""
    return (ids.double() + 0.5) / vocab_size


class _Twin:
    """The same run in float64, made when it is first asked for: how far float32 can be trusted.

    Random weights are chaotic: self-conditioning grows rounding about sixfold with each step, so that late steps of a long
    run differ from machine to machine, the reference's own included.
    """

    #: Difference of the precisions beyond which a step says nothing, relative to the logits.
    LOST = 1e-3

    def __init__(self, case: Case, trace: Mapping[str, Tensor], tape: _Tape) -> None:
        self.case, self.trace, self.tape = case, trace, tape
        self.steps: list[_Step] = []

    def error(self, i: int, place: int) -> Tensor:
        """[C] largest difference of a row's processed logits at step i between the precisions."""
        if not self.steps:
            self.steps = _replay(self.case, self.trace, dtype=torch.float64)[0].steps
        ours, exact = self.tape.steps[i].logits[place], self.steps[i].logits[place]
        return (ours - exact).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().amax(dim=-1)

    def lost(self, i: int, place: int) -> bool:
        """Whether a row's step is beyond comparing."""
        logits = self.tape.steps[i].logits[place]
        return float(self.error(i, place).max()) > self.LOST * float(logits[logits.isfinite()].abs().max())


def _compare(case: Case, checks: Checks, trace: Mapping[str, Tensor], tape: _Tape) -> Tensor:
    """Step by step; a row that is done is not run here, and keeps what it has there.

    Returns:
        [canvases, B] rows whose last step on a canvas could be compared.
    """
    twin, ties, lost = _Twin(case, trace, tape), 0, 0
    all_sure = torch.ones(1 + max(step.canvas for step in tape.steps), trace["canvas_in"].shape[1], dtype=torch.bool)
    for name in ("canvas_in", "argmax", "accepted", "finished", "logits"):
        checks.errors[name] = 0.0
    for i, step in enumerate(tape.steps):
        _same(checks, "canvas_in", i, step.ids, trace["canvas_in"][i][step.rows])
        if (name := f"processed_logits_step{i}") in case.data["expected"]:
            _logits(checks, i, step, expected(case, name)[step.rows], twin)
        sure = all_sure[step.canvas]
        for place, row in enumerate(step.rows):
            found = {
                "argmax": (step.best[row], trace["argmax"][i][row]), "accepted": (step.accepted[place], trace["accepted"][i][row]),
                "finished": (step.flags[row], trace["finished_after"][i][row]),
            }  # fmt: skip
            sure[row] = True
            if all(torch.equal(ours, theirs) for ours, theirs in found.values()):
                continue
            if twin.lost(i, place):
                lost, sure[row] = lost + 1, False
                continue
            ours, theirs = found.pop("argmax")
            gap = step.logits[place].gather(1, torch.stack((ours, theirs), dim=1)).diff(dim=1).abs().squeeze(1)
            tied = gap <= 2 * twin.error(i, place)
            ties += int(((ours != theirs) & tied).sum())
            sure[row] = bool((ours == theirs).all())
            _same(checks, "argmax", i, ours[~tied], theirs[~tied])
            for name, (mine, recorded) in found.items():
                if name == "accepted" or sure[row]:  # a tie may change what counts as settled
                    _same(checks, name, i, mine, recorded)
    if ties:
        checks.errors[f"({ties} ties)"] = 0.0
    if lost:
        checks.errors[f"({lost} of {sum(len(step.rows) for step in tape.steps)} steps beyond float32)"] = 0.0
    return all_sure


def _logits(checks: Checks, i: int, step: _Step, theirs: Tensor, twin: _Twin) -> None:
    """Where something is possible (a pin leaves one token; the reference gives the others a large negative number).

    Rounding that self-conditioning has grown is allowed for: four times what it is between the precisions.
    """
    possible, inner = step.logits.isfinite(), Checks()
    inner.close(f"logits at step {i}", step.logits[possible], theirs[possible])
    checks.errors["logits"] = max(checks.errors["logits"], *inner.errors.values())
    if inner.failures and i:
        rounding = 4 * max(float(twin.error(i, place).max()) for place in range(len(step.rows)))
        more = (step.logits - theirs).abs() > rounding
        inner.failures = inner.failures if bool((more & possible).any()) else []
    checks.failures += inner.failures
    if not bool(possible.all()) and float(theirs[~possible].max()) > -1e6:
        checks.failures.append(f"step {i}: a token is excluded that the reference allows")


def _same(checks: Checks, name: str, i: int, ours: Any, theirs: Any) -> None:
    inner = Checks()
    inner.equal(f"{name} at step {i}", ours, theirs)
    if inner.failures:
        checks.errors[name] = math.inf
        checks.failures += inner.failures


def _hold(case: Case, checks: Checks, steps: int = 3) -> None:
    """The library's own way, a few steps: pins stand in every canvas the model sees, are accepted and best each time, and come out."""
    recipe, pins = _recipe(case, steps=steps), _pins(case)
    assert isinstance(recipe.driver, Renoise)
    tape = _Tape(denoiser(case, case.data["inputs"]), recipe.driver)
    size = tape.canvas_length
    canvas = _canvas(case, size, tape.vocab_size)
    held = True
    for frame in decode(tape, canvas, tape.recipe(recipe), seed=case.data["seed"]):  # type: ignore[arg-type]
        held &= all(bool((frame.ids[:, place] == token).all()) for place, token in pins.items())
    for step in tape.steps:
        first = step.canvas * size
        inside = {place - first: token for place, token in pins.items() if first <= place < first + size}
        for place, token in inside.items():
            held &= bool((step.ids[:, place] == token).all() and step.accepted[:, place].all() and (step.best[step.rows, place] == token).all())
    checks.equal("pins held", held, True)
    checks.equal("pins come out", [canvas.ids[:, place].tolist() for place in pins], [[token] * len(canvas.ids) for token in pins.values()])
