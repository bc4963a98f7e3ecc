"""Copy head: cells of a slot point at entries of the prefix, look at them, and may take over the tokens found there.

After a block in the middle of the backbone every slot cell attends over the prefix entries that can be pointed at. What
it finds there is added to its state, so that the remaining blocks work on what was read; the same attention's token
distribution is added to the output logits with a gate, so that the language model can still overrule a misread character.
Pointer network: arXiv:1506.03134; pointer-generator: arXiv:1704.04368, here in logit space.

Values stand in one piece on a page. So the pointer has a prior: where the slot's first cell thinks the value starts,
moved on by the cell's place in the slot. One guess then serves all cells of a slot, and one slot teaches it many times.

Supervising the attention with the true places (:mod:`vlm.training`) is what makes a small model look at the picture at
all; the same attention says where a field was read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Log-probability that the prior gives at least, so that a cell of its own opinion can always win.
FLOOR = -10.0


@dataclass(frozen=True)
class CopyHeadConfig:
    """Sizes of a :class:`CopyHead`.

    Attributes:
        key_dim: of queries and keys. boost: the gate's first value in nats.
        layer: number of blocks before the cells point.
    """

    key_dim: int = 128
    boost: float = 6.0
    layer: int = 3


@dataclass
class CopyMemory:
    """What can be pointed at: P prefix entries per row.

    Attributes:
        keys: [B, P, key_dim] normalised. values: [B, P, D] what a cell takes along from an entry.
        valid: [B, P] entries that may be pointed at (visual ones).
        tokens: [B, P, V] probability of each token at each entry; all zero where nothing can be copied.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    tokens: Tensor

    def select(self, rows: Tensor) -> CopyMemory:
        """The given rows, [n] long."""
        return CopyMemory(self.keys[rows], self.values[rows], self.valid[rows], self.tokens[rows])


@dataclass
class Pointing:
    """Where n cells point.

    Attributes:
        scores: [n, P + 1] logits; the last column means 'copied from nowhere'.
        copied: [n, V] probability that the token is copied from the place pointed at.
    """

    scores: Tensor
    copied: Tensor


class CopyHead(nn.Module):
    """Pointer over prefix entries.

    Args:
        hidden: width D of the backbone.
        config: sizes.
    """

    def __init__(self, hidden: int, config: CopyHeadConfig) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, config.key_dim, bias=False)
        self.start_query = nn.Linear(hidden, config.key_dim, bias=False)
        self.key = nn.Linear(hidden, config.key_dim, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.nowhere = nn.Parameter(torch.randn(config.key_dim) * 0.5)
        self.gain = nn.Parameter(torch.tensor([2.0, 3.0]))  # of the cell's own query and of the start query
        self.prior = nn.Parameter(torch.tensor(1.0))
        self.gate = nn.Linear(hidden, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, config.boost)

    def memory(self, hidden: Tensor, valid: Tensor, tokens: Tensor) -> CopyMemory:
        """Keys and values of the prefix: `hidden` [B, P, D], `valid` [B, P], `tokens` [B, P, V]."""
        key = self.key(hidden)
        return CopyMemory(F.rms_norm(key, key.shape[-1:]), self.value(hidden), valid, tokens)

    def point(self, hidden: Tensor, place: Tensor, memory: CopyMemory, row: int) -> tuple[Pointing, Tensor]:
        """Point from n cells of slots that stand one after the other, all behind prefix row `row`.

        Args:
            hidden: [n, D] states of the cells, slots from first to last cell.
            place: [n] place of each cell in its slot, from 0.

        Returns:
            where they point, and what to add to their states [n, D] (values only; the caller embeds the copied token).
        """
        keys, valid = memory.keys[row], memory.valid[row]
        first = place == 0
        own = self._logits(self.query(hidden), self.gain[0], keys, valid)  # [n, P+1]
        start = torch.log_softmax(self._logits(self.start_query(hidden[first]), self.gain[1], keys, valid), dim=-1).clamp_min(FLOOR)
        scores = own + self.prior * shifted(start, first.long().cumsum(0) - 1, place)
        attention = torch.softmax(scores, dim=-1)
        seen = attention[:, :-1].to(memory.values.dtype)
        return Pointing(scores, (seen @ memory.tokens[row].to(seen.dtype)).float()), seen @ memory.values[row]

    def _logits(self, query: Tensor, gain: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
        query = F.rms_norm(query, query.shape[-1:]) * (gain * query.shape[-1] ** -0.5)
        nowhere = F.rms_norm(self.nowhere, self.nowhere.shape).to(query.dtype)
        scores = (query @ keys.to(query.dtype).T).float().masked_fill(~valid, float("-inf"))
        return torch.cat((scores, (query @ nowhere).float().unsqueeze(-1)), dim=-1)

    def bonus(self, hidden: Tensor, copied: Tensor) -> Tensor:
        """What to add to the logits of cells: gate * copied, [n, V], from final states [n, D]."""
        return copied * F.softplus(self.gate(hidden).float())


def shifted(start: Tensor, slot: Tensor, place: Tensor) -> Tensor:
    """The start's log-probabilities moved along the prefix: [n, P + 1].

    Args:
        start: [S, P + 1] of each slot; the last column ('nowhere') does not move. slot, place: [n] of each cell.
    """
    if not len(place):
        return start.new_zeros(0, start.shape[1])
    entries = start.shape[1] - 1
    longest = int(place.max())
    padded = torch.cat((start.new_full((len(start), longest), FLOOR), start), dim=1)  # [S, longest + P + 1]
    index = torch.arange(entries + 1, device=start.device) + (longest - place).unsqueeze(1)  # [n, P + 1]
    index[:, -1] = longest + entries
    return padded.index_select(0, slot).gather(1, index)
