"""Copy head: cells of a slot point at entries of the prefix, look at them, and may take over the tokens found there.

After a block in the middle of the backbone every slot cell attends over the prefix entries that can be pointed at. What
it finds there is added to its state, so that the remaining blocks work on what was read; the same attention's token
distribution is added to the output logits with a gate, so that the language model can still overrule a misread character.
Pointer network: arXiv:1506.03134; pointer-generator: arXiv:1704.04368, here in logit space.

Values stand in one piece on a page. So the pointer has a prior: where the slot's first cell thinks the value starts,
moved on by the cell's place in the slot. One guess then serves all cells of a slot, and one slot teaches it many times.
In numbers the pointer moves over digits, points and signs only. A cell is also told how many blanks, gaps and row ends lie
between the start and the place it points at, since values end at one, and how good the best start is, since there may be
none.

Supervising the attention with the true places (:mod:`vlm.training`) is what makes a small model look at the picture at
all; the same attention says where a field was read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.linear import Linear

#: Log-probability that the prior gives at least, so that a cell of its own opinion can always win.
FLOOR = -10.0
#: By how much the guess of a slot's start is sharpened when answers are decoded: cells that decide at the same time should
#: follow one guess, not the mean of two. Learning wants the soft one.
DECIDED = 5.0
#: How many times, when answers are decoded, slots that would start at the same entry give way to the likelier one. A slot that is
#: nearly sure keeps its start after three (of 72 documents' facts asked under two names, 68 were still given twice).
ROUNDS = 3
#: Kinds of breaks that are counted, and up to how many.
BREAKS, MOST_BREAKS = 3, 3
#: Figures about a slot's start: best hint, hint where it starts, its greatest and its 'nowhere' probability, best label.
EVIDENCE = 5


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
        numeric: [B, P] entries that a number is written with.
        breaks: [B, P, BREAKS] float32, how many breaks of each kind (blanks, gaps, row ends) lie before each entry.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    tokens: Tensor
    numeric: Tensor
    breaks: Tensor

    def select(self, rows: Tensor) -> CopyMemory:
        """The given rows, [n] long."""
        return CopyMemory(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass
class Pointing:
    """Where n cells point.

    Attributes:
        scores: [n, P + 1] logits; the last column means 'copied from nowhere'.
        copied: [n, V] probability that the token is copied from the place pointed at.
        start: [S, P + 1] log-probability of where each slot starts.
    """

    scores: Tensor
    copied: Tensor
    start: Tensor


@dataclass
class Chain:
    """How slots of an array hang together.

    Attributes:
        before: [S] the slot of the same key in the item before, -1 for none. item: [S] 1 + place in the array, 0 outside.
        over: [P] entry that begins the word above the word that begins here, -1 for none.
    """

    before: Tensor
    item: Tensor
    over: Tensor


class CopyHead(nn.Module):
    """Pointer over prefix entries.

    Args:
        hidden: width D of the backbone.
        config: sizes.
    """

    def __init__(self, hidden: int, config: CopyHeadConfig) -> None:
        super().__init__()
        self.query = Linear(hidden, config.key_dim, bias=False)
        self.start_query = Linear(hidden, config.key_dim, bias=False)
        self.key = Linear(hidden, config.key_dim, bias=False)
        self.value = Linear(hidden, hidden, bias=False)
        self.crossed = Linear(BREAKS * MOST_BREAKS, hidden, bias=False)
        self.begun = Linear(hidden, hidden, bias=False)  # of what stands where the slot starts
        self.evidence = Linear(EVIDENCE, hidden)
        self.absent = nn.Parameter(torch.tensor([2.0, -0.7, -2.0]))  # of 'nowhere' as a start: constant, slope in the best hint, in the best label
        self.below = nn.Parameter(torch.tensor([3.0, 2.0]))  # of what stands under the item before, of 'nowhere' behind 'nowhere'
        self.nowhere = nn.Parameter(torch.empty(config.key_dim))
        self.gain = nn.Parameter(torch.tensor([2.0, 3.0]))  # of the cell's own query and of the start query
        self.prior = nn.Parameter(torch.tensor(1.0))
        self.gate = Linear(hidden, 1)
        nn.init.normal_(self.nowhere, std=0.5)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, config.boost)

    def memory(self, hidden: Tensor, valid: Tensor, tokens: Tensor, numeric: Tensor, breaks: Tensor) -> CopyMemory:
        """Keys and values of the prefix: `hidden` [B, P, D], the rest as in :class:`CopyMemory`."""
        key = self.key(hidden)
        return CopyMemory(F.rms_norm(key, key.shape[-1:]), self.value(hidden), valid, tokens, numeric, breaks)

    def point(
        self, hidden: Tensor, place: Tensor, memory: CopyMemory, row: int, hint: Tensor, label: Tensor, number: Tensor,
        keyed: Tensor, chain: Chain,
    ) -> tuple[Pointing, Tensor]:
        """Point from n cells of slots that stand one after the other, all behind prefix row `row`.

        Args:
            hidden: [n, D] states of the cells, slots from first to last cell.
            place: [n] place of each cell in its slot, from 0.
            hint: [S, P] what else is known of where each slot starts, added to its logits; 0 where nothing is.
            label: [S] how well the best label on the page spells the slot's key, 0..1.
            number: [S] slots of numbers. keyed: [S] slots of a schema; free text seldom is one piece of the page: its cells
                have the prior only as far as it starts on the page.
            chain: slots of arrays help each other: an item stands under the one before it.

        Returns:
            where they point, and what to add to their states [n, D] (without the copied token, which the caller embeds).
        """
        keys, valid = memory.keys[row], memory.valid[row]
        first = place == 0
        slot = first.long().cumsum(0) - 1
        own = self._logits(self.query(hidden), self.gain[0], keys, valid)  # [n, P+1]
        start, evidence = self._start(hidden[first], hint, label, keys, valid, chain)
        held = torch.where(keyed, 1.0, 1 - start[:, -1].exp())[slot].unsqueeze(1)
        guess = start if self.training else torch.log_softmax(start * DECIDED, dim=-1)
        scores = own + self.prior * held * self._moved(guess.clamp_min(FLOOR), slot, place, number, memory.numeric[row])
        attention = torch.softmax(scores, dim=-1)
        seen = attention[:, :-1].to(memory.values.dtype)
        crossed = _expected(attention, memory.breaks[row]) - _expected(start.exp(), memory.breaks[row])[slot]  # [n, BREAKS]
        steps = torch.arange(MOST_BREAKS, device=crossed.device)
        told = self.crossed((crossed.unsqueeze(-1) - steps).clamp(0, 1).flatten(1).to(seen.dtype))
        begun = start.exp()[:, :-1].to(seen.dtype) @ memory.values[row]
        told = told + (self.evidence(evidence.to(seen.dtype)) + self.begun(begun))[slot]
        pointing = Pointing(scores, (seen @ memory.tokens[row].to(seen.dtype)).float(), start)
        return pointing, seen @ memory.values[row] + told

    def _start(self, hidden: Tensor, hint: Tensor, label: Tensor, keys: Tensor, valid: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
        """Log-probabilities [S, P + 1] of where slots start, and the figures [S, EVIDENCE] about them."""
        hint = hint.masked_fill(~valid, 0.0)
        best = hint.amax(-1).clamp_min(0) if hint.shape[1] else hint.new_zeros(len(hint))
        nowhere = self.absent[0] + self.absent[1] * best + self.absent[2] * label
        logits = self._logits(self.start_query(hidden), self.gain[1], keys, valid) + torch.cat((hint, nowhere.unsqueeze(1)), dim=1)
        start = torch.log_softmax(self._chained(logits, chain), dim=-1)
        if not self.training:
            start = settled(start)
        share = start.exp()
        there = (share[:, :-1] * hint).sum(-1)
        figures = torch.stack((best / 5, there / 5, share[:, :-1].amax(-1) if hint.shape[1] else best, share[:, -1], label), dim=-1)
        return start, figures

    def _chained(self, logits: Tensor, chain: Chain) -> Tensor:
        """Logits [S, P + 1] of starts, from the first item of an array to its last: more for what stands under the start of
        the item before, and for 'nowhere' behind the end of the array. Items learn from what is before them, not back."""
        linked = chain.before >= 0
        if not bool(linked.any()):
            return logits
        under = chain.over >= 0
        over = chain.over.clamp_min(0)
        for item in range(2, int(chain.item.max()) + 1):
            here = (linked & (chain.item == item)).nonzero(as_tuple=True)[0]
            if not len(here):
                continue
            share = torch.softmax(logits[chain.before[here]].detach(), dim=-1)
            more = torch.cat((share[:, over] * under * self.below[0], share[:, -1:] * self.below[1]), dim=1)
            logits = logits.index_add(0, here, more)
        return logits

    @staticmethod
    def _moved(start: Tensor, slot: Tensor, place: Tensor, number: Tensor, numeric: Tensor) -> Tensor:
        """The prior [n, P + 1] of all cells: over all entries, or in numbers over the numeric ones."""
        out = shifted(start, slot, place)
        cells = number[slot]
        columns = numeric.nonzero(as_tuple=True)[0]
        if not bool(cells.any()) or not len(columns):
            return out
        columns = torch.cat((columns, columns.new_tensor([start.shape[1] - 1])))
        inner = shifted(start.index_select(1, columns), slot[cells], place[cells])
        whole = inner.new_full((len(inner), start.shape[1]), FLOOR).index_copy(1, columns, inner)
        return out.index_copy(0, cells.nonzero(as_tuple=True)[0], whole)

    def _logits(self, query: Tensor, gain: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
        query = F.rms_norm(query, query.shape[-1:]) * (gain * query.shape[-1] ** -0.5)
        nowhere = F.rms_norm(self.nowhere, self.nowhere.shape).to(query.dtype)
        scores = (query @ keys.to(query.dtype).T).float().masked_fill(~valid, float("-inf"))
        return torch.cat((scores, (query @ nowhere).float().unsqueeze(-1)), dim=-1)

    def bonus(self, hidden: Tensor, copied: Tensor) -> Tensor:
        """What to add to the logits of cells: gate * copied, [n, V], from final states [n, D]."""
        return copied * F.softplus(self.gate(hidden).float())


def settled(start: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Starts [S, P + 1] (log-probabilities) after slots gave way to each other: a value is seldom the answer to two questions.

    In each round a slot's odds of starting at an entry are divided by one plus what the likelier slots claim of it; 'nowhere',
    the last column, is for everyone.
    """
    for _ in range(rounds):
        ordered, order = start[:, :-1].exp().sort(dim=0, descending=True)
        before = torch.zeros_like(ordered).scatter(0, order, ordered.cumsum(0) - ordered)
        start = torch.log_softmax(torch.cat((start[:, :-1] - before.log1p(), start[:, -1:]), dim=1), dim=-1)
    return start


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


def _expected(attention: Tensor, values: Tensor) -> Tensor:
    """Mean of `values` [P, n] under an attention [m, P + 1], 'nowhere' left out; in float32, since the values are large."""
    share = attention[:, :-1].float()
    with torch.autocast(share.device.type, enabled=False):
        return share @ values / share.sum(-1, keepdim=True).clamp_min(1e-6)
