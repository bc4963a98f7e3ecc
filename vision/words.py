"""Words as features: what a word looks like to somebody who has never seen it.

A character-level model has to build words out of letters before it can see that the label "Invoice No" answers the key
"invoice_no". Hashed letter groups give it that for nothing: every word has a handful of features (itself, its first and
last letters, its skeleton of consonants), each a row of one learned table, so that equal words are equal vectors from the
first step and similar ones are similar. Hash embeddings of character n-grams: fastText (arXiv:1607.04606), CANINE
(arXiv:2103.06874).

Besides its own word, a character on a page knows the words before it on its row and the words above it: what a label is
to a value. A widget knows the words inside it, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

#: Rows of the table; row 0 is 'no feature'. FEATURES a word has.
BUCKETS, FEATURES = 4096, 6
#: Words a word is told about: its own, three before it (nearest first), three above it, three inside it (widgets), and
#: three of the head of its column (the word at the top of the lines it stands under, the one before and the one after).
BEFORE, ABOVE, INSIDE, HEAD = 3, 3, 3, 3
ROLES = 1 + BEFORE + ABOVE + INSIDE + HEAD
#: Words of a head that are compared with a key.
HEAD_WORDS = 3
#: Rows below the head of a column that are told apart.
DEPTHS = 20


@lru_cache(maxsize=65536)
def features_of(word: str) -> tuple[int, ...]:
    """FEATURES rows of the table for a word (letters or digits of one run), case ignored; numbers by length alone."""
    word = word.lower()
    if word.isdigit():
        names = ["number", f"number:{len(word)}"]
    else:
        bones = word[0] + "".join(c for c in word[1:] if c not in "aeiou")
        names = [f"={word}", f"2{word[:2]}", f"3{word[:3]}", f"4{word[:4]}", f"-{word[-3:]}", f"~{bones[:4]}"]
    rows = [1 + zlib.crc32(name.encode()) % (BUCKETS - 1) for name in names]
    return tuple(rows + [0] * (FEATURES - len(rows)))


def split_words(chars: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Words in a sequence of characters ('' is something else): runs of letters or digits, broken in camelCase.

    Returns:
        the words, and for each character the number of its word, -1 for none.
    """
    words: list[str] = []
    of = np.full(len(chars), -1, np.int64)
    before = ""
    for i, char in enumerate(chars):
        if not char.isalnum():
            before = ""
            continue
        joined = before and before.isdigit() == char.isdigit() and not (before.islower() and char.isupper())
        if joined:
            words[-1] += char
        else:
            words.append(char)
        of[i] = len(words) - 1
        before = char
    return words, of


def rows_of(words: Sequence[str]) -> NDArray[np.int64]:
    """[W, FEATURES] table rows."""
    return np.array([features_of(w) for w in words], np.int64).reshape(len(words), FEATURES)


@dataclass
class Lexicon:
    """Words of a page and which of them each holder is told about.

    Attributes:
        rows: [1 + W, FEATURES] table rows of the words; entry 0 is 'no word'.
        roles: [1 + N, ROLES] words (0: none) of each holder; holder 0 has none. Holders are words and widgets.
        holder: [K] holder of each entry of the page, 0 for none.
        depth: [1 + N] how many rows each holder lies below the head of its column, 0 for heads and widgets.
        lead: [1 + N] the first word of each word's phrase (a piece of a row without a gap or colon, the name of a thing), as a
            holder. left: [1 + N] the first word of the phrase before on the row.
        above: [1 + N] the word at the same place of the phrase above, which for names is the name of the thing before, as a
            holder. ordinal: [1 + N] 1 + number of the thing whose name a word is part of. 0 for none in all four.
    """

    rows: NDArray[np.int64]
    roles: NDArray[np.int64]
    holder: NDArray[np.int64]
    depth: NDArray[np.int64]
    lead: NDArray[np.int64]
    left: NDArray[np.int64]
    above: NDArray[np.int64]
    ordinal: NDArray[np.int64]

    @classmethod
    def of(
        cls, chars: Sequence[str], boxes: NDArray[np.float32], row: NDArray[np.int64], widget: NDArray[np.bool_],
        gap: NDArray[np.bool_], spelled: NDArray[np.bool_],
    ) -> Lexicon:  # fmt: skip
        """Find the words of a page and their neighbours.

        Args:
            chars: [K] character of each entry in reading order, '' for entries that are none.
            boxes: [K, 4]. row: [K] number of the entry's row, -1 for widgets. widget: [K] which entries are widgets.
            gap: [K] entries that end a phrase. spelled: [K] entries of the names of widgets; their row is the widget's number.
        """
        words, of = split_words(chars)
        count = len(words)
        widgets = np.flatnonzero(widget)
        holder = of + 1
        holder[widgets] = count + 1 + np.arange(len(widgets))
        roles = np.zeros((1 + count + len(widgets), ROLES), np.int64)
        rows = np.concatenate((np.zeros((1, FEATURES), np.int64), rows_of(words)))
        depth, lead, left, above, ordinal = (np.zeros(len(roles), np.int64) for _ in range(5))
        if count:
            place = _word_boxes(boxes, of, count)
            first = _first_of(of, count)
            roles[1 : count + 1, 0] = np.arange(1, count + 1)
            _before(roles, row[first], place)
            _above(roles, place, place, 1)
            _heads(roles, depth, row[first])
            _before_widgets(roles, boxes[widgets], place, count)
            _above(roles, boxes[widgets], place, count + 1)
            _inside(roles, boxes[widgets], place, count + 1)
            phrase = np.cumsum(gap)[first]  # of each word; a gap is no part of a word
            leads = np.concatenate(([True], phrase[1:] != phrase[:-1]))
            start = np.maximum.accumulate(np.where(leads, np.arange(count), 0))  # first word of each word's phrase
            lead[1 : count + 1] = start + 1
            heads, mine = np.flatnonzero(leads), np.cumsum(leads) - 1
            follows = np.concatenate(([False], row[first][heads[1:]] == row[first][heads[:-1]]))
            left[1 : count + 1] = np.where(follows, np.concatenate(([0], heads[:-1] + 1)), 0)[mine]
            over = _phrases_above(_word_boxes(place, mine, len(heads)), row[first][heads], spelled[first][heads])
            sizes = np.diff([*heads, count])
            behind = np.arange(count) - start  # place in the phrase
            has = (over[mine] >= 0) & (behind < sizes[over[mine]])
            above[1 : count + 1] = np.where(has, heads[over[mine]] + behind + 1, 0)
            names = spelled[first][heads]
            ordinal[1 : count + 1] = (np.cumsum(names) * names)[mine]
        return cls(rows, roles, holder, depth, lead, left, above, ordinal)


def _first_of(of: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    first = np.full(count, len(of), np.int64)
    seen = np.flatnonzero(of >= 0)
    np.minimum.at(first, of[seen], seen)
    return first


def _word_boxes(boxes: NDArray[np.float32], of: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    out = np.empty((count, 4), np.float32)
    out[:, :2], out[:, 2:] = np.inf, -np.inf
    seen = of >= 0
    np.minimum.at(out, (of[seen, None], np.array([[0, 1]])), boxes[seen, :2])
    np.maximum.at(out, (of[seen, None], np.array([[2, 3]])), boxes[seen, 2:])
    return out


def _before(roles: NDArray[np.int64], row: NDArray[np.int64], place: NDArray[np.float32]) -> None:
    """Words before each word on its row, in reading order."""
    count = len(row)
    for back in range(1, BEFORE + 1):
        same = np.zeros(count, bool)
        same[back:] = row[back:] == row[:-back]
        numbers = np.arange(count) + 1 - back
        roles[1 : count + 1, back] = np.where(same, numbers, 0)


def _above(roles: NDArray[np.int64], targets: NDArray[np.float32], place: NDArray[np.float32], start: int) -> None:
    """The nearest words above that begin near the target's left edge or cover it, with the words that follow them."""
    if not len(targets):
        return
    x0, y0, x1, _ = (t[:, None] for t in targets.T)
    px0, py0, px1, py1 = place.T
    height = np.maximum(py1 - py0, 1.0)
    middle = (py0 + py1) / 2
    gap = y0 - middle  # [T, W] from the word's middle to the target's top
    over = (gap > 0) & (gap < 3.2 * height) & (px0 < x1) & (px1 > x0)
    nearest = np.where(over, gap, np.inf).min(axis=1, keepdims=True)
    line = over & (gap < nearest + 0.5 * height)  # words of that one line
    order = np.where(line, px0, np.inf)
    found = np.argsort(order, axis=1, kind="stable")[:, :ABOVE]
    real = np.take_along_axis(line, found, axis=1)
    width = found.shape[1]
    roles[start : start + len(targets), 1 + BEFORE : 1 + BEFORE + width] = np.where(real, found + 1, 0)


def _heads(roles: NDArray[np.int64], depth: NDArray[np.int64], row: NDArray[np.int64]) -> None:
    """The head of each word's column: the last word that is reached by going from a word to the first one above it."""
    count = len(row)
    above = roles[: count + 1, 1 + BEFORE]
    head = np.where(above > 0, above, np.arange(count + 1))
    for _ in range(6):  # 2**6 lines
        head = head[head]
    lines = np.concatenate(([0], row))
    depth[1 : count + 1] = np.clip(lines[1:] - lines[head[1:]], 0, DEPTHS - 1)
    under = head[1:] != np.arange(1, count + 1)
    beside = np.stack((head[1:] - 1, head[1:], np.minimum(head[1:] + 1, count)), axis=1)
    same = (lines[beside] == lines[head[1:], None]) & (beside > 0) & under[:, None]
    roles[1 : count + 1, ROLES - HEAD :] = np.where(same, beside, 0)


def _phrases_above(place: NDArray[np.float32], row: NDArray[np.int64], name: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The phrase that each phrase (boxes [G, 4]) stands under, -1 for none: of the next row up that has any over it, at most
    three lines away, the one with most of it above. Names of things stand under the name before."""
    x0, y0, x1, _ = (t[:, None] for t in place.T)
    px0, py0, px1, py1 = place.T
    gap = y0 - (py0 + py1) / 2
    shared = np.minimum(x1, px1) - np.maximum(x0, px0)
    over = (gap > 0) & (gap < 3.2 * np.maximum(py1 - py0, 1.0)) & (shared > 0) & ~name
    nearest = np.where(over, row, -1).max(axis=1, keepdims=True)
    out = np.where(over & (row == nearest), shared, -1.0).argmax(axis=1)
    out = np.where(over.any(axis=1), out, -1)
    names = np.flatnonzero(name)
    out[names] = np.concatenate(([-1], names[:-1]))[: len(names)]
    return out


def _before_widgets(roles: NDArray[np.int64], boxes: NDArray[np.float32], place: NDArray[np.float32], count: int) -> None:
    """Words left of each widget on its height, nearest first; the words right of it where there are none (labels of boxes to tick)."""
    if not len(boxes):
        return
    x0, y0, x1, y1 = (t[:, None] for t in boxes.T)
    px0, py0, px1, py1 = place.T
    middle = (py0 + py1) / 2
    level = (middle > y0) & (middle < y1)
    left = np.where(level & (px1 <= x0 + 2), x0 - px1, np.inf)
    right = np.where(level & (px0 >= x1 - 2), px0 - x1, np.inf)
    distance = np.where(np.isfinite(left).any(axis=1, keepdims=True), left, right)
    found = np.argsort(distance, axis=1, kind="stable")[:, :BEFORE]
    real = np.isfinite(np.take_along_axis(distance, found, axis=1))
    roles[count + 1 : count + 1 + len(boxes), 1 : 1 + found.shape[1]] = np.where(real, found + 1, 0)


def _inside(roles: NDArray[np.int64], boxes: NDArray[np.float32], place: NDArray[np.float32], start: int) -> None:
    """The first words whose middle lies inside each widget."""
    if not len(boxes):
        return
    x0, y0, x1, y1 = (t[:, None] for t in boxes.T)
    px0, py0, px1, py1 = place.T
    cx, cy = (px0 + px1) / 2, (py0 + py1) / 2
    within = (cx > x0) & (cx < x1) & (cy > y0) & (cy < y1)
    order = np.where(within, np.arange(len(place)), len(place))
    found = np.sort(order, axis=1)[:, :INSIDE]
    roles[start : start + len(boxes), 1 + BEFORE + ABOVE : 1 + BEFORE + ABOVE + found.shape[1]] = np.where(found < len(place), found + 1, 0)


class WordEmbedding(nn.Module):
    """The table of word features.

    Args:
        hidden: width D of a vector.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(BUCKETS, hidden, padding_idx=0)
        nn.init.normal_(self.embed.weight, std=0.02)
        with torch.no_grad():
            self.embed.weight[0].zero_()

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors [..., D] of words given as table rows [..., FEATURES]; 'no word' is zero."""
        out: Tensor = self.embed(rows).sum(-2)
        return out


class RoleMixer(nn.Module):
    """Vectors of holders from the vectors of the words they are told about: one matrix for each role.

    Args:
        hidden: D. roles: number of roles.
    """

    def __init__(self, hidden: int, roles: int = ROLES) -> None:
        super().__init__()
        self.mix = nn.Linear(roles * hidden, hidden, bias=False)
        nn.init.normal_(self.mix.weight, std=hidden**-0.5)

    def forward(self, words: Tensor, roles: Tensor) -> Tensor:
        """[N, D] from words [W, D] and roles [N, ROLES] that index them."""
        out: Tensor = self.mix(words[roles].flatten(-2))
        return out


@dataclass
class Match:
    """Where S keys are spelled, among N holders.

    Attributes:
        hint: [S, N] how much speaks for a value that starts at a holder.
        label: [S, N] how well the holder's label spells the key: about 1 when it does, 0 when nothing does.
    """

    hint: Tensor
    label: Tensor


class WordMatch(nn.Module):
    """How well the words around a holder spell a key: what a label has in common with what is asked for.

    The similarity of two words is the cosine of their vectors, so equal words match before anything is learned; synonyms
    come to match as the table learns. Which word of the key should stand in which role is learned: one weight for each pair.
    Phrases are compared as wholes, too: the one before and the one above a phrase are what it may be the value of.

    In an array the value of item i stands i rows below a head that spells the key, or in the name of the i-th thing.

    Args:
        key_words: words of a key that are compared, last word first.
    """

    def __init__(self, key_words: int) -> None:
        super().__init__()
        weight = torch.zeros(key_words, ROLES)
        for i in range(min(key_words, BEFORE)):
            weight[i, 1 + i] = 2.0  # the words before a value, nearest first, are the key's words from the last one
        weight[:, 1 + BEFORE : 1 + BEFORE + ABOVE] = 0.7
        weight[:, 0] = -1.0  # the label itself is not the value
        self.weight = nn.Parameter(weight)
        self.phrase = nn.Parameter(torch.tensor([3.0, 2.5, -1.5]))  # of the phrase before, the phrase above, the phrase itself
        self.general = nn.Parameter(torch.tensor(0.15))  # of single words in arrays, where labels are heads
        self.head = nn.Parameter(torch.tensor(2.0))  # of a phrase whose head spells the key, and of its first word
        self.lead = nn.Parameter(torch.tensor(4.0))
        self.rows = nn.Parameter(torch.tensor([-2.0, -1.0, 2.0, -1.0, -2.0]))  # of things: two or more before the wanted one ... behind

    def forward(self, keys: Tensor, item: Tensor, words: Tensor, labels: Mapping[str, Tensor]) -> Match:
        """Match S keys with N holders.

        Args:
            keys: [S, KEY_WORDS, D]. item: [S] 1 + place in an array, 0 outside arrays.
            words: [W, D]. labels: roles [N, ROLES], lead, left, above and ordinal [N] of the holders (:class:`Lexicon`).
        """
        roles, lead, left, above, ordinal = (labels[n] for n in ("roles", "lead", "left", "above", "ordinal"))
        keys, words = (torch.nn.functional.normalize(t.float(), dim=-1, eps=1e-4) for t in (keys, words))
        alike = torch.relu(keys @ words.T)  # [S, KEY_WORDS, W]
        weighted = torch.einsum("skw,kr->srw", alike, self.weight)  # [S, ROLES, W]
        out: Tensor = weighted.gather(2, roles.T.expand(len(keys), -1, -1)).sum(1)
        first = (lead == torch.arange(len(lead), device=lead.device)) & (lead > 0)
        phrases = torch.zeros(len(lead), words.shape[1], device=words.device).index_add(0, lead, words[roles[:, 0]])
        whole = [torch.nn.functional.normalize(t, dim=-1, eps=1e-4) for t in (keys.sum(1), phrases)]
        spelled = torch.relu(whole[0] @ whole[1].T) * first  # [S, N]
        before, over = (spelled[:, t] * (t > 0) * first for t in (left, lead[above]))
        label = torch.maximum(before, over)
        single = out + self.phrase[0] * before + self.phrase[1] * over + self.phrase[2] * spelled
        inside = (item > 0).unsqueeze(1)
        if not bool(inside.any()):
            return Match(single, label)
        named = self._under_heads(alike[:, :2].amax(1), item, roles, lead, above)
        away = self.rows[(ordinal - item.unsqueeze(1)).clamp(-2, 2) + 2] * (ordinal > 0)
        listed = self.general * out + (self.head + self.lead * first) * named + away
        found = torch.maximum(named, (ordinal == item.unsqueeze(1)).to(named.dtype))
        return Match(torch.where(inside, listed, single), torch.where(inside, found, label))

    @staticmethod
    def _under_heads(alike: Tensor, item: Tensor, roles: Tensor, lead: Tensor, above: Tensor) -> Tensor:
        """[S, N] likeness [S, W] of the best word of the phrase that stands `item` [S] phrases above a holder."""
        ways = [lead]
        for _ in range(int(item.max())):
            ways.append(above[ways[-1]])
        head = torch.stack(ways)[item]  # [S, N] first word of it
        named = torch.zeros(head.shape, device=alike.device)
        for j in range(HEAD_WORDS):
            word = (head + j).clamp_max(len(lead) - 1)
            named = torch.maximum(named, alike.gather(1, roles[word, 0]) * ((head > 0) & (lead[word] == head)))
        return named
