"""Cases of families with pictures: prompts as ids, positions and embeddings, and forwards over prompt and canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks, Fixture
from tests.parity.common import shifted
from tests.parity.vision import expected, picture
from vlm.backbone.inputs import Inputs, deepstack
from vlm.backbone.model import DiffusionBackbone
from vlm.checkpoints.load import Loaded
from vlm.decoding.canvas import Canvas
from vlm.processor.prompt import Prompt, PromptLayout
from vlm.processor.template import Template
from vlm.published import PublishedEngine


@dataclass
class Prompted:
    """The prompts of a case.

    Attributes:
        prompts, layouts: one for each row. grids: [V, 3] of all pictures, in patches; inputs: of the backbone.
    """

    prompts: list[Prompt]
    layouts: list[PromptLayout]
    grids: list[list[int]]
    inputs: Inputs


def named(fixture: Fixture, name: str) -> Case:
    """A case of the fixture by its name."""
    return next(case for case in fixture.cases if case.id == name)


def conversations(case: Case) -> list[list[dict[str, Any]]]:
    """The messages of each row with the pictures put in: chat form, or LLaVA's turns with `<image>` in the text."""
    pictures = iter(case.data["images"])

    def filled(content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [{"type": "image", "image": picture(case, next(pictures))} if part["type"] == "image" else part for part in content]

    def split(text: str) -> Any:
        parts: list[dict[str, Any]] = []
        for i, piece in enumerate(text.split("<image>")):
            parts += [{"type": "image"}] if i else []
            parts += [{"type": "text", "text": piece}] if piece else []
        return filled(parts)

    if "turns" in case.data:
        return [[{"role": ("user", "assistant")[i % 2], "content": split(turn)} for i, turn in enumerate(case.data["turns"])]]
    rows = case.data["messages"]
    rows = rows if isinstance(rows[0], list) else [rows]
    return [[{**message, "content": filled(message["content"])} for message in row] for row in rows]


@dataclass(frozen=True)
class Prompts:
    """How a family's prompts are made; `template` is applied to the published one first (what a fixture spells out itself)."""

    template: Callable[[Template], Template] = lambda template: template

    def of(self, case: Case) -> Prompted:
        """The prompts of a case of kind 'prompt'."""
        engine = PublishedEngine(case.fixture.model(), case.fixture.tokenizer)
        template = self.template(engine.family.template)
        prompts = [template.build(row, engine.tokenizer) for row in conversations(case)]
        seen = [engine.see_all(prompt.images) for prompt in prompts]
        layouts = [prompt.lay_out([len(p) for p in row]) for prompt, row in zip(prompts, seen, strict=True)]
        merge = getattr(engine.model.tower, "merge", 1)
        grids = [[1, *(n * merge for n in p.grid)] for row in seen for p in row if p.grid is not None]
        return Prompted(prompts, layouts, grids, engine.inputs(prompts, seen))

    def recorded(self, case: Case) -> Prompted:
        """The prompts of a case with the embeddings that were recorded, if any: a tower's rounding can grow a hundredfold behind it."""
        ours, embeds = self.of(case), expected(case, "inputs_embeds")
        if embeds is not None:
            ours.inputs = replace(ours.inputs, embeds=embeds)
        return ours

    def row(self, fixture: Fixture, ids: Tensor) -> tuple[Inputs, int]:
        """(inputs of one row, entries of the ids it stands for): the prompt of the fixture that training ids [T] begin with."""
        best: tuple[Inputs, int] | None = None
        for case in fixture.cases:
            if case.kind != "prompt":
                continue
            stored, mask = expected(case, "input_ids"), expected(case, "attention_mask")
            assert stored is not None
            for i, one in enumerate(stored):
                known = one if mask is None else one[mask[i].bool()]
                if len(known) <= len(ids) and torch.equal(known, ids[: len(known)]) and (best is None or best[1] < len(known)):
                    whole = self.recorded(case).inputs
                    n = int(whole.lengths[i])
                    deep = tuple(d[i : i + 1, :n] for d in whole.deep)
                    best = Inputs(whole.embeds[i : i + 1, :n], whole.valid[i : i + 1, :n], whole.positions[i : i + 1, :n], whole.start[i : i + 1], deep), len(known)
        assert best is not None, "no prompt of the fixture begins these ids"
        return best

    def check(self, case: Case, checks: Checks) -> None:
        """Spelling, ids, positions, grids and embeddings of a case of kind 'prompt'."""
        ours = self.of(case)
        tokenizer = case.fixture.tokenizer
        texts = [tokenizer.decode(p.lay_out([1] * len(p.images)).ids, specials=True) for p in ours.prompts]
        theirs = case.data["text"] if isinstance(case.data["text"], list) else [case.data["text"]]
        media = tokenizer.decode([ours.prompts[0].media_id], specials=True)
        checks.equal("text", texts, [text.replace("<image>", media) for text in theirs])
        self._ids(case, checks, ours)
        mask = expected(case, "attention_mask")
        valid = ours.inputs.valid if mask is None else mask.bool()
        positions = expected(case, "position_ids")
        assert positions is not None
        if positions.ndim == 2:
            checks.equal("positions", ours.inputs.positions[ours.inputs.valid], positions[valid])
        else:
            flat = ours.inputs.positions[ours.inputs.valid]
            checks.equal("positions", flat if flat.ndim == 2 else flat.unsqueeze(1).expand(-1, 3), positions.movedim(0, 2)[valid])
        if (deltas := expected(case, "rope_deltas")) is not None:
            checks.equal("deltas", (ours.inputs.start - valid.shape[1]).unsqueeze(1), deltas.view(-1, 1))
        if (grid := expected(case, "image_grid_thw")) is not None:
            checks.equal("grid", ours.grids, grid)
        if (embeds := expected(case, "inputs_embeds")) is not None:
            checks.close("embeds", ours.inputs.embeds, embeds)

    def _ids(self, case: Case, checks: Checks, ours: Prompted) -> None:
        """Ids at valid entries; LLaVA writes one negative id for each picture."""
        ids, mask = expected(case, "input_ids"), expected(case, "attention_mask")
        assert ids is not None
        rows = [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)] if mask is not None else ids.tolist()
        if bool((ids < 0).any()):
            mine = [p.lay_out([1] * len(p.images)).ids for p in ours.prompts]
            rows = [[p.media_id if i < 0 else i for i in row] for p, row in zip(ours.prompts, rows, strict=True)]
        else:
            mine = [layout.ids for layout in ours.layouts]
        checks.equal("ids", mine, rows)

    def canvas(self, case: Case, length: int) -> Tensor:
        """[B, length] ids of the canvas a case starts from."""
        return case.fixture.inputs[case.data["inputs_tensors"]["canvas_ids"]][:, -length:]

    def logits(self, case: Case, checks: Checks) -> None:
        """One forward over prompt and canvas, everything seeing everything unless the case is causal; the shift."""
        loaded, ours = case.fixture.model(), self.of(named(case.fixture, case.data["prompt"]))
        canvas = self.canvas(case, case.data["new"])
        raw, valid, positions = forward(loaded.model.backbone, ours.inputs, canvas, causal=bool(case.data.get("causal")))
        theirs, mask = expected(case, "logits"), expected(case, "attention_mask")
        assert theirs is not None and mask is not None
        checks.close("logits", raw[valid], theirs[mask.bool()])
        if (places := expected(case, "position_ids")) is not None:
            checks.equal("positions", positions[valid], places.movedim(0, 2)[mask.bool()])
        rows = [shifted(row[v].unsqueeze(0))[0, -canvas.shape[1] :] for row, v in zip(raw, valid, strict=True)]
        aligned = expected(case, "shifted_logits")
        assert aligned is not None
        checks.close("shifted", torch.stack(rows), aligned)
        half = case.fixture.model(dtype=torch.bfloat16)
        low, _, _ = forward(half.model.backbone, self.of_model(case, half).inputs, canvas, causal=bool(case.data.get("causal")))
        checks.top1("bf16 top-1", low[valid], theirs[mask.bool()])

    def of_model(self, case: Case, loaded: Loaded) -> Prompted:
        """The prompts of a logits case in a model of another precision."""
        ours = self.recorded(named(case.fixture, case.data["prompt"]))
        inputs, dtype = ours.inputs, loaded.model.backbone.token_embed.weight.dtype
        ours.inputs = Inputs(inputs.embeds.to(dtype), inputs.valid, inputs.positions, inputs.start, tuple(d.to(dtype) for d in inputs.deep))
        return ours


def behind(inputs: Inputs, length: int) -> Tensor:
    """[B, L] or [B, L, 3] positions of the canvas cells."""
    positions = inputs.start.unsqueeze(1) + torch.arange(length)
    return positions.unsqueeze(-1).expand(-1, -1, 3) if inputs.positions.ndim == 3 else positions


@torch.no_grad()
def forward(
    backbone: DiffusionBackbone, inputs: Inputs, canvas: Tensor, *, causal: bool = False, rule: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(raw logits [B, P + L, V], valid [B, P + L], positions) of prompts and canvas ids [B, L] in one pass."""
    embeds = torch.cat((inputs.embeds, backbone.embed(canvas)), dim=1)
    valid = torch.cat((inputs.valid, torch.ones_like(canvas, dtype=torch.bool)), dim=1)
    positions = torch.cat((inputs.positions, behind(inputs, canvas.shape[1])), dim=1)
    if causal:
        rule = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool).tril().unsqueeze(0)
    hidden = backbone(embeds, positions, valid, rule=rule, between=deepstack(inputs.deep))
    return backbone.logits(hidden), valid, positions


def canvas_of(case: Case, rows: int, length: int) -> Canvas:
    """An open canvas, or one with the scaffold of the case."""
    config = case.fixture.model().config.backbone
    row: list[int | None] = [None] * length
    for place, token in case.settings().get("scaffold", {}).items():
        row[int(place)] = token
    return Canvas.from_rows([row] * rows, mask_id=config.mask_token_id, pad_id=config.pad_token_id)


@dataclass
class Heard:
    """A denoiser that keeps the logits it gave: [B, L, V], zero at cells that were not asked."""

    inner: Any
    seen: list[Tensor]

    @property
    def vocab_size(self) -> int:
        """Of the inner one."""
        return int(self.inner.vocab_size)

    @property
    def window(self) -> Any:
        """Of the inner one, if it has any."""
        return getattr(self.inner, "window", None)

    def __call__(self, canvas: Canvas, cells: Tensor) -> Any:
        everything = canvas.valid if self.window is None else cells
        prediction = self.inner(canvas, everything)
        dense = torch.zeros(*cells.shape, prediction.logits.shape[-1])
        dense[everything] = prediction.logits
        self.seen.append(dense)
        prediction.logits = dense[cells]
        return prediction
