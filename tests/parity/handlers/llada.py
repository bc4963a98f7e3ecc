"""LLaDA-8B text: forward, padding, guidance, generation, tables."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks, ids_of
from tests.parity.common import check_hidden, check_prefix_cache, check_prompt, check_run, logits_of, record
from vlm.checkpoints.keymap import to_published
from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser
from vlm.decoding.denoiser import BackboneDenoiser, GuidedDenoiser
from vlm.decoding.loop import Recipe
from vlm.decoding.presets import preset
from vlm.decoding.quotas import linear_table

FAMILIES = ("llada",)


def _logits(case: Case, checks: Checks) -> None:
    backbone, ids = case.fixture.model().model.backbone, case.input("ids")
    checks.close("logits", logits_of(backbone, ids), case.tensor("logits"))
    checks.top1("bf16 top-1", logits_of(case.fixture.model(dtype=torch.bfloat16).model.backbone, ids), case.tensor("logits"))
    check_hidden(case, checks, backbone, ids)
    check_prefix_cache(checks, backbone, ids, case.data["prompt_length"])


def _padded(case: Case, checks: Checks) -> None:
    backbone = case.fixture.model().model.backbone
    for side in ("left", "right"):
        ids, valid = case.input(f"{side}_ids"), case.input(f"{side}_mask").bool()
        checks.close(f"{side}_masked", logits_of(backbone, ids, valid), case.tensor(f"{side}_masked"), where=valid)
        checks.close(f"{side}_mask_ignored", logits_of(backbone, ids), case.tensor(f"{side}_mask_ignored"))


def _cfg(case: Case, checks: Checks) -> None:
    ids, length = case.input("ids"), case.data["prompt_length"]
    canvas = _canvas(case, ids[:, length:])
    yes, no = _denoisers(case, ids[:, :length], None)
    everything = torch.ones_like(canvas.ids, dtype=torch.bool)
    checks.close("unconditional", no(canvas, everything).logits.unsqueeze(0), case.tensor("unconditional"))
    for name in case.data["tensors"]:
        if name.startswith("guided_"):
            guided = GuidedDenoiser(yes, no, float(name.removeprefix("guided_")))
            checks.close(name, guided(canvas, everything).logits.unsqueeze(0), case.tensor(name))


def _canvas(case: Case, ids: Tensor) -> Canvas:
    backbone = case.fixture.model().config.backbone
    rows = [[None if i == backbone.mask_token_id else i for i in row] for row in ids.tolist()]
    return Canvas.from_rows(rows, mask_id=backbone.mask_token_id, pad_id=backbone.pad_token_id)


def _denoisers(case: Case, prompt: Tensor, valid: Tensor | None) -> tuple[Denoiser, Denoiser]:
    backbone = case.fixture.model().model.backbone
    nothing = torch.full_like(prompt, backbone.config.mask_token_id)
    return BackboneDenoiser(backbone, prompt, valid, rule="full"), BackboneDenoiser(backbone, nothing, valid, rule="full")


def recipe(case: Case, settings: dict[str, object]) -> Recipe:
    """The published sampler's arguments as our preset."""
    length, block = int(str(settings["gen_length"])), int(str(settings["block_length"]))
    meta = case.fixture.meta
    return preset(
        "llada", steps_per_block=int(str(settings["steps"])) // (length // block), block_length=block, temperature=settings["temperature"],
        ignore_confidence_of=ids_of(meta, "eos_token_id", "eot_token_id") if settings.get("confidence_eos_eot_inf") else (),
        banned=ids_of(meta, "eos_token_id") if settings.get("logits_eos_inf") else (), reference_quirks=True,
    )  # fmt: skip


def _generation(case: Case, checks: Checks) -> None:
    config, settings = case.fixture.model().config.backbone, case.settings()
    prompt = case.input("input_ids")
    valid = case.input("attention_mask") if case.has_input("attention_mask") else None
    yes, no = _denoisers(case, prompt, valid)
    denoiser = GuidedDenoiser(yes, no, settings["cfg_scale"]) if settings.get("cfg_scale") else yes
    canvas = Canvas.blank(len(prompt), settings["gen_length"], mask_id=config.mask_token_id, pad_id=config.pad_token_id)
    check_run(case, checks, record(denoiser, canvas, recipe(case, settings)))


def _schedules(case: Case, checks: Checks) -> None:
    for table in case.data["tables"]:
        masks, steps = table["masks"], table["steps"]
        ours = [linear_table(n, steps) for n in masks] if isinstance(masks, list) else linear_table(masks, steps)
        checks.equal(f"{masks}/{steps}", ours, table["counts"])


#: Smallest chance with which a cell is masked, of the published training code.
FLOOR = 1e-3


def _training(case: Case, checks: Checks) -> None:
    """Published losses (GUIDELINES): masks from given draws, 1/p over the answer length, mean over rows; gradients by name."""
    from vlm.training.losses import cell_weights, masked_cross_entropy

    loaded = case.fixture.model()
    backbone, ids = loaded.model.backbone, case.input("ids" if case.has_input("ids") else "input_ids")
    answer = torch.ones_like(ids, dtype=torch.bool)
    for row, length in enumerate(case.data.get("prompt_lengths") or []):
        answer[row, :length] = False
    ratio = (1 - FLOOR) * case.input("t") + FLOOR
    masked = (case.input("u") < ratio.unsqueeze(1)) & answer
    checks.equal("masked", masked, case.tensor("masked"))
    weights, total = cell_weights(masked.unsqueeze(1), answer, ratio.unsqueeze(1), "llada")
    noisy = ids.masked_fill(masked, backbone.config.mask_token_id)
    loaded.model.zero_grad()
    with torch.enable_grad():
        hidden = backbone(backbone.embed(noisy), torch.arange(ids.shape[1]).expand_as(ids), torch.ones_like(answer))
        loss = masked_cross_entropy(backbone.logits(hidden[masked]), ids[masked], weights.squeeze(1)[masked], total)
        loss.backward()
    checks.close("loss", loss.detach().view(1), case.tensor("loss"), tolerance=1e-5)
    ours = {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}
    gradients = to_published(loaded.family.weights(loaded.config), ours)
    norms = case.data["gradient_norms"]
    checks.close("norms", torch.stack([gradients[key].norm() for key in norms]), torch.tensor(list(norms.values())), tolerance=1e-3)
    for key, name in case.data.get("full_gradients", {}).items():
        checks.close(key.removeprefix("model.transformer."), gradients[key], case.fixture.expected[name], tolerance=1e-3)
    loaded.model.zero_grad()


def skip(case: Case) -> str | None:
    """Training cases need the library's losses."""
    missing = case.kind == "training" and importlib.util.find_spec("vlm.training.losses") is None
    return "vlm.training.losses is not there" if missing else None


HANDLERS = {
    "prompt": check_prompt, "training": _training, "logits": _logits, "padded_batch": _padded, "cfg": _cfg, "generation": _generation, "schedule_tables": _schedules,
}  # fmt: skip
