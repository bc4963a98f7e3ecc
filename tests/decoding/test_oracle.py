"""Samplers against exact laws: the model gives exact conditionals, so what comes out has a distribution one can compute."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.decoding.oracle import JointDenoiser, chi_square, histogram
from tests.parity.cases import root
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Noise, Scorer, Step
from vlm.decoding.loop import Recipe, decode, run
from vlm.decoding.presets import preset

SAMPLES = 2000
#: A right sampler passes this many standard deviations once in tens of thousands of tries; draws are seeded anyway.
LIMIT = 5.0


def _load(name: str) -> dict[str, Any]:
    path = root() / "samplers" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


JOINTS = _load("oracle_joint.json").get("joints", [])
CLOSED = _load("oracle_closed_forms.json")
needs_joints = pytest.mark.skipif(not JOINTS, reason="needs ../shared/parity/samplers")


@dataclass(frozen=True)
class _BestPosition(Scorer):
    """Largest probability of any token, whatever was drawn."""

    def __call__(self, step: Step) -> Tensor:
        return torch.softmax(step.logits, dim=-1).max(dim=-1).values


def _sampler(law: str, length: int) -> Recipe | None:
    sampling = {"temperature": 1.0, "sampling": "gumbel"}
    if law == "one_token_random_order":
        return preset("llada-random", steps_per_block=length, block_length=None, **sampling)
    if law == "one_token_left_to_right":
        return preset("llada", steps_per_block=1, block_length=1, **sampling)
    if law == "one_token_max_confidence_position":
        return preset("one-by-one", **sampling).with_parts(scorer=_BestPosition())
    if law == "one_shot_parallel":
        return preset("llada-random", steps_per_block=1, block_length=None, **sampling)
    if law.startswith("random_subset_"):
        return preset("llada-random", steps_per_block=-(-length // int(law[14:])), block_length=None, **sampling).with_parts(quota=_Fixed(int(law[14:])))
    if law.startswith("left_to_right_blocks_"):
        return preset("llada", steps_per_block=1, block_length=int(law[21:]), **sampling)
    if law.startswith("sampled_lowconf_"):
        return preset("llada", steps_per_block=1, block_length=None, **sampling).with_parts(quota=_Fixed(int(law[16:])))
    if law.startswith("sampled_threshold_"):
        return preset("threshold", threshold=float(law[18:]), block_length=None, **sampling)
    if law.startswith("origin_steps_"):
        return preset("dream-origin", steps=int(law[13:]), temperature=1.0, reference_quirks=True)
    return None


@dataclass(frozen=True)
class _Fixed:
    """Always the same quota."""

    count: int

    def start(self, canvas: Canvas) -> _Fixed:
        return self

    def __call__(self, step: Step, block: Tensor) -> Tensor:
        return torch.full((len(block),), self.count)


def _sample(joint: dict[str, Any], recipe: Recipe, samples: int = SAMPLES, first_seed: int = 0) -> Tensor:
    vocab, length = joint["vocab"], joint["length"]
    denoiser = JointDenoiser(torch.tensor(joint["table"]), vocab, length)
    canvas = Canvas.blank(samples, length, mask_id=vocab, pad_id=0)
    return histogram(run(denoiser, canvas, recipe, seed=range(first_seed, first_seed + samples)).ids, vocab)


@needs_joints
@pytest.mark.parametrize(("joint", "law"), [(j, law) for j in JOINTS for law in j["laws"]], ids=lambda v: v if isinstance(v, str) else v["id"])
def test_law(joint: dict[str, Any], law: str) -> None:
    recipe = _sampler(law, joint["length"])
    if recipe is None:
        pytest.skip("no such sampler here")
    counts = _sample(joint, recipe)
    assert chi_square(counts, torch.tensor(joint["laws"][law]["probs"])) < LIMIT


@needs_joints
def test_the_test_tells_biased_samplers_from_the_joint() -> None:
    """LLaDA's low-confidence rule at temperature 1 is far from the joint; the same statistic must see it."""
    biased = [j for j in JOINTS if j["laws"]["sampled_lowconf_1"]["tv_to_joint"] > 0.1]
    assert biased
    for joint in biased:
        recipe = _sampler("sampled_lowconf_1", joint["length"])
        assert recipe is not None
        assert chi_square(_sample(joint, recipe), torch.tensor(joint["table"])) > 4 * LIMIT


@needs_joints
@pytest.mark.parametrize("joint", JOINTS, ids=lambda j: j["id"])
def test_greedy_trajectories(joint: dict[str, Any]) -> None:
    vocab, length = joint["vocab"], joint["length"]
    scores = {"prob": "prob", "margin": "margin", "neg_entropy": "entropy"}
    for name, states in joint["greedy"].items():
        kind, _, count = name.rpartition("_k")
        recipe = preset("llada", steps_per_block=1, block_length=None, score=scores[kind]).with_parts(quota=_Fixed(int(count)))
        canvas = Canvas.blank(1, length, mask_id=vocab, pad_id=0)
        seen = [frame.ids[0].tolist() for frame in decode(JointDenoiser(torch.tensor(joint["table"]), vocab, length), canvas, recipe)]
        assert [[-1 if i == vocab else i for i in ids] for ids in seen] == states, name


@needs_joints
def test_the_oracle_itself() -> None:
    check = _load("oracle_joint.json")["denoiser_check"]
    joint = next(j for j in JOINTS if j["id"] == check["joint"])
    oracle = JointDenoiser(torch.tensor(joint["table"], dtype=torch.float64), joint["vocab"], joint["length"])
    for entry in check["states"]:
        found = oracle.conditionals(tuple(entry["state"]))
        for cell, wanted in entry["conditionals"].items():
            torch.testing.assert_close(found[int(cell)], torch.tensor(wanted, dtype=torch.float64))


def _permutations(n: int) -> Tensor:
    """The uniform law over the orders of n items, as a table over n ** n strings."""
    table = torch.zeros((n,) * n)
    for order in itertools.permutations(range(n)):
        table[order] = 1 / math.factorial(n)
    return table.flatten()


@pytest.mark.parametrize(("n", "per_step"), [(3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3), (4, 4)])
def test_shuffling_in_parallel_fails_as_often_as_it_must(n: int, per_step: int) -> None:
    """k random cells a step of a uniform permutation: the chance of a valid one has a closed form."""
    canvas = Canvas.blank(SAMPLES, n, mask_id=n, pad_id=0)
    recipe = preset("llada-random", steps_per_block=1, block_length=None, temperature=1.0).with_parts(quota=_Fixed(per_step))
    ids = run(_Forgiving(_permutations(n), n, n), canvas, recipe, seed=range(SAMPLES)).ids
    valid = float((ids.sort(dim=1).values == torch.arange(n)).all(dim=1).double().mean())
    wanted = _chance(n, per_step)
    for case in CLOSED.get("list_operations", {}).get("cases", []):
        if case["n"] == n:
            assert wanted == pytest.approx(case["shuffle_k_tokens_per_step"][str(per_step)]["value"])
    assert abs(valid - wanted) <= LIMIT * math.sqrt(max(wanted * (1 - wanted), 1e-9) / SAMPLES)


def _chance(n: int, per_step: int) -> float:
    """Product over the steps of the chance that k independent draws from the m items left are all different."""
    chance, left = 1.0, n
    while left:
        k = min(per_step, left)
        chance *= math.perm(left, k) / left**k
        left -= k
    return chance


class _Forgiving(JointDenoiser):
    """Conditionals of a state that cannot be (a clash made in parallel): uniform, so that the run goes on."""

    def conditionals(self, state: tuple[int, ...]) -> Tensor:
        found = super().conditionals(state)
        return torch.where(found.isnan(), 1 / self.values, found)


def test_rare_tokens_come_as_often_as_they_should() -> None:
    """A tail of 2 % spread over a thousand tokens."""
    tail, values, draws = 2e-2, 1000, 4000
    table = torch.full((values,), tail / (values - 1)).double()
    table[0] = 1 - tail
    recipe = preset("llada", steps_per_block=1, block_length=None, temperature=1.0, sampling="gumbel")
    ids = run(JointDenoiser(table, values, 1), Canvas.blank(draws, 1, mask_id=values, pad_id=0), recipe, seed=range(draws)).ids
    assert abs(int((ids > 0).sum()) - draws * tail) <= 4 * math.sqrt(draws * tail)


class _Given(Noise):
    def __init__(self, uniform: list[float]) -> None:
        self.given = torch.tensor([uniform], dtype=torch.float64)

    def uniform(self, purpose: str, step: Step, width: int = 0) -> Tensor:
        return self.given


def test_gumbel_noise_is_in_double_precision() -> None:
    """A uniform of 1 - 2**-30 is a Gumbel draw of 20.8, which loses against a lead of 25; in float32 it is 1, that is infinity."""
    table = torch.tensor([1.0, math.exp(-25.0)], dtype=torch.float64)
    recipe = preset("llada", steps_per_block=1, block_length=None, temperature=1.0, sampling="gumbel")
    for exponent, winner in ((30, 0), (40, 1)):
        canvas = run(JointDenoiser(table / table.sum(), 2, 1), Canvas.blank(1, 1, mask_id=2, pad_id=0), recipe, noise=_Given([0.5, 1 - 2.0**-exponent, 0.5]))
        assert canvas.ids.tolist() == [[winner]]
