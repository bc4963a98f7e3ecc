"""Dream-7B text: forward, shift, padding, generation, tables."""

from __future__ import annotations

import torch

from tests.parity.cases import Case, Checks
from tests.parity.common import RecordedNoise, check_hidden, check_prefix_cache, check_prompt, check_run, logits_of, record, shifted
from vlm.decoding.canvas import Canvas
from vlm.decoding.denoiser import BackboneDenoiser
from vlm.decoding.presets import preset
from vlm.decoding.quotas import dream_table

FAMILIES = ("dream",)


def _logits(case: Case, checks: Checks) -> None:
    backbone, ids = case.fixture.model().model.backbone, case.input("ids")
    checks.close("logits", logits_of(backbone, ids), case.tensor("logits"))
    checks.top1("bf16 top-1", logits_of(case.fixture.model(dtype=torch.bfloat16).model.backbone, ids), case.tensor("logits"))
    check_hidden(case, checks, backbone, ids)
    check_prefix_cache(checks, backbone, ids, case.data["prompt_length"])


def _padded(case: Case, checks: Checks) -> None:
    backbone = case.fixture.model().model.backbone
    ids, valid = case.input("left_ids"), case.input("left_mask").bool()
    logits = logits_of(backbone, ids, valid)
    checks.close("left_masked", logits, case.tensor("left_masked"), where=valid)
    checks.close("left_mask_ignored", logits_of(backbone, ids), case.tensor("left_mask_ignored"))
    known = torch.cat((valid[:, :1], valid[:, 1:] & valid[:, :-1]), dim=1)  # the cell before is valid, or there is none
    checks.close("left_masked_shifted", shifted(logits), case.tensor("left_masked_shifted"), where=known)


def _shift(case: Case, checks: Checks) -> None:
    """The denoiser's aligned logits are the shifted raw ones."""
    raw = next(c for c in case.fixture.cases if c.kind == "logits")
    loaded = case.fixture.model()
    ids, length = raw.input("ids"), raw.data["prompt_length"]
    config = loaded.config.backbone
    canvas = Canvas.from_rows(ids[:, length:].tolist(), mask_id=config.mask_token_id, pad_id=config.pad_token_id)
    aligned = BackboneDenoiser(loaded.model.backbone, ids[:, :length], rule="full")(canvas, torch.ones_like(canvas.ids, dtype=torch.bool))
    checks.close("aligned", aligned.logits.unsqueeze(0), shifted(raw.tensor("logits"))[:, length:])


def _generation(case: Case, checks: Checks) -> None:
    loaded, settings = case.fixture.model(), case.settings()
    config = loaded.config.backbone
    prompt = case.input("input_ids")
    denoiser = BackboneDenoiser(loaded.model.backbone, prompt, case.input("attention_mask"), rule="full")
    row: list[int | None] = [None] * settings["max_new_tokens"]
    for place, token in settings.get("pinned_answer_positions", {}).items():
        row[int(place)] = token
    canvas = Canvas.from_rows([row] * len(prompt), mask_id=config.mask_token_id, pad_id=config.pad_token_id)
    recipe = preset(
        f"dream-{settings['alg'].replace('_', '-')}", steps=settings["steps"], eps=settings["eps"], temperature=settings["temperature"],
        top_p=settings.get("top_p"), top_k=settings.get("top_k"), reference_quirks=True,
    )  # fmt: skip
    draws = [case.input(f"uniform_step{i}") for i in range(settings["steps"]) if case.has_input(f"uniform_step{i}")]
    noise = RecordedNoise({"commit": draws}) if draws else None
    check_run(case, checks, record(denoiser, canvas, recipe, noise), scores=settings["alg"] != "origin")


def _schedules(case: Case, checks: Checks) -> None:
    for table in case.data["tables"]:
        checks.equal(f"{table['masks']}/{table['steps']}", dream_table(table["masks"], table["steps"], table["eps"]), table["counts"])


HANDLERS = {
    "prompt": check_prompt, "logits": _logits, "padded_batch": _padded, "note": _shift, "generation": _generation, "schedule_tables": _schedules,
}  # fmt: skip
