"""The trellis against brute force, and against recorded oracle cases."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from vlm.structure.lift import TokenTable
from vlm.structure.trellis import solve

PARITY = Path(os.environ.get("PARITY_ROOT", Path(__file__).parents[3] / "shared" / "parity"))
ORACLE = PARITY / "samplers" / "oracle_dfa.json"


def table_of(delta, accept):
    """A token table whose class k + 1 is symbol k, without pad or null rules."""
    moves = np.concatenate([np.full((len(delta), 1), -1), np.array(delta)], axis=1).astype(np.int32)
    return TokenTable(np.arange(1, moves.shape[1], dtype=np.int32), moves, np.array(accept), pad=0, null=None)


def scores_of(log_probs, fixed=None):
    scores = np.concatenate([np.full((len(log_probs), 1), -np.inf), np.array(log_probs)], axis=1)
    for cell, symbol in (fixed or {}).items():
        keep = np.arange(scores.shape[1]) == symbol + 1
        scores[int(cell)] = np.where(keep, 0.0, -np.inf)
    return scores[None]


def accepted(table, length):
    """All accepted class strings."""
    out = []
    for path in itertools.product(range(1, table.classes), repeat=length):
        state = 0
        for symbol in path:
            state = table.moves[state, symbol]
            if state < 0:
                break
        if state >= 0 and table.accept[state]:
            out.append(path)
    return out


def compare(table, scores):
    """Allowed classes, feasibility and best path against enumeration."""
    length = scores.shape[1]
    strings = accepted(table, length)
    result = solve(table, scores)
    for slot in range(scores.shape[0]):
        weights = np.array([scores[slot, np.arange(length), p].sum() for p in strings]) if strings else np.zeros(0)
        possible = [p for p, w in zip(strings, weights, strict=True) if np.isfinite(w)]
        assert result.feasible[slot] == bool(possible)
        if not possible:
            continue
        allowed = np.zeros((length, table.classes), bool)
        for path in possible:
            allowed[np.arange(length), path] = True
        np.testing.assert_array_equal(result.allowed[slot], allowed)
        path = tuple(result.path[slot])
        assert path in possible
        assert scores[slot, np.arange(length), path].sum() == pytest.approx(weights.max(), abs=1e-9)


def random_scores(rng, slots, length, classes, fixed):
    scores = rng.normal(0, 2, (slots, length, classes))
    scores[:, :, 0] = -np.inf
    for slot in range(slots):
        for cell in np.flatnonzero(rng.random(length) < fixed):
            keep = rng.integers(1, classes)
            scores[slot, cell] = np.where(np.arange(classes) == keep, 0.0, -np.inf)
    return scores


@pytest.mark.parametrize("seed", range(40))
def test_random_automata_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    states, symbols = rng.integers(2, 6), rng.integers(2, 4)
    delta = np.where(rng.random((states, symbols)) < 0.6, rng.integers(0, states, (states, symbols)), -1)
    table = table_of(delta, rng.random(states) < 0.5)
    compare(table, random_scores(rng, 6, int(rng.integers(1, 6)), symbols + 1, 0.2))


def free_table(null, least):
    """text* pad*, or null pad*: classes 1 text, 2 pad, 3 null."""
    moves = np.full((3, 4 if null else 3), -1, np.int32)
    moves[[0, 1], 1] = 1
    moves[[1, 2], 2] = 2
    if least == 0:
        moves[0, 2] = 2
    if null:
        moves[0, 3] = 2
    ids = np.array([1, 1, 2, 3] if null else [1, 1, 2, 0], np.int32)
    return TokenTable(ids, moves, np.array([least == 0, True, True]), pad=2, null=3 if null else None)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("null", "least"), [(True, 0), (True, 1), (False, 0), (False, 1)])
def test_closed_form_of_free_text(seed, null, least):
    table = free_table(null, least)
    assert table.free_classes == (1, 2, 3 if null else None, least)
    rng = np.random.default_rng(seed)
    compare(table, random_scores(rng, 8, int(rng.integers(1, 7)), table.classes, 0.3))


@pytest.mark.parametrize("free", [False, True])
def test_draws_follow_the_conditional_law(free):
    rng = np.random.default_rng(5)
    if free:
        table = free_table(True, 1)
    else:
        table = table_of([[1, 0, -1], [2, 1, 0], [-1, 0, 1]], [True, False, True])
    length = 4
    scores = rng.normal(0, 1, (1, length, table.classes))
    scores[:, :, 0] = -np.inf
    strings = accepted(table, length)
    weights = np.exp([scores[0, np.arange(length), p].sum() for p in strings])
    law = weights / weights.sum()
    count = 20_000
    result = solve(table, np.repeat(scores, count, 0), rng.random((count, length)))
    drawn = dict.fromkeys(strings, 0)
    for path in map(tuple, result.path.tolist()):
        drawn[path] += 1
    frequency = np.array([drawn[p] for p in strings]) / count
    assert np.abs(frequency - law).max() < 4 * np.sqrt(0.25 / count)


@pytest.mark.skipif(not ORACLE.exists(), reason=f"{ORACLE} is not there")
def test_recorded_oracle():
    cases = json.loads(ORACLE.read_text())["cases"]
    assert len(cases) >= 13
    for case in cases:
        dfa = case["dfa"]
        accept = np.isin(np.arange(dfa["n_states"]), dfa["accept"])
        assert dfa["start"] == 0
        table = table_of(dfa["delta"], accept)
        scores = scores_of(case["log_probs"], case["fixed"])
        result = solve(table, scores)
        assert bool(result.feasible[0]) == (case["n_accepted"] > 0), case["id"]
        if not case["n_accepted"]:
            continue
        assert (result.path[0] - 1).tolist() == case["best"], case["id"]
        if "marginals" in case:
            positive = np.array(case["marginals"]) > 0
            np.testing.assert_array_equal(result.allowed[0][:, 1:], positive, case["id"])
