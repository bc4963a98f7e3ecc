"""The exact prefix cache: keys and values of prompt and media, computed once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class PrefixCache:
    """Keys and values of P prefix entries for each layer.

    Exact because the prefix attends only to itself (prefix-LM rule): nothing on the canvas can change it.

    Attributes:
        keys, values: one [B, Hkv, P, Dh] per layer, keys rotated already.
        valid: [B, P]; positions: [B, P].
        hidden: [B, P, D] after the final norm (the copy head and the shifted first logit read it).
    """

    keys: list[Tensor]
    values: list[Tensor]
    valid: Tensor
    positions: Tensor
    hidden: Tensor

    def select(self, rows: Tensor) -> PrefixCache:
        """The given rows ([n] indices)."""
        keys, values = ([t[rows.to(t.device)] for t in tensors] for tensors in (self.keys, self.values))  # each on the device of its block
        return PrefixCache(keys, values, self.valid[rows], self.positions[rows], self.hidden[rows])

    def repeat_interleave(self, n: int) -> PrefixCache:
        """Each row `n` times in a row."""
        return PrefixCache(
            [k.repeat_interleave(n, 0) for k in self.keys], [v.repeat_interleave(n, 0) for v in self.values],
            self.valid.repeat_interleave(n, 0), self.positions.repeat_interleave(n, 0), self.hidden.repeat_interleave(n, 0),
        )  # fmt: skip
