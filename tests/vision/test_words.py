"""What words know of each other, and where a key says that a value is."""

from __future__ import annotations

import numpy as np
import torch

from vision.words import FEATURES, Lexicon, WordEmbedding, WordMatch, features_of
from vlm.backbone.slots import KEY_WORDS


def page(lines, spelled=()):
    """A lexicon of segments on a grid: `lines` of {x: words}, twenty pixels apart, names of things first."""
    chars, boxes, row, named, gaps = [], [], [], [], []
    for number, line in enumerate([*({0: name} for name in spelled), *lines]):
        name = number < len(spelled)
        for left, words in line.items():
            for i, char in enumerate(words + " "):
                chars.append(char.strip())
                gaps.append(i == len(words))
                x = left + i * 10
                boxes.append([x, number * 20, x + 8, number * 20 + 12])
                row.append(number)
                named.append(name)
    lexicon = Lexicon.of(chars, np.array(boxes, np.float32), np.array(row), np.zeros(len(chars), bool), np.array(gaps), np.array(named))
    words = ["", *"".join(c or " " for c in chars).split()]
    return lexicon, words


def match(lexicon, key, item):
    torch.manual_seed(0)
    embed, matcher = WordEmbedding(32), WordMatch(KEY_WORDS)
    keys = np.zeros((1, KEY_WORDS, FEATURES), np.int64)
    keys[0, 0] = features_of(key)
    labels = {name: torch.from_numpy(getattr(lexicon, name)) for name in ("roles", "lead", "left", "above", "ordinal")}
    return matcher(embed(torch.from_numpy(keys)), torch.tensor([item]), embed(torch.from_numpy(lexicon.rows)), labels)


def test_items_stand_below_their_head_whatever_is_above_it():
    lines = [{0: "Members of it"}, {0: "full name", 200: "price"}, {0: "ann", 220: "11"}, {0: "bob", 190: "22222"}, {0: "cid d", 220: "33"}]
    lexicon, words = page(lines)
    for item, word in enumerate(("ann", "bob", "cid"), 1):
        assert words[int(match(lexicon, "name", item).hint.argmax())] == word
    for item, word in enumerate(("11", "22222", "33"), 1):
        assert words[int(match(lexicon, "price", item).hint.argmax())] == word


def test_names_of_things_stand_under_each_other_in_their_order():
    lexicon, words = page([{0: "text"}], spelled=("red circle", "blue square", "red star"))
    place = {word: i for i, word in enumerate(words)}
    assert words[lexicon.above[place["star"]]] == "square" and words[lexicon.above[place["blue"]]] == "red"
    assert lexicon.above[1] == 0 and lexicon.ordinal[place["circle"]] == 1 and lexicon.ordinal[place["star"]] == 3
    assert lexicon.ordinal[place["text"]] == 0
    scores = match(lexicon, "colour", 2).hint[0]
    assert scores[place["blue"]] > scores[place["star"]] and scores[place["square"]] > scores[place["circle"]]


def test_whole_phrases_say_whether_a_key_is_on_the_page():
    lexicon, words = page([{0: "tax amount", 200: "7"}, {0: "net amount", 200: "9"}, {0: "seat"}, {0: "12 B"}])
    place = {word: i for i, word in enumerate(words)}
    asked = match(lexicon, "seat", 0)
    assert words[int(asked.hint.argmax())] == "12" and asked.label[0, place["12"]] > 0.99
    assert asked.label[0, place["B"]] == 0  # values start where phrases do
    assert match(lexicon, "gate", 0).label.max() < 0.7
    assert lexicon.left[place["7"]] == place["tax"] and lexicon.left[place["tax"]] == 0
