"""Cases of the block-diffusion families: masks, forwards under the block rule, generations step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks
from tests.parity.prompted import Heard, Prompts, forward, named
from tests.parity.vision import expected
from vlm.decoding.blocks import BlockDenoiser, Blocks, block_rule, entry_blocks
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Proposer, Step
from vlm.decoding.loop import Recipe, decode
from vlm.decoding.presets import preset
from vlm.decoding.stops import EndOfBlock
from vlm.decoding.windows import AlignedBlocks


def setting(case: Case, *names: str, default: Any = None) -> Any:
    """The first of several names that the case's settings, or the case itself, have."""
    return next((case.settings().get(n, case.data.get(n)) for n in names if n in case.settings() or n in case.data), default)


@dataclass
class Trace:
    """A run, one entry per denoising forward.

    Attributes:
        number: block, from 0. step: inside the block.         ids, accepted: [n, block] after the step; ids are -1 and nothing is
            accepted at prompt cells. confidence: [n, block] of what was accepted. logits: of the cells that were open, [n, block, V], else 0.
    """

    number: list[int]
    step: list[int]
    ids: Tensor
    accepted: Tensor
    confidence: Tensor
    logits: Tensor
    canvas: Canvas

    def first(self, n: int) -> Trace:
        """Its first n forwards."""
        return Trace(self.number[:n], self.step[:n], self.ids[:n], self.accepted[:n], self.confidence[:n], self.logits[:n], self.canvas)


@dataclass(frozen=True)
class Sampled:
    """Proposes the ids that the reference sampled for every place of the block.

    Args:
        ids: [n, block]. window: of the run. inner: the proposer whose filters count for the confidence.
    """

    ids: Tensor
    window: AlignedBlocks
    inner: Proposer

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        """(ids, tempered and filtered logits)."""
        at = int(step.canvas.step[0])
        return self.ids[at][(step.column + self.window.filled[0]) % self.window.length], self.inner(step)[1]


@dataclass(frozen=True)
class BlockCases:
    """How such a family is run.

    Attributes:
        prompts: of the family. threshold: default of its dynamic rule. strategy: its default.
    """

    prompts: Prompts
    threshold: float = 0.9
    strategy: str = "low_confidence_static"

    def blocks(self, case: Case, length: int) -> Blocks:
        """The family's blocks with another length."""
        blocks = case.fixture.model().config.blocks
        assert blocks is not None
        return replace(blocks, length=length)

    def mask(self, case: Case, checks: Checks) -> None:
        """The rule over prompt and canvas for several block lengths."""
        for length in case.data["blocks"]:
            theirs = expected(case, f"block{length}")
            assert theirs is not None
            prompt = case.data["prompt_len"]
            numbers = entry_blocks(torch.tensor([prompt]), len(theirs) - prompt, self.blocks(case, length))
            checks.equal(f"block{length}", block_rule(numbers)[0], theirs)

    def logits(self, case: Case, checks: Checks) -> None:
        """One forward over prompt and canvas; then the canvas's blocks one by one behind their cache."""
        loaded, prompt = case.fixture.model(), named(case.fixture, case.data["prompt"])
        ours = self.prompts.recorded(prompt)
        blocks = self.blocks(case, case.data["block"])
        canvas = case.fixture.inputs[case.data["inputs_tensors"]["canvas_ids"]]
        rule = block_rule(entry_blocks(ours.inputs.lengths, canvas.shape[1], blocks))
        raw, _, positions = forward(loaded.model.backbone, ours.inputs, canvas, rule=rule)
        theirs = expected(case, "logits")
        assert theirs is not None
        checks.close("logits", raw, theirs)
        if expected(prompt, "inputs_embeds") is not None:
            whole = forward(loaded.model.backbone, self.prompts.of(prompt).inputs, canvas, rule=rule)[0]
            checks.close("from pictures", whole, theirs, tolerance=case.data["tolerance"])
        if (places := expected(case, "position_ids")) is not None:
            flat = positions if positions.ndim == 3 else positions.unsqueeze(-1).expand(-1, -1, places.shape[0])
            checks.equal("positions", flat, places.movedim(0, 2) if places.ndim == 3 else places)
        self._cached(case, checks, ours.inputs, canvas, theirs)
        half = case.fixture.model(dtype=torch.bfloat16)
        inputs = self.prompts.of_model(case, half).inputs
        checks.top1("bf16 top-1", forward(half.model.backbone, inputs, canvas, rule=rule)[0], theirs)

    def _cached(self, case: Case, checks: Checks, inputs: Any, canvas: Tensor, theirs: Tensor) -> None:
        """Every block behind the committed ones before it."""
        loaded, length = case.fixture.model(), canvas.shape[1]
        denoiser = BlockDenoiser(loaded.model.backbone, inputs, self.blocks(case, case.data["block"]))
        config = loaded.config.backbone
        cells = Canvas.from_rows(canvas.tolist(), mask_id=config.mask_token_id, pad_id=config.pad_token_id)
        window = denoiser.window(self._recipe(case).window)
        numbers = window.blocks(length)
        rows = [denoiser(cells, numbers == number).logits for number in range(int(numbers.max()) + 1)]
        checks.close("cached", torch.cat(rows), theirs[0, -length:])

    def _recipe(self, case: Case) -> Recipe:
        """The reference's settings as our preset."""
        length = setting(case, "block", "block_length", "block_size")
        strategy = setting(case, "remasking_strategy", default=self.strategy)
        temperature = setting(case, "temperature", default=0.0) if setting(case, "top_k") != 1 else 0.0
        options: dict[str, Any] = {"block_length": length, "steps_per_block": setting(case, "steps", "denoising_steps", default=length)}
        name = {"low_confidence_static": "static", "low_confidence_dynamic": "dynamic", "sequential": "sequential"}[strategy]
        if name == "dynamic":
            options["threshold"] = setting(case, "confidence_threshold", default=self.threshold)
        return preset(f"block-{name}", reference_quirks=True, temperature=temperature, top_p=setting(case, "top_p"), tempered=True, **options)

    def trace(self, case: Case, recipe: Recipe) -> tuple[Trace, BlockDenoiser, int]:
        """Run the case on a canvas of whole blocks."""
        ours, loaded = self.prompts.recorded(named(case.fixture, case.data["prompt"])), case.fixture.model()
        config = loaded.config.backbone
        denoiser = BlockDenoiser(loaded.model.backbone, ours.inputs, self.blocks(case, 1))
        window = denoiser.window(recipe.window)
        block, filled = window.length, window.filled[0]
        cells = setting(case, "gen_length", "max_new_tokens")
        whole = cells if block >= cells + ours.layouts[0].length else -(-(filled + cells) // block) * block - filled
        canvas = Canvas.blank(1, whole, mask_id=config.mask_token_id, pad_id=config.pad_token_id)
        ends = setting(case, "end_id")
        recipe = recipe.with_parts(stop=EndOfBlock(self._ends(case) if ends is None else (ends,), window))
        if (sampled := expected(case, "trace_sampled_ids")) is not None:
            recipe = recipe.with_parts(proposer=Sampled(sampled[:, 0], window, recipe.proposer))
        heard = Heard(denoiser, [])
        numbers: list[int] = []
        steps: list[int] = []
        ids, accepted, logits, sure, before = [], [], [], [], canvas.masked.clone()
        for _ in decode(heard, canvas, recipe):
            number = int(window.blocks(whole)[0, int((before & ~canvas.masked).int().argmax())])
            place = number * block - filled + torch.arange(block)
            there = (place >= 0) & (place < whole)
            at = place.clamp(0, whole - 1)
            steps.append(steps[-1] + 1 if numbers[-1:] == [number] else 0)
            numbers.append(number)
            ids.append(torch.where(there, canvas.ids[0, at], -1))
            accepted.append(there & (before & ~canvas.masked)[0, at])
            logits.append(heard.seen[-1][0, at] * there.unsqueeze(1))
            sure.append(canvas.commit_confidence[0, at] * accepted[-1])
            before = canvas.masked.clone()
        trace = Trace(numbers, steps, torch.stack(ids), torch.stack(accepted), torch.stack(sure), torch.stack(logits), canvas)
        return trace, denoiser, ours.layouts[0].length

    def _ends(self, case: Case) -> tuple[int, ...]:
        generation = case.fixture.model().generation.get("eos_token_id", case.fixture.model().config.backbone.eos_token_id)
        return tuple(generation[:1]) if isinstance(generation, list) else (generation,)

    def run(self, case: Case, checks: Checks) -> None:
        """Step by step against the recorded run."""
        trace, denoiser, prompt = self.trace(case, self._recipe(case))
        theirs: dict[str, Any] = {name: expected(case, name) for name in case.data["expected"]}
        ids, accepted = theirs["trace_block_ids"][:, 0], theirs["trace_accepted"][:, 0]
        block = min(trace.ids.shape[1], ids.shape[1])  # one block over everything ends with the canvas
        trace.ids, trace.accepted, trace.logits = trace.ids[:, :block], trace.accepted[:, :block], trace.logits[:, :block]
        if (wrong := self._rewritten(trace, ids[:, :block], accepted[:, :block])) is not None:
            self._compare_steps(checks, trace.first(wrong), ids[:wrong], accepted[:wrong])
            self._compare_logits(checks, trace.first(wrong + 1), {k: v for k, v in theirs.items() if k != "logits_second_block_first"})
            checks.equal(f"compared up to forward {wrong}, where the reference rewrites cells that are no masks", True, True)
            return
        shared = prompt // denoiser.block if denoiser.tail == "shared" else 0
        checks.equal("blocks", [n + shared for n in trace.number], theirs["trace_block"])
        checks.equal("steps", trace.step, theirs["trace_step"])
        self._compare_steps(checks, trace, ids[:, :block], accepted[:, :block])
        self._compare_logits(checks, trace, theirs)
        if "trace_confidence" in theirs:
            checks.close("confidence", trace.confidence[trace.accepted], theirs["trace_confidence"][:, 0][trace.accepted])
        output = theirs["output"][0]
        output = output[prompt:] if len(output) > trace.canvas.ids.shape[1] else output
        checks.equal("output", trace.canvas.ids[0, : len(output)], output)
        if "tokens_per_forward" in theirs:
            counts = [trace.number.count(n) for n in sorted(set(trace.number))]
            checks.equal("counts", [counts], theirs["block_step_counts"])
            checks.close("per forward", trace.accepted.sum() / torch.tensor(len(trace.step)).float(), theirs["tokens_per_forward"])

    @staticmethod
    def _rewritten(trace: Trace, ids: Tensor, accepted: Tensor) -> int | None:
        """First forward in which the reference accepts a cell that was not open: of the prompt, or filled before in its block."""
        for i in range(min(len(ids), len(trace.ids))):
            closed = trace.ids[i] < 0
            for j in range(i):
                closed = closed | (accepted[j] if trace.number[j] == trace.number[i] else torch.zeros_like(closed))
            if bool((accepted[i] & closed).any()):
                return i
        return None

    def _compare_steps(self, checks: Checks, trace: Trace, ids: Tensor, accepted: Tensor) -> None:
        """Ids and accepted cells; what the reference says of prompt cells does not count."""
        if trace.ids.shape != ids.shape:
            checks.equal("forwards", list(trace.ids.shape), list(ids.shape))
            return
        checks.equal("ids", trace.ids, torch.where(trace.ids < 0, -1, ids))
        checks.equal("accepted", trace.accepted, accepted)

    def _compare_logits(self, checks: Checks, trace: Trace, theirs: dict[str, Any]) -> None:
        """First and second forward, first of the second block, at the cells that were open."""
        second = next((i for i, n in enumerate(trace.number) if n != trace.number[0]), None)
        alone = second == 1  # the second forward was then the commit pass
        for name, at in (("logits_first", 0), ("logits_second", None if alone else 1), ("logits_second_block_first", second)):
            if name in theirs and at is not None and at < len(trace.number):
                asked = (trace.logits[at] != 0).any(dim=-1)
                checks.close(name, trace.logits[at][asked], theirs[name][0, : len(asked)][asked])
