"""An answer while it is being written: its cells one by one, and its slots as they close."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vlm.decoding.canvas import GIVEN, KEPT, MASK, NEW, REMASKED
from vlm.decoding.loop import Frame
from vlm.processor.tokenizer import Tokenizer
from vlm.results import FieldInfo, Result

#: Names of the states of a cell, by their number in a frame.
STATES = {GIVEN: "given", MASK: "mask", NEW: "new", KEPT: "kept", REMASKED: "remasked"}
#: What stands for a cell without a token.
DOT = "·"


@dataclass(frozen=True)
class Cell:
    """One cell of a canvas, for people.

    Attributes:
        text: what its token spells, '' for control tokens and open cells. A character spelled by several tokens stands in the
            last of their cells.
        state: 'given' (literal text, or closed without the model), 'mask', 'new' (committed in this step), 'kept' or 'remasked'
            (taken back in this step).
        confidence: score at the commit, 0 for cells the model did not write.
        control: name of the control token it holds, '' if none.
        slot: JSON pointer of the slot it belongs to, '' outside slots.
    """

    text: str
    state: str
    confidence: float
    control: str = ""
    slot: str = ""


@dataclass(frozen=True)
class SlotView:
    """A slot as it stands.

    Attributes:
        pointer: of its value, array places as laid out.
        text: its value so far, open cells as dots.
        info: once every cell that decides the value is known: the value, its confidence and its box; None before.
    """

    pointer: str
    text: str
    info: FieldInfo | None = None


@dataclass
class Partial:
    """What a stream yields for each step.

    Attributes:
        frame: of the decoding loop. text: as it stands, one string a row, masks as dots.
        slots: of structured tasks, one list a row. owners: of structured tasks, for each cell the pointer of its slot, '' outside
            slots. result: with the last item, one a row.
    """

    frame: Frame
    text: list[str]
    result: list[Result] | None = None
    slots: list[list[SlotView]] = field(default_factory=list)
    owners: list[str] | None = None


def cells_of(tokenizer: Tokenizer, frame: Frame, row: int = 0, owners: Sequence[str] | None = None) -> list[Cell]:
    """The cells of one row of a frame; `owners` as in :class:`Partial`."""
    ids, states, sure = frame.ids[row].tolist(), frame.state[row].tolist(), frame.confidence[row].tolist()
    found: list[Cell] = []
    reader = _Utf8()
    for place, (token, state) in enumerate(zip(ids, states, strict=True)):
        masked, control = state in (MASK, REMASKED), token in tokenizer.control_ids
        if masked or control:
            _end(reader, found)
            text = ""
        else:
            text = reader.read(tokenizer.token_bytes(token))
        name = tokenizer.token_name(token) if control and not masked else ""
        found.append(Cell(text, STATES[state], sure[place], name, owners[place] if owners is not None else ""))
    _end(reader, found)
    return found


def _end(reader: _Utf8, found: list[Cell]) -> None:
    """A run of known cells ends here: what is left of an unfinished character goes to its last cell."""
    if rest := reader.end():
        found[-1] = replace(found[-1], text=found[-1].text + rest)


class _Utf8:
    """Bytes to text, a token at a time."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, piece: bytes) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(piece)

    def end(self) -> str:
        """U+FFFD for a character that was left unfinished; ready for the next run."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def text_so_far(tokenizer: Tokenizer, ids: Sequence[int], states: Sequence[int], stop_ids: Sequence[int] = ()) -> str:
    """A row as text: open cells as dots, nothing after an end token."""
    text, known = "", []
    for token, state in zip(ids, states, strict=True):
        open_ = state in (MASK, REMASKED)
        if not open_ and token in stop_ids:
            break
        if not open_:
            known.append(token)  # decoded as a run: a character may be spelled by several byte tokens
            continue
        text += tokenizer.decode(known) + DOT
        known = []
    return text + tokenizer.decode(known)
