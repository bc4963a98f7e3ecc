"""Softmax attention over rows of unequal length laid end to end, without padding and without masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import attention_reference

#: One row: (first query, end), (first key, end), (first past entry, end), half-open, as indices into the flat tensors.
Span = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def ragged_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], past: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Row by row, written out.

    Args:
        q: [H, T, Dh]. k, v: [H, S, Dh].
        spans: the rows; their queries cover 0..T in order. A row's queries attend to its past entries and its keys.
        past: keys and values [H, P, Dh] that several rows may share; None when no span has past entries.

    Returns:
        [H, T, Dh].
    """
    rows = []
    for (q0, q1), own, old in spans:
        keys, values = _joined(k, past and past[0], own, old), _joined(v, past and past[1], own, old)
        rows.append(attention_reference(q[None, :, q0:q1], keys[None], values[None])[0])
    return torch.cat(rows, dim=1)


def ragged_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], past: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Same contract as :func:`ragged_attention_reference`, by the fastest way on the device.

    On CPU the rows are run one after the other with a backward pass of our own, which keeps only the probabilities and
    adds the gradients of shared past entries in place. In bf16 without gradients each row is one fused call: matrix products
    there would compile, and keep, a kernel for the lengths of every row. Elsewhere the rows are padded into one fused call.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        return _fused_by_row(q, k, v, spans, past)
    if q.device.type == "cpu":
        return _ByRow.apply(q, k, v, *(past or (None, None)), tuple(spans))  # type: ignore[no-untyped-call]
    return _padded(q, k, v, spans, past)


def _joined(own: Tensor, past: Tensor | None, span: tuple[int, int], old: tuple[int, int]) -> Tensor:
    """[H, past + own, Dh] keys or values of one row."""
    here = own[:, span[0] : span[1]]
    return here if past is None or old[0] == old[1] else torch.cat((past[:, old[0] : old[1]], here), dim=1)


def _fused_by_row(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], past: tuple[Tensor, Tensor] | None) -> Tensor:
    """One fused call per row."""
    past_k, past_v = past or (None, None)
    out = torch.empty_like(q)
    for (q0, q1), own, old in spans:
        keys, values = _joined(k, past_k, own, old), _joined(v, past_v, own, old)
        out[:, q0:q1] = F.scaled_dot_product_attention(q[None, :, q0:q1], keys[None], values[None])[0]
    return out


class _ByRow(torch.autograd.Function):
    """One matrix product per row and head; softmax over the row's own keys only."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, past_k: Tensor | None, past_v: Tensor | None, spans: tuple[Span, ...]) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        out = torch.empty_like(q)
        weights = []
        for (q0, q1), own, old in spans:
            keys, values = _joined(k, past_k, own, old), _joined(v, past_v, own, old)
            weight = torch.softmax(q[:, q0:q1] @ keys.transpose(1, 2), dim=-1)
            out[:, q0:q1] = weight @ values
            weights.append(weight)
        ctx.spans, ctx.has_past = spans, past_k is not None
        ctx.save_for_backward(q, k, v, *((past_k, past_v) if past_k is not None else ()), *weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *rest = ctx.saved_tensors
        past_k, past_v = (rest[0], rest[1]) if ctx.has_past else (None, None)
        weights = rest[2:] if ctx.has_past else rest
        # rows share past entries, and padding entries belong to no row: gradients add up from zero
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dpk, dpv = (None, None) if past_k is None else (torch.zeros_like(past_k, dtype=torch.float32), torch.zeros_like(past_k, dtype=torch.float32))
        for ((q0, q1), own, old), weight in zip(ctx.spans, weights, strict=True):
            keys, values = _joined(k, past_k, own, old), _joined(v, past_v, own, old)
            here = grad[:, q0:q1]
            dscore = torch._softmax_backward_data(here @ values.transpose(1, 2), weight, -1, weight.dtype)
            dq[:, q0:q1] = dscore @ keys
            n = 0 if past_k is None else old[1] - old[0]
            for total, shared, part in ((dv, dpv, weight.transpose(1, 2) @ here), (dk, dpk, dscore.transpose(1, 2) @ q[:, q0:q1])):
                total[:, own[0] : own[1]] += part[:, n:]
                if shared is not None:
                    shared[:, old[0] : old[1]] += part[:, :n]
        if dpk is not None and dpv is not None:
            dpk, dpv = dpk.to(k.dtype), dpv.to(v.dtype)
        return dq * q.shape[-1] ** -0.5, dk, dv, dpk, dpv, None


def _padded(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], past: tuple[Tensor, Tensor] | None) -> Tensor:
    """All rows in one call, filled up to the longest; a mask hides the filling."""
    if past is not None:  # past entries first, then own keys, as one pool to gather from
        k, v = torch.cat((past[0], k), dim=1), torch.cat((past[1], v), dim=1)
    shift = 0 if past is None else past[0].shape[1]
    queries = [torch.arange(a, b, device=q.device) for (a, b), _, _ in spans]
    sources = [
        torch.cat((torch.arange(*old, device=q.device), torch.arange(own[0] + shift, own[1] + shift, device=q.device))) for _, own, old in spans
    ]
    rows = torch.nn.utils.rnn.pad_sequence(queries, batch_first=True, padding_value=-1)  # [N, L]
    pool = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=-1)  # [N, S]
    keys, values = (t[:, pool.clamp_min(0)].transpose(0, 1) for t in (k, v))  # [N, H, S, Dh]
    mixed = F.scaled_dot_product_attention(q[:, rows.clamp_min(0)].transpose(0, 1), keys, values, attn_mask=(pool >= 0)[:, None, None])
    return mixed.transpose(0, 1)[:, rows >= 0]  # [H, T, Dh]
