"""What prompt and page have in common."""

from __future__ import annotations

import torch

from vision.mentions import MOST, Mentions
from vision.words import ROLES, WordEmbedding, rows_of


def told(prompts, pages):
    """(features of the prompts' words, of the pages' words), through layers that pass them on; pages are phrases of words."""
    torch.manual_seed(0)
    embed, mentions = WordEmbedding(64), Mentions(64)
    seen: list[torch.Tensor] = []
    mentions.seen.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    mentions.around.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    prompt = torch.from_numpy(rows_of([word for p in prompts for word in p.split()]))
    prompt_row = torch.tensor([-1, *(row for row, p in enumerate(prompts) for _ in p.split())])
    words, lead, row = [], [0], [-1]
    for number, page in enumerate(pages):
        for phrase in page:
            start = len(words) + 1
            for word in phrase.split():
                words.append(word)
                lead.append(start)
                row.append(number)
    roles = torch.zeros(len(words) + 1, ROLES, dtype=torch.long)
    roles[:, 0] = torch.arange(len(words) + 1)
    nothing = torch.zeros(1, prompt.shape[1], dtype=torch.long)
    vectors = [embed(torch.cat((nothing, rows))) for rows in (prompt, torch.from_numpy(rows_of(words)))]
    mentions(vectors[0], prompt_row, vectors[1], roles, torch.tensor(lead), torch.tensor(row))
    around, said = seen
    return said[1:], around[1:, 0]


def test_words_are_counted_on_their_own_page_only():
    said, around = told(["is there a black circle", "how many circles"], [["red circle", "black square", "blue circle"], ["black circle", "red square"]])
    alone, together = said[:, 1 : 1 + MOST], said[:, 1 + MOST : 1 + 2 * MOST]
    assert said[3, 0] > 0.99 and alone[3].sum() == 1 and alone[4].sum() == 2  # black, circle
    assert together[3].sum() == 0  # no black circle there
    assert said[:3, 0].max() < 0.5 and alone[:3].sum() == 0
    assert alone[7].sum() == 1  # a plural, on the second page
    assert (around > 0.99).tolist() == [False, True, True, False, False, True, False, False, False, False]


def test_words_that_stand_together_are_told():
    said, _ = told(["is there a black circle"], [["black circle", "black square"]])
    assert said[3, 1 + MOST : 1 + 2 * MOST].sum() == 1 and said[4, 1 + 2 * MOST :].sum() == 1
    broken, _ = told(["is there a black circle"], [["red black", "circle"]])
    assert broken[:, 1 + MOST :].sum() == 0  # two phrases


def test_says_nothing_at_first():
    mentions = Mentions(8)
    out = mentions(torch.randn(3, 8), torch.tensor([-1, 0, 0]), torch.randn(2, 8), torch.tensor([[0] * ROLES, [1] + [0] * (ROLES - 1)]), torch.tensor([0, 1]), torch.tensor([-1, 0]))
    assert all(not part.any() for part in out)
