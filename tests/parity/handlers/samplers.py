"""Decoding methods on two tiny text models: trajectories of the released samplers, quota tables, forwards.

The method is told by the code that was run (repository, file, function) and its settings. Rows are compared one by one
with the steps left out in which a row changed nothing: the released loops make a finished row wait for the others,
ours does not, and what a row gets must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks
from tests.parity.common import RecordedNoise, logits_of
from vlm.decoding.canvas import Canvas
from vlm.decoding.commits import Factor
from vlm.decoding.contracts import Denoiser, Noise, Prediction, Step
from vlm.decoding.denoiser import BackboneDenoiser, GuidedDenoiser
from vlm.decoding.initializers import commit_first_cell
from vlm.decoding.loop import Recipe, decode
from vlm.decoding.presets import preset
from vlm.decoding.quotas import linear_table, shaped_table

FAMILIES = ("samplers",)
LATER = "method of the later decoding catalogue"


@dataclass
class Plan:
    """How a case is run: recipe, attention rule, length of the answer, and what goes before the loop."""

    recipe: Recipe
    length: int
    rule: str = "full"
    guidance: float = 0.0
    first_cell: bool = False
    noise: Noise | None = None
    draft: list[int] = field(default_factory=list)


def _ids(case: Case) -> dict[str, int]:
    return case.fixture.document["models"][case.data["model"]]


def _llada(case: Case) -> Plan:
    s, ids = case.settings(), _ids(case)
    blocks = s["gen_length"] // s["block_length"]
    recipe = preset(
        "llada-random" if s["remasking"] == "random" else "llada", steps_per_block=s["steps"] // blocks, block_length=s["block_length"],
        temperature=s["temperature"], banned=(ids["eos_token_id"],) if s.get("logits_eos_inf") else (),
        ignore_confidence_of=(ids["eos_token_id"], ids["eot_token_id"]) if s.get("confidence_eos_eot_inf") else (), reference_quirks=True,
    )  # fmt: skip
    return Plan(recipe, s["gen_length"], guidance=s.get("cfg_scale", 0.0), noise=_noise(case, s["gen_length"]))


def _noise(case: Case, length: int) -> Noise | None:
    """The recorded uniforms of a case, cut to the answer where they cover the prompt too."""
    draws = {}
    for purpose, name in (("token", "token_uniform"), ("score", "score_uniform")):
        drawn = case.fixture.expected.get(f"{case.id}.{name}")
        if drawn is not None:
            draws[purpose] = [step[:, -length:] if step.ndim > 1 else step for step in drawn]
    return RecordedNoise(draws) if draws else None


def _fast(case: Case) -> Plan:
    s = case.settings()
    block = s["block_length"] if "block_length" in s else s["init_block_length"]
    options: dict[str, Any] = {"block_length": block, "temperature": s["temperature"], "reference_quirks": True}
    if s.get("threshold") is not None:
        return Plan(preset("threshold", threshold=s["threshold"], **options), s["gen_length"])
    if s.get("factor") is not None:
        return Plan(preset("factor", factor=s["factor"], **options), s["gen_length"])
    steps = s["steps"] // (s["gen_length"] // s["block_length"])
    return Plan(preset("llada", steps_per_block=steps, **options), s["gen_length"])


def _lavida(case: Case) -> Plan:
    s = case.settings()
    block = s["block_length"]
    steps = int(block * s["step_ratio"]) if s.get("step_ratio") else min(s.get("step_per_block", block), block)
    shape = s.get("schedule")
    score = {"low_confidence": "prob", "margin": "margin", "entrophy": "entropy", "random": "random"}[s["remasking"]]
    options = {"steps_per_block": steps, "block_length": block, "temperature": s["temperature"], "score": score, "reference_quirks": True}
    if shape is None:
        recipe = preset("llada", **options)
    else:
        recipe = preset("lavida", shape=shape, shift=s.get("schedule_kwargs", {}).get("shift", 3), **options)
    return Plan(recipe, s["max_new_tokens"], "prefix" if s["prefix_lm"] else "full", draft=s.get("draft_tokens", [[]])[0])


def _lavida_dream(case: Case) -> Plan:
    s = case.settings()
    steps = int(s["steps"] * s["step_ratio"]) if s.get("step_ratio") else s["steps"]
    schedule = {"shape": s["schedule"], "shift": s["schedule_kwargs"].get("shift", 3)} if s.get("schedule") else {}
    recipe = preset(f"dream-{s['alg'].replace('_', '-')}", steps=steps, temperature=s["temperature"], reference_quirks=True, **schedule)
    prefix = bool(s["prefix_lm"])
    return Plan(recipe, s["max_new_tokens"], "prefix" if prefix else "full", first_cell=prefix)


def _dream(case: Case) -> Plan:
    s = case.settings()
    recipe = preset(
        f"dream-{s['alg'].replace('_', '-')}", steps=s["steps"], temperature=s["temperature"], top_p=s.get("top_p"), top_k=s.get("top_k"),
        reference_quirks=True,
    )  # fmt: skip
    drawn = case.fixture.expected.get(f"{case.id}.score_uniform")
    return Plan(recipe, s["max_new_tokens"], noise=None if drawn is None else RecordedNoise({"commit": list(drawn)}))


def _strict_factor(case: Case) -> Plan:
    s = case.settings()
    recipe = preset("factor", factor=s["factor"], block_length=s["block_length"])
    return Plan(recipe.with_parts(reference_quirks=True, commit=Factor(s["factor"])), s["gen_length"])


def _threshold(case: Case) -> Plan:
    s = case.settings()
    return Plan(preset("threshold", threshold=s["threshold"], block_length=s["block_length"], reference_quirks=True), s["gen_length"])


#: (repository, file, function) of the released code -> (which settings are covered, plan)
METHODS: dict[tuple[str, str, str], tuple[Callable[[dict[str, Any]], bool], Callable[[Case], Plan]]] = {
    ("ML-GSAI/LLaDA", "generate.py", "generate"): (lambda s: True, _llada),
    ("NVlabs/Fast-dLLM", "llada/generate.py", "generate"): (lambda s: True, _fast),
    ("lgxi24/AdaBlock-dLLM", "llada/generate_baseline.py", "generate"): (lambda s: True, _fast),
    ("lgxi24/AdaBlock-dLLM", "llada/generate_adablock.py", "generate_adablock"): (lambda s: "delimiter_threshold" not in s, _fast),
    ("horseee/dKV-Cache", "generation_utils/llada_dkv_cache_decode.py", "generate"): (lambda s: not s["enable_cache"], _llada),
    ("jacklishufan/LaViDa", "llava/model/language_model/llada/generate.py", "generate"): (lambda s: True, _lavida),
    ("jacklishufan/LaViDa", "llava/model/language_model/dream/generation_utils.py", "diffusion_generate"): (lambda s: True, _lavida_dream),
    ("NVlabs/Fast-dLLM", "dream/model/generation_utils.py", "diffusion_generate"): (lambda s: s["alg"] != "confidence_threshold", _dream),
    ("Kamichanw/d2Cache", "src/generation/vanilla.py", "vanilla_generate"): (lambda s: "factor" in s and s["cache"] is None, _strict_factor),
    ("inclusionAI/dInfer", "python/dinfer/decoding/parallel_strategy.py", "ThresholdParallelDecoder"): (lambda s: True, _threshold),
}


@dataclass
class _Watch:
    """A denoiser that keeps the best id and its probability, float64, of every cell it was asked for."""

    denoiser: Denoiser
    vocab_size: int
    asked: list[Tensor] = field(default_factory=list)
    argmax: list[Tensor] = field(default_factory=list)
    conf: list[Tensor] = field(default_factory=list)

    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        prediction = self.denoiser(canvas, cells)
        best = torch.softmax(prediction.logits.double(), dim=-1).max(dim=-1)
        self.asked.append(cells.clone())
        self.argmax.append(torch.full(cells.shape, -1).masked_scatter(cells, best.indices))
        self.conf.append(torch.full(cells.shape, -1.0).double().masked_scatter(cells, best.values))
        return prediction


def _run(case: Case, checks: Checks) -> None:
    plan = METHODS[_key(case)][1](case)
    backbone = case.fixture.model(case.data["model"]).model.backbone
    config = backbone.config
    prompt = case.fixture.inputs[f"{case.id}.prompt"].long()
    rows = [[None if i == config.mask_token_id else i for i in plan.draft] + [None] * (plan.length - len(plan.draft))] * len(prompt)
    canvas = Canvas.from_rows(rows, mask_id=config.mask_token_id, pad_id=config.pad_token_id)
    denoiser: Denoiser = BackboneDenoiser(backbone, prompt, rule=plan.rule)
    if plan.guidance:
        nothing = BackboneDenoiser(backbone, torch.full_like(prompt, config.mask_token_id), rule=plan.rule)
        denoiser = GuidedDenoiser(denoiser, nothing, plan.guidance)
    if plan.first_cell:
        commit_first_cell(denoiser, canvas)
    watch = _Watch(denoiser, config.vocab_size)
    history = torch.stack([canvas.ids.clone(), *(frame.ids for frame in decode(watch, canvas, plan.recipe, noise=plan.noise))])
    expected = case.fixture.expected[f"{case.id}.canvas"].long()[..., -plan.length :]
    checks.equal("final", history[-1], case.fixture.expected[f"{case.id}.final"][..., -plan.length :])
    if len(prompt) == 1:
        checks.equal("calls", len(watch.asked), case.data["nfe"])
    for row in range(len(prompt)):
        _compare(case, checks, row, history[:, row], expected[:, row], watch, every=len(prompt) == 1)


def _compare(case: Case, checks: Checks, row: int, ours: Tensor, theirs: Tensor, watch: _Watch, every: bool) -> None:
    steps, wanted = _changes(ours, every), _changes(theirs, every)
    checks.equal(f"canvas{row}", ours[[0, *(t + 1 for t in steps)]], theirs[[0, *(t + 1 for t in wanted)]])
    argmax, conf = (case.fixture.expected.get(f"{case.id}.{name}") for name in ("argmax", "conf"))
    if argmax is None or conf is None or len(steps) != len(wanted):
        return
    length = ours.shape[-1]
    asked = torch.stack([watch.asked[t][row] for t in steps])
    best, sure = torch.stack([watch.argmax[t][row] for t in steps]), torch.stack([watch.conf[t][row] for t in steps])
    checks.equal(f"argmax{row}", best[asked], argmax[wanted, row][..., -length:].long()[asked])
    checks.close(f"conf{row}", sure, conf[wanted, row][..., -length:], where=asked)


def _changes(history: Tensor, every: bool) -> list[int]:
    """Steps that changed the row, or all of them."""
    return [t for t in range(len(history) - 1) if every or not torch.equal(history[t], history[t + 1])]


def _forward(case: Case, checks: Checks) -> None:
    backbone = case.fixture.model(case.data["model"]).model.backbone
    ids = case.fixture.inputs[f"{case.id}.prompt"].long()
    valid = case.fixture.expected.get(f"{case.id}.attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid.bool()
    checks.close("logits", logits_of(backbone, ids, valid), case.fixture.expected[f"{case.id}.logits"], where=valid)


def _quota_tables(case: Case, checks: Checks) -> None:
    """Names are <schedule>_<shift>_<masks>_<steps>."""
    for name in case.data["expected"]:
        schedule, shift, masks, steps = name.removeprefix(f"{case.id}.").rsplit("_", 3)
        number = {"na": 1.0, "third": 1 / 3}.get(shift) or float(shift)
        n, k = int(masks), int(steps)
        ours = linear_table(n, k) if schedule == "None" else shaped_table(n, k, schedule, number)
        checks.equal(f"{schedule}({shift}) {n}/{k}", ours, case.fixture.expected[name])


def _factor_counts(case: Case, checks: Checks) -> None:
    """Both readings of the rule on sorted confidences padded with -1."""
    table = case.fixture.expected[f"{case.id}.confidences"]
    canvas = Canvas.from_rows([[None if c >= 0 else 0 for c in row] for row in table.tolist()], mask_id=1, pad_id=0)
    cells = canvas.open
    row, column = cells.nonzero(as_tuple=True)
    step = Step(canvas, cells, row, column, torch.zeros(len(row), 2), Noise(0, len(table)), score=table[cells])
    for quirks, name in ((True, "released_count"), (False, "rule_count")):
        chosen = Factor(case.settings()["factor"], reference_quirks=quirks)(step)
        checks.equal(name, torch.bincount(row[chosen], minlength=len(table)), case.fixture.expected[f"{case.id}.{name}"])


FUNCTIONS = {
    "LLaDAModelLM.forward": _forward, "DreamModel.forward": _forward, "get_num_transfer_tokens_sch": _quota_tables,
    "get_transfer_index_dynamic": _factor_counts,
}  # fmt: skip


def _key(case: Case) -> tuple[str, str, str]:
    reference = case.data["reference"]
    return reference["repo"], reference["file"], reference["function"]


def _known(case: Case) -> bool:
    method = METHODS.get(_key(case))
    return method is not None and method[0](case.settings())


def skip(case: Case) -> str | None:
    """Methods, caches and models that are not in the first group of parts."""
    if _key(case)[2] in FUNCTIONS:
        return "approximate block caches come with the decoding catalogue" if "block_start" in case.settings() else None
    return None if _known(case) else LATER


def select(case: Case) -> Callable[[Case, Checks], None]:
    """The runner of a case that is not skipped."""
    return FUNCTIONS.get(_key(case)[2], _run)
