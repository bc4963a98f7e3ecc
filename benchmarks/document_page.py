"""One document page: pocket's default decoding against the plain reference loop, same weights, same pages, same process.

``python -m benchmarks.document_page --pages 6``

The plain loop is what the first releases of diffusion language models do: every step runs prompt and canvas through
the whole model without a cache, forms logits over the whole vocabulary at every position, and commits the one cell it
is surest of. It fills the same scaffold, in the same precision, without the slot engine (whose time it does not pay).
Ratios are medians over pages of (plain ms / default ms), both from the picture's reading on, prompt encoding included.
With ``--random`` the weights are random: the times of a forward are real, the numbers of forwards are not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.common import DocumentPage, arguments, load, median, pages, report, timed
from vision.reading import fast_bf16
from vlm.backbone.slots import SlotTable, join
from vlm.families.pocket import Slots
from vlm.metrics import leaves, same_value
from vlm.model import DiffusionVLM
from vlm.structure.scaffold import Scaffold, compile_scaffold
from vlm.structure.schema import parse_schema


class PlainLoop:
    """Everything anew at every step.

    Args:
        model: whose weights are used. page: with its reading. scaffold: of the page's schema.
    """

    def __init__(self, model: DiffusionVLM, page: DocumentPage, scaffold: Scaffold) -> None:
        self.pocket, self.scaffold = model.engine.model, scaffold
        with mock.patch.object(self.pocket, "prefix", wraps=self.pocket.prefix) as spy:  # the prompt as it enters the model
            model.engine.denoiser([model._prompt("")], [[page.reading]], len(scaffold), scaffold=scaffold)
        self.prompt = spy.call_args.args
        rows = scaffold.to_canvas_rows()
        self.ids, self.masked = torch.tensor([rows.ids]), torch.tensor([rows.masked])
        self.slots = Slots.of(torch.tensor([rows.slot_index]), join([SlotTable.of(scaffold)], len(scaffold)))
        special = model.tokenizer.special
        self.banned = torch.tensor([i for i in model.tokenizer.control_ids if i not in (special["<|pad|>"], special["<|null|>"])])
        self.confidence = torch.ones(self.ids.shape)

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """[1, L, V] of the canvas, from scratch; those of the prompt are formed as well, and thrown away."""
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
            prefix = self.pocket.prefix(*self.prompt)
            hidden, found = self.pocket.canvas(self.ids, torch.ones_like(self.masked), self.slots, prefix)
            self.pocket.backbone.logits(prefix.cache.hidden)
            logits = self.pocket.cell_logits(hidden, found.copied)
        return logits.index_fill(-1, self.banned, float("-inf"))

    @torch.inference_mode()
    def step(self) -> None:
        """Commit the surest open cell."""
        chance, proposal = torch.softmax(self.logits().double(), dim=-1).max(dim=-1)
        best = int(torch.where(self.masked, chance, -1.0).argmax())
        self.ids[0, best], self.masked[0, best], self.confidence[0, best] = proposal[0, best], False, chance[0, best].float()

    def run(self) -> dict[str, Any]:
        """Fill the canvas and read it."""
        while bool(self.masked.any()):
            self.step()
        data, _ = self.scaffold.read(self.ids[0].tolist(), self.confidence[0].tolist())
        return dict(data)


def right(data: Any, page: DocumentPage) -> int:
    """Fields that are exactly right."""
    said = leaves(data)
    return sum(same_value(said.get(p), v) for p, v in page.case.truth.items())


def compare(model: DiffusionVLM, page: DocumentPage) -> dict[str, float]:
    """Both ways on one page, default first and last, so that a machine that slows down favours neither."""
    schema = page.case.schema
    scaffold = compile_scaffold(parse_schema(schema), model.tokenizer)
    cells = sum(slot.budget for slot in scaffold.slots)
    default: Callable[[], Any] = lambda: model.extract(page.image, schema)  # noqa: E731
    result, before = timed(default)
    plain, plain_ms = timed(lambda: PlainLoop(model, page, scaffold).run())
    result, after = timed(default)
    ms = (before + after) / 2
    return {
        "default_ms": ms, "plain_ms": plain_ms, "ratio": plain_ms / ms, "forwards": result.usage.forwards, "plain_forwards": cells, "tokens": cells,
        "right": right(result.data, page), "plain_right": right(plain, page), "fields": len(page.case.truth), "read_ms": page.read_ms,
        "canvas": len(scaffold), "prefix": len(page.reading.tokens),
    }  # fmt: skip


def main() -> int:
    """Command line."""
    args = arguments(__doc__).parse_args()
    model = load(args)
    rows = []
    todo = pages(model, args.pages, args.random)
    model.extract(todo[0].image, todo[0].case.schema)  # warm up
    for page in todo:
        rows.append(compare(model, page))
        print(" ".join(f"{k}={v:.4g}" for k, v in rows[-1].items()), file=sys.stderr)
    forwards, tokens, fields = (sum(r[k] for r in rows) for k in ("forwards", "tokens", "fields"))
    report(args, model, {
        "pages": len(rows),
        "ms per page, default, reading included": median([r["default_ms"] + r["read_ms"] for r in rows]),
        "ms per page, reading": median([r["read_ms"] for r in rows]),
        "ms per page, default, from the reading on": median([r["default_ms"] for r in rows]),
        "ms per page, plain loop, from the reading on": median([r["plain_ms"] for r in rows]),
        "plain / default, median of pairs": median([r["ratio"] for r in rows]),
        "forwards per page, default": forwards / len(rows),
        "forwards per page, plain loop": sum(r["plain_forwards"] for r in rows) / len(rows),
        "cells per forward, default": tokens / forwards,
        "ms per forward, default": median([r["default_ms"] / r["forwards"] for r in rows]),
        "ms per forward, plain loop": median([r["plain_ms"] / r["plain_forwards"] for r in rows]),
        "fields right, default": sum(r["right"] for r in rows) / fields,
        "fields right, plain loop": sum(r["plain_right"] for r in rows) / fields,
        "rows": rows,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
