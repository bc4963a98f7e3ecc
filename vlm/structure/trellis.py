"""Best, allowed and probable paths through a slot's automaton, batched over slots that share automaton and budget.

A slot of T cells and its automaton of Q states make a trellis of T + 1 layers. A path from the start to an accepting
state is a complete value. Reachability from both ends tells which classes of tokens keep a cell completable; the
max-product pass gives the most probable path; the sum-product pass gives the exact law of each cell given that the value
is valid, and lets us draw paths from it (backward filtering, forward sampling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm.structure.lift import TokenTable

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Paths:
    """What the trellis says of S slots of T cells.

    Attributes:
        allowed: [S, T, C] classes that keep the slot completable at that cell, given all committed cells.
        path: [S, T] class of each cell on the best (or drawn) path.
        feasible: [S] whether there is any path; without one `allowed` and `path` mean nothing.
    """

    allowed: Bools
    path: Ints
    feasible: Bools


@dataclass(frozen=True)
class Law:
    """The cells of S slots under their factorised law, given that each value is valid.

    Attributes:
        classes: [S, T, C] probability of each class; rows of slots without any path are 0.
        total: [S] log of the weight of all valid values together, -inf without any.
    """

    classes: Floats
    total: Floats


def solve(table: TokenTable, scores: Floats, uniform: Floats | None = None) -> Paths:
    """Paths for class scores [S, T, C]: log-weights, -inf for what is excluded.

    At a committed cell every class but its own is -inf. With `uniform` [S, T], numbers from [0, 1), paths are drawn
    (the scores of a class must then be the log of the sum over its tokens); without, the best one is taken.
    """
    if table.free_classes is not None:
        return _solve_free(table.free_classes, scores, uniform)
    return _solve_general(table, scores, uniform)


def posterior(table: TokenTable, scores: Floats) -> Law:
    """The exact law of the cells for class scores [S, T, C] as in :func:`solve`, those of a class the log of a sum."""
    if table.free_classes is not None:
        return _posterior_free(table.free_classes, scores)
    return _posterior_general(table, scores)


def _backward(table: TokenTable, scores: Floats, total: bool) -> tuple[Floats, Floats]:
    """([S, T, E + 1] weight of the completions through each edge, -inf at the last; [S, T + 1, Q] of those from each state).

    `total`: of all completions together, else of the best one.
    """
    slots, cells, _ = scores.shape
    edges = table.graph
    behind = np.full((slots, cells, len(edges.source) + 1), -np.inf)
    label, target = edges.label[:-1], edges.target[:-1]
    state = np.full((slots, cells + 1, table.states), -np.inf)
    state[:, cells] = np.where(table.accept, 0.0, -np.inf)
    for t in range(cells - 1, -1, -1):
        here = behind[:, t, :-1]
        np.add(scores[:, t, label], state[:, t + 1, target], out=here)
        top = np.maximum.reduceat(here, edges.first, axis=1)
        if total:
            safe = np.where(np.isfinite(top), top, 0.0)
            part = np.exp(here - np.repeat(safe, edges.degree, axis=1))
            with np.errstate(divide="ignore"):
                top = np.log(np.add.reduceat(part, edges.first, axis=1)) + safe
        state[:, t, edges.origin] = top
    return behind, state


def _solve_general(table: TokenTable, scores: Floats, uniform: Floats | None) -> Paths:
    slots, cells, _ = scores.shape
    edges = table.graph
    blocked = scores.copy()
    blocked[:, :, 0] = -np.inf
    behind, state = _backward(table, blocked, uniform is not None)
    feasible = np.isfinite(state[:, 0, 0])
    here = np.zeros(slots, np.int64)
    path = np.zeros((slots, cells), np.int64)
    rows = np.arange(slots)
    for t in range(cells):
        out = edges.leaving[here]  # [S, D]
        choices = behind[:, t][rows[:, None], out]
        pick = out[rows, choices.argmax(axis=1) if uniform is None else _draw(choices, uniform[:, t])]
        path[:, t], here = edges.label[pick], edges.target[pick]
    return Paths(_allowed(table, blocked, behind), path, feasible)


def _allowed(table: TokenTable, scores: Floats, behind: Floats) -> Bools:
    """[S, T, C] classes on some path from the start to an end."""
    slots, cells, classes = scores.shape
    edges = table.graph
    untouched = bool(np.isfinite(scores[:, :, 1:]).all())  # nothing is committed: what is reachable is the same at every step
    if untouched and cells in table.reachable:
        return np.broadcast_to(table.reachable[cells], scores.shape)
    open_edge = np.isfinite(behind[:, :, :-1])
    alive = np.zeros((slots, table.states), bool)
    alive[:, 0] = True
    for t in range(cells):
        now = open_edge[:, t]
        now &= alive[:, edges.source]
        alive[:] = False
        alive[:, edges.targets] = np.logical_or.reduceat(now[:, edges.by_target], edges.first_by_target, axis=1)
    allowed = np.zeros((slots, cells, classes), bool)
    allowed[:, :, edges.labels] = np.logical_or.reduceat(open_edge[:, :, edges.by_label], edges.first_by_label, axis=2)
    if untouched:
        table.reachable[cells] = allowed[0]
    return allowed


def _posterior_general(table: TokenTable, scores: Floats) -> Law:
    slots, cells, classes = scores.shape
    edges = table.graph
    blocked = scores.copy()
    blocked[:, :, 0] = -np.inf
    behind, state = _backward(table, blocked, True)
    total = state[:, 0, 0]
    chance = np.zeros((slots, table.states))  # of being in a state
    chance[:, 0] = np.isfinite(total)
    law = np.zeros((slots, cells, classes))
    for t in range(cells):
        before = state[:, t, edges.source]
        with np.errstate(invalid="ignore"):
            step = np.where(np.isfinite(before), np.exp(behind[:, t, :-1] - before), 0.0) * chance[:, edges.source]
        chance = np.zeros_like(chance)
        chance[:, edges.targets] = np.add.reduceat(step[:, edges.by_target], edges.first_by_target, axis=1)
        law[:, t, edges.labels] = np.add.reduceat(step[:, edges.by_label], edges.first_by_label, axis=1)
    return Law(law, total)


def _lengths(classes: tuple[int, int, int | None, int], scores: Floats) -> Floats:
    """[S, T + 2] weight of free text of each length 0..T, and of null: a path is just its length."""
    text, pad, null, least = classes
    zero = np.zeros((len(scores), 1))

    def running(values: Floats) -> tuple[Floats, Ints]:
        """Sums over the first n cells, n = 0..T, of the finite values, and how many were excluded."""
        out = ~np.isfinite(values)
        sums = np.concatenate([zero, np.cumsum(np.where(out, 0.0, values), axis=1)], axis=1)
        return sums, np.concatenate([zero, np.cumsum(out, axis=1)], axis=1).astype(np.int64)

    text_sum, text_out = running(scores[:, :, text])
    pad_sum, pad_out = running(scores[:, :, pad])
    weight = np.where(text_out + pad_out[:, -1:] - pad_out > 0, -np.inf, text_sum + pad_sum[:, -1:] - pad_sum)
    weight[:, :least] = -np.inf
    null_weight = np.full((len(scores), 1), -np.inf)
    if null is not None:
        first = scores[:, 0, null]
        fits = np.isfinite(first) & (pad_out[:, -1] == pad_out[:, 1])
        null_weight[fits, 0] = first[fits] + (pad_sum[:, -1] - pad_sum[:, 1])[fits]
    return np.concatenate([weight, null_weight], axis=1)


def _solve_free(classes: tuple[int, int, int | None, int], scores: Floats, uniform: Floats | None) -> Paths:
    """Free text, text* pad* or null pad*: everything is a cumulative sum."""
    text, pad, null, _ = classes
    slots, cells, count = scores.shape
    weight = _lengths(classes, scores)
    possible: Bools = np.isfinite(weight)
    pick = weight.argmax(axis=1) if uniform is None else _draw(weight, uniform[:, 0])
    lengths = possible[:, :-1]
    longer = np.logical_or.accumulate(lengths[:, ::-1], axis=1)[:, ::-1]  # some possible length >= n
    shorter = np.logical_or.accumulate(lengths, axis=1)  # some possible length <= n
    allowed = np.zeros((slots, cells, count), bool)
    allowed[:, :, text] = longer[:, 1:]
    allowed[:, :, pad] = shorter[:, :-1]
    allowed[:, 1:, pad] |= possible[:, -1:]
    is_text = np.arange(cells) < pick[:, None]
    path = np.where(is_text, text, pad)
    if null is not None:
        allowed[:, 0, null] = possible[:, -1]
        path = np.where((pick == cells + 1)[:, None], pad, path)
        path[pick == cells + 1, 0] = null
    return Paths(allowed, path.astype(np.int64), np.logical_or.reduce(possible, axis=1))


def _posterior_free(classes: tuple[int, int, int | None, int], scores: Floats) -> Law:
    text, pad, null, _ = classes
    slots, cells, count = scores.shape
    weight = _lengths(classes, scores)
    total = _log_sum(weight)
    chance = np.exp(weight - np.where(np.isfinite(total), total, np.inf)[:, None])
    beyond = np.cumsum(chance[:, -2::-1], axis=1)[:, ::-1]  # length >= n
    law = np.zeros((slots, cells, count))
    law[:, :, text] = beyond[:, 1:]
    law[:, :, pad] = chance.sum(axis=1, keepdims=True) - beyond[:, 1:]
    if null is not None:
        law[:, 0, null] = chance[:, -1]
        law[:, 0, pad] -= chance[:, -1]
    return Law(np.maximum(law, 0.0), total)


def _log_sum(values: Floats) -> Floats:
    """log of the sum of exponentials over the last axis; -inf where everything is."""
    top = values.max(axis=-1)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - safe[..., None]).sum(axis=-1)) + safe)


def _draw(weights: Floats, uniform: Floats) -> Ints:
    """One index per row [S] of log-weights [S, K], by inversion."""
    top = weights.max(axis=1, keepdims=True)
    mass = np.cumsum(np.exp(weights - np.where(np.isfinite(top), top, 0.0)), axis=1)
    return np.minimum((mass <= (uniform * mass[:, -1])[:, None]).sum(axis=1), weights.shape[1] - 1)
