"""The regular subset of `pattern`, as a finite automaton.

Supported: literals, `.`, classes with ranges and negation, `\\d \\w \\s \\D \\W \\S \\t \\n \\r \\f \\v \\xHH \\uHHHH`, escaped
punctuation, groups (plain, `?:`, named), alternation, `* + ? {m} {m,} {m,n}` (lazy forms alike), and the anchors
`^ $`. As JSON Schema demands, a pattern that is not anchored may match anywhere in the text. Look-around,
back-references, word boundaries and Unicode properties are refused.

Where the dialects of regular expressions differ, the smaller language is taken: `\\d` and `\\w` are ASCII, and so are
the negations `\\D \\W \\S`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vlm.errors import SchemaError
from vlm.structure.dfa import BEGIN, END, Dfa, Nfa, Ranges
from vlm.structure.dfa_cache import stored

LAST = 0x10FFFF
DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
DOT: Ranges = ((0x00, 0x09), (0x0B, 0x0C), (0x0E, 0x2027), (0x202A, LAST))
ANY: Ranges = ((0, LAST),)
PLAIN_ESCAPES = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
MAX_REPEAT = 1000


def complement(ranges: Ranges, last: int = LAST) -> Ranges:
    """Code points up to `last` that lie in none of the ranges."""
    out, here = [], 0
    for low, high in sorted(ranges):
        if low > here:
            out.append((here, min(low - 1, last)))
        here = max(here, high + 1)
    if here <= last:
        out.append((here, last))
    return out


def _ascii_not(ranges: Ranges) -> Ranges:
    return complement(ranges, 0x7F)


CLASSES: dict[str, Ranges] = {
    "d": DIGIT, "w": WORD, "s": SPACE, "D": _ascii_not(DIGIT), "W": _ascii_not(WORD), "S": _ascii_not(SPACE),
}  # fmt: skip


def check_pattern(pattern: Any, pointer: str = "") -> None:
    """SchemaError, at the pointer, for what is no pattern of the supported subset, or one that no text matches."""
    if not isinstance(pattern, str):
        raise SchemaError("pattern is no string", pointer=pointer)
    try:
        if pattern_dfa(pattern).is_empty:
            raise SchemaError(f"no text matches {pattern!r}")
    except SchemaError as error:
        raise SchemaError(error.message, pointer=pointer, remedy=error.remedy) from error


@lru_cache(maxsize=512)
def pattern_dfa(pattern: str) -> Dfa:
    """All texts in which the pattern is found; SchemaError when it is outside the subset."""
    return stored(f"pattern {pattern!r}", lambda: _found_anywhere(pattern))


def _found_anywhere(pattern: str) -> Dfa:
    nfa = Nfa()
    body = _Parser(pattern, nfa).parse()
    before = nfa.either([nfa.symbols(BEGIN, BEGIN), nfa.chain([nfa.symbols(BEGIN, BEGIN), nfa.star(nfa.chars(ANY))])])
    skip_before = nfa.either([before, nfa.empty()])  # an anchored pattern reads BEGIN itself
    after = nfa.either([nfa.symbols(END, END), nfa.chain([nfa.star(nfa.chars(ANY)), nfa.symbols(END, END)])])
    skip_after = nfa.either([after, nfa.empty()])
    entry, end = nfa.chain([skip_before, body, skip_after])
    return nfa.determinise(entry, end)


@lru_cache(maxsize=512)
def full_dfa(pattern: str) -> Dfa:
    """All texts that match a pattern as a whole."""
    nfa = Nfa()
    entry, end = nfa.chain([nfa.symbols(BEGIN, BEGIN), _Parser(pattern, nfa).parse(), nfa.symbols(END, END)])
    return nfa.determinise(entry, end)


@dataclass
class _Parser:
    """Recursive descent over one pattern, emitting fragments."""

    pattern: str
    nfa: Nfa
    at: int = 0
    depth: int = 0

    def parse(self) -> tuple[int, int]:
        """The fragment of the whole pattern."""
        found = self._alternation()
        if self.at < len(self.pattern):
            raise self._error("unbalanced ')'")
        return found

    def _error(self, message: str, remedy: str = "") -> SchemaError:
        return SchemaError(f"pattern {self.pattern!r}: {message} at character {self.at}", remedy=remedy)

    def _peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def _alternation(self) -> tuple[int, int]:
        self.depth += 1
        if self.depth > 50:
            raise self._error("nests too deeply")
        branches = [self._sequence()]
        while self._peek("|"):
            self.at += 1
            branches.append(self._sequence())
        self.depth -= 1
        return branches[0] if len(branches) == 1 else self.nfa.either(branches)

    def _sequence(self) -> tuple[int, int]:
        parts = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self._quantified())
        return self.nfa.chain(parts)

    def _quantified(self) -> tuple[int, int]:
        begin = self.at
        anchor = self.pattern[begin] in "^$"
        part = self._atom()
        end = self.at
        count = self._quantifier()
        if count is None:
            return part
        if anchor:
            raise self._error("a repeated anchor")
        low, high = count
        copies = [part] + [self._again(begin, end) for _ in range(max(low, high or low + 1, 1) - 1)]
        if high == 0:
            return self.nfa.empty()
        if high is None:
            return self.nfa.chain([*copies[:low], self.nfa.star(copies[low])])
        optional = [self.nfa.either([copy, self.nfa.empty()]) for copy in copies[low:high]]
        return self.nfa.chain([*copies[:low], *optional])

    def _again(self, begin: int, end: int) -> tuple[int, int]:
        """Another copy of the atom that the pattern holds from begin to end."""
        here, self.at = self.at, begin
        part = self._atom()
        if self.at != end:
            raise self._error("unexpected repetition")
        self.at = here
        return part

    def _quantifier(self) -> tuple[int, int | None] | None:
        if self.at >= len(self.pattern):
            return None
        count: tuple[int, int | None] | None = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self.pattern[self.at])
        if count is not None:
            self.at += 1
        else:
            match = re.compile(r"\{(\d+)(,(\d*))?\}").match(self.pattern, self.at)
            if match is None:
                if re.compile(r"\{,\d+\}").match(self.pattern, self.at):
                    raise self._error("a repeat without lower count", "Write {0,n}")
                return None
            low = int(match[1])
            high = low if match[2] is None else int(match[3]) if match[3] else None
            if (high is not None and high < low) or max(low, high or 0) > MAX_REPEAT:
                raise self._error(f"bad repeat {match[0]!r}", f"Counts go up to {MAX_REPEAT}")
            count = (low, high)
            self.at = match.end()
        if self._peek("?"):
            self.at += 1  # lazy: the same language
        if self.at < len(self.pattern) and self.pattern[self.at] in "*+?":
            raise self._error("a repeated repeat")
        return count

    def _atom(self) -> tuple[int, int]:
        char = self.pattern[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            return self.nfa.chars(self._class())
        self.at += 1
        if char == "^":
            return self.nfa.symbols(BEGIN, BEGIN)
        if char == "$":
            return self.nfa.symbols(END, END)
        if char == ".":
            return self.nfa.chars(DOT)
        if char in "*+?":
            raise self._error("nothing to repeat")
        if char == "\\":
            return self.nfa.chars(self._escape())
        if 0xD800 <= ord(char) <= 0xDFFF:
            raise self._error("a lone surrogate")
        return self.nfa.chars([(ord(char), ord(char))])

    def _group(self) -> tuple[int, int]:
        self.at += 1
        if self._peek("?"):
            match = re.compile(r"\?(:|P?<[A-Za-z_]\w*>)").match(self.pattern, self.at)
            if match is None:
                raise self._error("unsupported group", "Look-around and flags cannot be guaranteed")
            self.at = match.end()
        inside = self._alternation()
        if not self._peek(")"):
            raise self._error("missing ')'")
        self.at += 1
        return inside

    def _escape(self) -> Ranges:
        """Code points of the escape whose backslash was just read."""
        if self.at >= len(self.pattern):
            raise self._error("nothing after the backslash")
        char = self.pattern[self.at]
        self.at += 1
        if char in CLASSES:
            return CLASSES[char]
        if char in PLAIN_ESCAPES:
            return [(PLAIN_ESCAPES[char],) * 2]
        if char in "xu":
            width = 2 if char == "x" else 4
            digits = self.pattern[self.at : self.at + width]
            if not re.fullmatch(f"[0-9A-Fa-f]{{{width}}}", digits):
                raise self._error(f"\\{char} needs {width} hexadecimal digits")
            self.at += width
            return [(int(digits, 16),) * 2]
        if char.isalnum():
            raise self._error(f"unsupported escape \\{char}", "Write out the characters you mean")
        return [(ord(char),) * 2]

    def _class(self) -> Ranges:
        """Code points of a bracketed class."""
        self.at += 1
        negated = self._peek("^")
        self.at += negated
        if self._peek("]"):
            raise self._error("an empty class", "Escape the bracket")
        ranges: list[tuple[int, int]] = []
        shorthand = False
        while not self._peek("]"):
            low, is_set = self._class_item()
            shorthand |= is_set
            if not is_set and self._peek("-") and not self._peek("-]"):
                self.at += 1
                high, is_set = self._class_item()
                if is_set or high[0][0] < low[0][0]:
                    raise self._error("a range without order")
                low = [(low[0][0], high[0][0])]
            ranges.extend(low)
        self.at += 1
        if not negated:
            return ranges
        rest = complement(ranges, 0x7F if shorthand else LAST)
        if not rest:
            raise self._error("a class of no characters")
        return rest

    def _class_item(self) -> tuple[Ranges, bool]:
        """One member of a class, and whether it is a shorthand such as \\d."""
        if self.at >= len(self.pattern):
            raise self._error("missing ']'")
        char = self.pattern[self.at]
        self.at += 1
        if char == "\\":
            if self._peek("b"):
                raise self._error("unsupported escape \\b")
            shorthand = self.at < len(self.pattern) and self.pattern[self.at] in CLASSES
            return self._escape(), shorthand
        if 0xD800 <= ord(char) <= 0xDFFF:
            raise self._error("a lone surrogate")
        return [(ord(char), ord(char))], False
