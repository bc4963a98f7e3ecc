"""Mentions: which words of a prompt stand on the page, and which words of the page the prompt speaks of.

"Is there a black shape?" asks whether a word stands on the page; "press the Save button" asks for the widget whose words
are said. A small model would have to learn comparing all words of one with all of the other; here words are compared by
their vectors (:mod:`vision.words`), so equal words are found before anything is learned, and both sides are told: a
word of the prompt how often it is there, alone and together with its neighbours, a holder of the page which of the words
around it are mentioned. Both parts begin by saying nothing (zero weights).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vision.words import ROLES

#: Occurrences that are told apart.
MOST = 6
#: Cosines between which two words go from different to equal; plurals share about two thirds of their features.
UNLIKE, LIKE = 0.45, 0.62
#: Width of the layer that combines what is mentioned around a holder.
INNER = 64


class Mentions(nn.Module):
    """What prompt and page have in common, as additions to their embeddings.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.seen = nn.Linear(1 + 3 * MOST, hidden, bias=False)
        self.around = nn.Linear(2 * ROLES, INNER)
        self.told = nn.Linear(INNER, hidden, bias=False)
        for layer in (self.seen, self.told):
            nn.init.zeros_(layer.weight)

    def forward(self, prompt: Tensor, prompt_row: Tensor, words: Tensor, roles: Tensor, lead: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Compare.

        Args:
            prompt: [Q, D] vectors of the words of all prompts, in order; prompt_row: [Q] the prompt each is of, -1 for none.
            words: [W, D] vectors of the words of all pages, in order. roles: [H, ROLES] and lead: [H] of their holders
                (:class:`vision.words.Lexicon`); row: [H] the prompt whose page a holder is of, -1 for none.

        Returns:
            additions for the words of prompts [Q, D] and for holders [H, D].
        """
        own = roles[:, 0]
        of_word, phrase = torch.full_like(words[:, 0], -2, dtype=torch.long), torch.zeros_like(words[:, 0], dtype=torch.long)
        of_word[own], phrase[own] = torch.where(own > 0, row, -2), lead  # entry 0 is no word
        words, prompt = (torch.nn.functional.normalize(t.float(), dim=-1, eps=1e-4) for t in (words, prompt))
        alike = torch.relu(words @ prompt.T) * (of_word.unsqueeze(1) == prompt_row)  # [W, Q]
        said = alike.amax(1)[roles]  # [H, ROLES]
        around = torch.relu(self.around(torch.cat((said, (roles > 0) * (1 - said)), dim=1)))
        equal = ((alike - UNLIKE) / (LIKE - UNLIKE)).clamp(0, 1)
        together = torch.zeros_like(equal)  # word w and the next of its phrase are word q and the next of its prompt
        follows = (phrase[1:] == phrase[:-1]) & (phrase[1:] > 0)
        together[:-1, :-1] = torch.minimum(equal[:-1, :-1], equal[1:, 1:]) * follows.unsqueeze(1)
        before = torch.nn.functional.pad(together[:, :-1], (1, 0))
        counts = torch.stack((equal.sum(0), together.sum(0), before.sum(0)), dim=1).unsqueeze(-1)  # [Q, 3, 1]
        steps = torch.arange(MOST, device=counts.device)
        told = torch.cat((alike.amax(0).unsqueeze(1), (counts - steps).clamp(0, 1).flatten(1)), dim=1)
        return self.seen(told), self.told(around)
