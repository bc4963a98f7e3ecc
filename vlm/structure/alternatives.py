"""Other ways to get structured text from masked diffusion, for comparison: none of them guarantees anything.

* S3, self-adaptive schema scaffolding (arXiv:2507.04504): the keys are given, the values are runs of masks of a fixed number,
  an agreed word stands for what is absent, the surest cells are committed first.
* Structure priors of Dimple (arXiv:2505.16990): two hooks, one writes tokens into the canvas, one changes the logits.
* Fill-in-the-middle drafts of LaViDa (arXiv:2505.16839): text with runs of masks, an anchor token behind each; the model ends a
  run early with end-of-text tokens, which are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import LogitTransform, Reviser
from vlm.decoding.loop import Recipe
from vlm.errors import OptionError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.scaffold import Scaffold
from vlm.structure.table import Symbols

#: S3's defaults: cells of a value, and the word for what is absent.
S3_CELLS, S3_ABSENT = 16, "<none>"


@dataclass
class Draft:
    """Given tokens and open runs.

    Attributes:
        cells: [L] token ids, None where a cell is open. spans: the open runs, by name.
        dropped: ids that are left out of the text: fillers, anchors.
    """

    tokenizer: Tokenizer
    dropped: frozenset[int]
    cells: list[int | None] = field(default_factory=list)
    spans: dict[str, range] = field(default_factory=dict)

    def write(self, text: str) -> None:
        """Append given text."""
        self.cells += self.tokenizer.encode(text)

    def leave(self, name: str, count: int) -> None:
        """Append an open run."""
        self.spans[name] = range(len(self.cells), len(self.cells) + count)
        self.cells += [None] * count

    def canvas(self, rows: int, symbols: Symbols) -> Canvas:
        """Canvases to decode."""
        return Canvas.from_rows([self.cells] * rows, mask_id=symbols.mask, pad_id=symbols.pad)

    def text(self, ids: Sequence[int]) -> str:
        """A finished row [L] as text."""
        return self.tokenizer.decode(i for i in ids if i not in self.dropped)

    def values(self, ids: Sequence[int]) -> dict[str, str]:
        """The text of each open run."""
        return {name: self.text([ids[c] for c in span]) for name, span in self.spans.items()}


def s3_draft(
    keys: Sequence[str], tokenizer: Tokenizer, symbols: Symbols, *, cells: int = S3_CELLS, budgets: Mapping[str, int] | None = None, fence: bool = True
) -> Draft:
    """S3's canvas for a flat object of strings: one line a key, `cells` masks (or the key's own number) between quotes."""
    draft = Draft(tokenizer, frozenset(i for i in (symbols.pad, symbols.null) if i is not None))
    draft.write("```json\n{\n" if fence else "{\n")
    for index, key in enumerate(keys):
        draft.write(f'  {json.dumps(key, ensure_ascii=False)}: "')
        draft.leave(key, (budgets or {}).get(key, cells))
        draft.write('",\n' if index + 1 < len(keys) else '"\n')
    draft.write("}\n```" if fence else "}")
    return draft


def s3_prompt(keys: Sequence[str], absent: str = S3_ABSENT) -> str:
    """What S3 tells the model, in our words: the keys, JSON only, and the word for what is absent, which may be repeated."""
    return (
        f"Answer with one JSON object and nothing else. Its keys are: {', '.join(keys)}. Write {absent} for everything that is not there; "
        f"repeat {absent} to fill the room that is left."
    )


def s3_values(draft: Draft, ids: Sequence[int], absent: str = S3_ABSENT) -> dict[str, str | None]:
    """The values of a finished canvas, None for those that are nothing but the word for absence."""
    found = {name: text.replace(absent, "").strip() for name, text in draft.values(ids).items()}
    return {name: text or None for name, text in found.items()}


def fim_draft(parts: Sequence[str | int], tokenizer: Tokenizer, symbols: Symbols, anchor: str | None = "<|reserved_token_1|>") -> Draft:
    """LaViDa's draft: texts, and numbers of masks with an anchor token behind each run (None: without).

    Raises:
        OptionError: the vocabulary has no such anchor.
    """
    if anchor is not None and anchor not in tokenizer.special:
        raise OptionError(f"the vocabulary has no token {anchor!r}", remedy="name the anchor of the checkpoint, or None")
    dropped = {symbols.pad} if anchor is None else {symbols.pad, tokenizer.special[anchor]}
    draft = Draft(tokenizer, frozenset(dropped))
    for part in parts:
        if isinstance(part, str):
            draft.write(part)
            continue
        draft.leave(str(len(draft.spans)), part)
        if anchor is not None:
            draft.cells.append(tokenizer.special[anchor])
    return draft


def plain_draft(scaffold: Scaffold) -> Draft:
    """A scaffold's literals and slots without its automata: S3 with our layout, typed quotes and null token."""
    symbols = scaffold.symbols
    draft = Draft(scaffold.tokenizer, frozenset(i for i in (symbols.pad, symbols.null) if i is not None))
    draft.cells = [None if slot >= 0 else token for token, slot in zip(scaffold.ids, scaffold.slot_of, strict=True)]
    draft.spans = {slot.pointer: slot.cells for slot in scaffold.slots}
    return draft


#: (number of the step, None before the first; ids [B, L]) -> ids [B, L].
TokensHook = Callable[[int | None, Tensor], Tensor]


@dataclass
class _Written:
    """Commits what a tokens hook writes into open cells, at confidence 1."""

    hook: TokensHook
    after: Reviser | None = None
    step: int = 0

    def __call__(self, canvas: Canvas) -> None:
        if self.after is not None:
            self.after(canvas)
        write_tokens(canvas, self.hook(self.step, canvas.ids.clone()))
        self.step += 1


def write_tokens(canvas: Canvas, ids: Tensor) -> None:
    """Commit the open cells in which `ids` [B, L] differs from the canvas; given and filled cells stay."""
    cells = canvas.open & (ids != canvas.ids)
    if bool(cells.any()):
        canvas.commit(cells, ids[cells], torch.ones(int(cells.sum())))


def with_hooks(recipe: Recipe, canvas: Canvas, *, tokens: TokensHook | None = None, logits: LogitTransform | None = None) -> Recipe:
    """Dimple's two hooks on any method. `tokens` is called at once (step None) and after every step; `logits` is the last link of
    the chain that logits go through. Structure priors are a `tokens` that writes fixed tokens into their cells."""
    parts: dict[str, Any] = {}
    if tokens is not None:
        write_tokens(canvas, tokens(None, canvas.ids.clone()))
        parts["reviser"] = _Written(tokens, recipe.reviser)
    if logits is not None:
        parts["transforms"] = (*recipe.transforms, logits)
    return recipe.with_parts(**parts)


def fixed_tokens(draft: Draft) -> TokensHook:
    """The tokens hook that writes a draft's given tokens."""
    given = torch.tensor([c is not None for c in draft.cells])
    ids = torch.tensor([0 if c is None else c for c in draft.cells])
    return lambda step, canvas: torch.where(given, ids, canvas)
