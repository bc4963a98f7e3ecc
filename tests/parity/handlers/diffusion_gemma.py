"""DiffusionGemma: the encoder's pictures and masks, the decoder, the sampler's parts; generations in ``tests/parity/noise_like.py``."""

from __future__ import annotations

import torch

from tests.parity.cases import Case, Checks
from tests.parity.noise_like import denoiser, expected, features, run_generation
from vlm.decoding.gemma import GemmaDenoiser
from vlm.decoding.uniform import Cooling, EntropyBound, Settled, entropies

FAMILIES = ("diffusion-gemma",)
#: Share of best ids that must agree in bf16: with random weights rounding sends tokens to other experts, which changes much.
BF16_SAME = 0.25


def run_decoder(case: Case, checks: Checks) -> None:
    """Logits of a canvas, with and without self-conditioning; behind a padded prompt and one encoded in pieces the same."""
    inputs, module = case.fixture.inputs, case.fixture.model().model.module
    ids, canvas, row = inputs["text_ids"], inputs["canvas"], torch.zeros(1, dtype=torch.long)
    whole = denoiser(case, "text")
    checks.close("logits", whole.step(canvas, None, row), expected(case, "logits"))
    checks.close("self-conditioned", whole.step(canvas, inputs["self_cond"], row), expected(case, "logits_self_cond"))
    table = module.model.encoder.get_input_embeddings()
    with torch.no_grad():
        half = ids.shape[1] // 2
        pieces = GemmaDenoiser(module, table(ids[:, :half]), torch.ones(1, half, dtype=torch.bool), torch.zeros(1, half, dtype=torch.bool))
        pieces.advance(ids[:, half:], row)
        checks.close("two pieces", pieces.step(canvas, None, row), expected(case, "logits_two_piece_prefix"))
        pads = torch.full((1, 3), module.config.text_config.pad_token_id)
        padded = torch.cat((pads, ids), dim=1)
        valid = torch.cat((torch.zeros_like(pads), torch.ones_like(ids)), dim=1).bool()
        behind = GemmaDenoiser(module, table(padded), valid, torch.zeros_like(valid))
        checks.close("left padded", behind.step(canvas, None, row), expected(case, "logits_left_padded"))
    low = case.fixture.model(dtype=torch.bfloat16).model.module
    weight = low.model.encoder.get_input_embeddings()
    with torch.no_grad():
        half = GemmaDenoiser(low, weight(ids), torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool))
    same = (half.step(canvas, None, row).argmax(dim=-1) == expected(case, "logits").argmax(dim=-1)).double().mean()
    checks.errors["bf16 other best ids"] = float(1 - same)
    if same < BF16_SAME:
        checks.failures.append(f"bf16: {float(same):.0%} of the best ids agree")


def run_pictures(case: Case, checks: Checks) -> None:
    """Features and masks; the encoder under them, and with pictures in causal order (what a plain forward gives)."""
    checks.close("features", features(case), expected(case, "image_features"))
    ours = denoiser(case, "image")
    checks.close("encoder", ours.encoded, expected(case, "encoder_generate_masks"))
    causal = denoiser(case, "image", pictures=False).encoded
    checks.close("causal", causal, expected(case, "encoder_causal_masks"))
    checks.close("plain forward", causal, expected(case, "encoder_plain_forward"))
    ids, media = case.fixture.inputs["image_ids"], case.fixture.inputs["mm_token_type_ids"].bool()
    from transformers import DynamicCache

    valid, positions = torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1]).unsqueeze(0)
    embeds = ours.encoder.get_input_embeddings()(ids)
    found = ours.masks(DynamicCache(config=ours.module.config.get_text_config(decoder=True)), embeds, valid, positions, media)
    for kind in ("full_attention", "sliding_attention"):
        theirs = expected(case, f"mask_{kind}")
        checks.equal(kind, found[kind].view(theirs.shape), theirs)


def run_acceptance(case: Case, checks: Checks) -> None:
    """Entropies, and what is accepted under each bound."""
    entropy = entropies(case.fixture.inputs["sampler_logits"])
    checks.close("entropy", entropy, expected(case, "entropy"), tolerance=1e-5)
    before, after = case.fixture.inputs.get("canvas2"), [expected(case, f"accepted_canvas_{i}") for i in range(len(case.data["bounds"]))]
    for i, bound in enumerate(case.data["bounds"]):
        accepted = EntropyBound(bound)(entropy)
        checks.equal(f"mask {bound}", accepted, expected(case, f"mask_{i}"))
        if before is not None:
            checks.equal(f"kept {bound}", before[~accepted], after[i][~accepted])


def run_temperature(case: Case, checks: Checks) -> None:
    """The divisor of every step."""
    cooling = Cooling(case.data["t_min"], case.data["t_max"], case.data["steps"])
    ours = torch.tensor([cooling(left) for left in range(cooling.steps, 0, -1)])
    checks.close("divisor", ours, expected(case, "divisor"), tolerance=1e-6)


def run_stopping(case: Case, checks: Checks) -> None:
    """Flags call by call."""
    settled = Settled(case.data["stability"], case.data["confidence"]).start()
    flags, means = [], []
    for canvas, scale in zip(expected(case, "canvases"), expected(case, "logit_scale"), strict=True):
        entropy = entropies(case.fixture.inputs["sampler_logits"] * scale)
        flags.append(settled(canvas, entropy))
        means.append(entropy.mean(dim=1))
    checks.equal("flags", torch.stack(flags), expected(case, "flags"))
    checks.close("mean entropy", torch.stack(means), expected(case, "mean_entropy"))


HANDLERS = {
    "dec": run_decoder, "img": run_pictures, "accept": run_acceptance, "temp": run_temperature, "stop": run_stopping, "gen": run_generation,
}  # fmt: skip
