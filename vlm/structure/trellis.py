"""Best and allowed paths through a slot's automaton, batched over slots that share automaton and budget.

A slot of T cells and its automaton of Q states make a trellis of T + 1 layers. A path from the start to an accepting
state is a complete value. Reachability from both ends tells which classes of tokens keep a cell completable; the
max-product pass gives the most probable path; the sum-product pass lets us draw paths from the factorised law of the
cells conditioned on the value being valid (backward filtering, forward sampling).
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


def solve(table: TokenTable, scores: Floats, uniform: Floats | None = None) -> Paths:
    """Paths for class scores [S, T, C]: log-weights, -inf for what is excluded.

    At a committed cell every class but its own is -inf. With `uniform` [S, T], numbers from [0, 1), paths are drawn
    (the scores of a class must then be the log of the sum over its tokens); without, the best one is taken.
    """
    if table.free_classes is not None:
        return _solve_free(table.free_classes, scores, uniform)
    return _solve_general(table, scores, uniform)


def _solve_general(table: TokenTable, scores: Floats, uniform: Floats | None) -> Paths:
    slots, cells, classes = scores.shape
    edge_class, edge_next = table.edges  # [Q, D]
    states, degree = edge_class.shape
    blocked = scores.copy()
    blocked[:, :, 0] = -np.inf
    weight = blocked[:, :, edge_class]  # [S, T, Q, D]
    # Backward: weight of the best (or of all) completions behind each edge.
    behind = np.empty((slots, cells, states, degree))
    end = np.broadcast_to(np.where(table.accept, 0.0, -np.inf), (slots, states))
    for t in range(cells - 1, -1, -1):
        behind[:, t] = weight[:, t] + end[:, edge_next]
        end = behind[:, t].max(axis=2) if uniform is None else _log_sum(behind[:, t])
    feasible = np.isfinite(end[:, 0])
    # Forward: what is reachable, and one path.
    open_edge = np.isfinite(behind)
    into = np.zeros((states * degree, states), np.float32)
    into[np.arange(states * degree), edge_next.reshape(-1)] = 1
    alive = np.zeros((slots, states), bool)
    alive[:, 0] = True
    here = np.zeros(slots, np.int64)
    path = np.zeros((slots, cells), np.int64)
    rows = np.arange(slots)
    for t in range(cells):
        open_edge[:, t] &= alive[:, :, None]
        alive = open_edge[:, t].reshape(slots, -1).astype(np.float32) @ into > 0
        choices = behind[rows, t, here]
        pick = choices.argmax(axis=1) if uniform is None else _draw(choices, uniform[:, t])
        path[:, t] = edge_class[here, pick]
        here = edge_next[here, pick].astype(np.int64)
    of_class = np.zeros((states * degree, classes), np.float32)
    of_class[np.arange(states * degree), edge_class.reshape(-1)] = 1
    allowed = open_edge.reshape(slots * cells, -1).astype(np.float32) @ of_class > 0
    return Paths(allowed.reshape(slots, cells, classes), path, feasible)


def _solve_free(classes: tuple[int, int, int | None, int], scores: Floats, uniform: Floats | None) -> Paths:
    """Free text, text* pad* or null pad*: a path is just its length, so everything is a cumulative sum."""
    text, pad, null, least = classes
    slots, cells, count = scores.shape
    zero = np.zeros((slots, 1))

    def running(values: Floats) -> tuple[Floats, Ints]:
        """Sums over the first n cells, n = 0..T, of the finite values, and how many were excluded."""
        out = ~np.isfinite(values)
        sums = np.concatenate([zero, np.cumsum(np.where(out, 0.0, values), axis=1)], axis=1)
        return sums, np.concatenate([zero, np.cumsum(out, axis=1)], axis=1).astype(np.int64)

    text_sum, text_out = running(scores[:, :, text])
    pad_sum, pad_out = running(scores[:, :, pad])
    # Length n = 0..T; one more column for null.
    weight = np.where(
        text_out + pad_out[:, -1:] - pad_out > 0, -np.inf, text_sum + pad_sum[:, -1:] - pad_sum
    )
    weight[:, :least] = -np.inf
    null_weight = np.full((slots, 1), -np.inf)
    if null is not None:
        first = scores[:, 0, null]
        fits = np.isfinite(first) & (pad_out[:, -1] == pad_out[:, 1])
        null_weight[fits, 0] = first[fits] + (pad_sum[:, -1] - pad_sum[:, 1])[fits]
    weight = np.concatenate([weight, null_weight], axis=1)  # [S, T + 2]
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
