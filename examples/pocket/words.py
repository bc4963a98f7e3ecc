"""Made-up vocabularies: words, names, amounts, dates and codes. The held-out half never occurs in training."""

from __future__ import annotations

import datetime

import numpy as np

_ONSETS = "b c d f g h j k l m n p r s t v w y z br cl cr dr fl gr pl pr sh sk sl sp st th tr ch qu bl fr sn sw".split()
_VOWELS = "a e i o u a e i o ai ea ee ou oa io ie".split()
_CODAS = "  n r s t l m d k ng nd st rt ck sh ll ss rd mp x p b g f y".split(" ")


def syllable_word(rng: np.random.Generator, held_out: bool = False) -> str:
    """A pronounceable word; training and held-out words are disjoint (parity of a checksum of the letters)."""
    while True:
        count = int(rng.choice([1, 2, 2, 3, 3, 4]))
        word = "".join(
            _ONSETS[rng.integers(len(_ONSETS))] + _VOWELS[rng.integers(len(_VOWELS))] + (_CODAS[rng.integers(len(_CODAS))] if rng.random() < 0.5 else "")
            for _ in range(count)
        )
        if (sum(ord(c) * (i + 1) for i, c in enumerate(word)) % 10 < 2) == held_out:
            return word[:12]


def cased(word: str, rng: np.random.Generator) -> str:
    """The word in lower case, capitalised or upper case."""
    kind = rng.random()
    return word.upper() if kind < 0.4 else word.capitalize() if kind < 0.75 else word


def digits(rng: np.random.Generator, n: int) -> str:
    """`n` random digits."""
    return "".join(str(d) for d in rng.integers(0, 10, n))


def amount(rng: np.random.Generator, top: float = 4.0) -> str:
    """A price with two decimals, log-uniform up to 10**top, sometimes with thousands commas."""
    value = 10 ** rng.uniform(-0.3, top)
    return f"{value:,.2f}" if rng.random() < 0.5 else f"{value:.2f}"


_MONTHS = "January February March April May June July August September October November December".split()


def date(rng: np.random.Generator) -> tuple[str, str]:
    """A date as printed in one of many manners, and in ISO form."""
    day = datetime.date(1990, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 15000)))
    month = _MONTHS[day.month - 1]
    if rng.random() < 0.5:
        month = month[:3]
    if rng.random() < 0.3:
        month = month.upper()
    forms = [
        f"{day:%d/%m/%Y}", f"{day:%d-%m-%Y}", f"{day:%Y-%m-%d}", f"{day:%d.%m.%Y}", f"{day:%d/%m/%y}", f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}", f"{day:%d} {month} {day:%Y}", f"{day:%d-}{month}{day:-%Y}", f"{day:%Y/%m/%d}",
    ]  # fmt: skip
    return str(forms[rng.integers(len(forms))]), day.isoformat()


def code(rng: np.random.Generator) -> str:
    """An identifier of letters, digits and separators."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    alpha = "".join(letters[i] for i in rng.integers(0, 26, int(rng.integers(1, 4))))
    kind = rng.integers(6)
    n = int(rng.integers(3, 9))
    return [alpha + digits(rng, n), f"{alpha}-{digits(rng, n)}", digits(rng, n + 2), f"{digits(rng, 3)}-{digits(rng, n)}",
            f"#{digits(rng, n)}", f"{alpha}/{digits(rng, 2)}/{digits(rng, n)}"][kind]  # fmt: skip


_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~£€"


def anything(rng: np.random.Generator, held_out: bool = False) -> str:
    """A short piece of text of any kind, for reading practice."""
    kind = rng.random()
    if kind < 0.45:
        return " ".join(cased(syllable_word(rng, held_out), rng) for _ in range(rng.integers(1, 5)))
    if kind < 0.57:
        return str(rng.choice(["", "$", "RM ", "£", "€", "USD ", "-"])) + amount(rng)
    if kind < 0.65:
        return date(rng)[0]
    if kind < 0.75:
        return code(rng)
    if kind < 0.8:
        return f"{digits(rng, 2)}:{digits(rng, 2)}" + str(rng.choice(["", ":" + digits(rng, 2), " PM", " AM"]))
    if kind < 0.85:
        return f"{syllable_word(rng, held_out)}@{syllable_word(rng, held_out)}.{rng.choice(['com', 'org', 'net', 'io', 'my'])}"
    if kind < 0.93:
        word = cased(syllable_word(rng, held_out), rng)
        mark = _PUNCTUATION[rng.integers(len(_PUNCTUATION))]
        other = _PUNCTUATION[rng.integers(len(_PUNCTUATION))]
        return [f"{mark}{word}{other}", f"{word}{mark} {digits(rng, 2)}", f"({word})", f"{word}: {amount(rng)}", f"{word} & {word[::-1]}"][rng.integers(5)]
    pool = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" + _PUNCTUATION
    return "".join(pool[i] for i in rng.integers(0, len(pool), int(rng.integers(3, 14))))


def upper_or_not(text: str, rng: np.random.Generator) -> str:
    """Receipts shout: the text in upper case half of the time."""
    return text.upper() if rng.random() < 0.5 else text
