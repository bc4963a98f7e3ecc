"""Linear maps in bf16 on the CPU, whose number of rows is another one at every call.

oneDNN compiles a kernel for every shape it meets and keeps it: a millisecond, and about half a megabyte, for each number of
rows. Here rows are filled up to one of few numbers. The results are the same to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Rows are filled up to multiples of this, fewer ones to powers of two from LEAST on.
ROWS, LEAST = 64, 8


def filled(rows: int) -> int:
    """The number of rows that is computed for `rows`."""
    return -(-rows // ROWS) * ROWS if rows > ROWS else max(LEAST, 1 << (rows - 1).bit_length())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., D] times weight [E, D] transposed, plus bias [E]: [..., E]."""
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or torch.is_grad_enabled() or not x.numel():
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    more = filled(rows) - rows
    if not more:
        return F.linear(x, weight, bias)
    full = F.linear(F.pad(x.reshape(rows, -1), (0, 0, 0, more)), weight, bias)
    return full[:rows].view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """:func:`linear` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return linear(input, self.weight, self.bias)
