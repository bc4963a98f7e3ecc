"""Cases of Dream-VL and Dimple: generation with the samplers of Dream, cached as the published code caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks
from tests.parity.common import RecordedNoise, record
from tests.parity.prompted import Heard, Prompts, behind, canvas_of, named
from tests.parity.vision import expected
from vlm.decoding.contracts import Noise
from vlm.decoding.denoiser import BackboneDenoiser
from vlm.decoding.loop import Recipe, decode
from vlm.decoding.presets import preset


def recipe(case: Case, length: int) -> Recipe:
    """The reference's settings as our preset."""
    s, config = case.settings(), case.fixture.model().config.backbone
    top_p = None if s.get("top_p") is None else max(float(s["top_p"]), 1e-9)  # 0 leaves the best token alone
    common: dict[str, Any] = {"temperature": s["temperature"], "top_p": top_p, "top_k": s.get("top_k"), "reference_quirks": True, "pooled": True, "banned": s.get("forbid", ())}
    steps, alg = s["steps"], str(s["alg"])
    score = {"maskgit_plus": "prob", "topk_margin": "margin", "entropy": "entropy"}.get(alg, "prob")
    if s.get("decoding_pipeline", "dream") == "dim":
        order = {"autoregressive": "left", "origin": "random"}.get(alg, "score")
        return preset(
            "dimple", gamma=s.get("alg_p_threshold"), steps=steps, score=score, order=order, filtered=not s.get("use_original_confidence", True), **common
        )
    alg_temp = {} if alg == "origin" else {"alg_temp": s.get("alg_temp") or 0.0}
    return preset(
        f"dream-{alg.replace('_', '-')}", steps=steps, end_penalty=s.get("eos_penalty", 0.0), penalised=(config.pad_token_id,), **alg_temp, **common
    )


class RecordedOrder(Noise):
    """Permutations that a reference drew; the first place of each gets the highest number."""

    def __init__(self, permutations: list[Tensor]) -> None:
        self.left = list(permutations)

    def uniform(self, purpose: str, step: Any, width: int = 0) -> Tensor:
        order = self.left.pop(0)
        drawn = torch.zeros(len(order), dtype=torch.float64)
        drawn[order] = 1 - torch.arange(len(order), dtype=torch.float64) / len(order)
        return drawn


def noise(case: Case) -> Noise | None:
    """The draws of the case."""
    names = case.data.get("inputs_tensors", {})
    for prefix, kind in (("draws_step", lambda d: RecordedNoise({"commit": d})), ("perm_", RecordedOrder)):
        count = sum(name.startswith(prefix) for name in names)
        if count:
            return kind([case.fixture.inputs[names[f"{prefix}{i}"]] for i in range(count)])
    return None


def contradictions(case: Case, history: Tensor) -> list[int]:
    """Steps in which the reference commits a cell that its own recorded logits call less probable than one it leaves open.

    Only rows that are still as they were in the first step can be told so: their logits are those of the first step.
    """
    first, s = expected(case, "logits_step0"), case.settings()
    if first is None or s["alg"] != "maskgit_plus" or s["temperature"] or len(history[0]) < 2:
        return []
    mask = case.fixture.model().config.backbone.mask_token_id
    chance = torch.softmax(first[:, : history.shape[2]].double(), dim=-1).amax(dim=-1)
    found = []
    for i in range(1, len(history)):
        for row, (before, after) in enumerate(zip(history[i - 1], history[i], strict=True)):
            taken, left = (before == mask) & (after != mask), after == mask
            if bool((before == mask).all()) and bool(taken.any()) and bool(left.any()) and chance[row][taken].min() < chance[row][left].max() - 1e-3:
                found.append(i)
    return found


@dataclass(frozen=True)
class Generations:
    """How the generations of such a family are run."""

    prompts: Prompts

    def run(self, case: Case, checks: Checks) -> None:
        """Canvas by canvas, and the raw logits that were recorded."""
        ours = self.prompts.of(named(case.fixture, case.data["prompt"]))
        length = case.data["max_new_tokens"]
        backbone = case.fixture.model().model.backbone
        cached = case.settings().get("use_cache", False)
        heard = Heard(BackboneDenoiser.of(backbone, ours.inputs, "first" if cached else "full"), [])
        run = record(heard, canvas_of(case, len(ours.layouts), length), recipe(case, length), noise(case))
        history = expected(case, "history")
        assert history is not None
        history = history[:, :, -length:]
        spare = len(history) - len(run.history)  # Dream goes through all its steps, also when nothing is left
        if "steps_used" not in case.data["expected"] and spare > 0 and torch.equal(history[-spare:], history[-1:].expand(spare, -1, -1)):
            history = history[:-spare]
            canvas = canvas_of(case, len(ours.layouts), length)
            canvas.ids = history[-1]
            heard(canvas, canvas.valid)
        if len(history) == len(run.history) and not torch.equal(history, run.history) and (odd := contradictions(case, history)):
            self._stepwise(case, checks, history, odd)
            self._logits_after(case, checks, heard, ours, history)
            return
        checks.equal("history", run.history, history)
        if (steps := expected(case, "steps_used")) is not None:
            checks.equal("steps", len(run.history), int(steps))
        for name in case.data["expected"]:
            if name.startswith("logits_"):
                at = len(heard.seen) - 1 if name == "logits_last" else int(name.removeprefix("logits_step"))
                theirs = expected(case, name)
                assert theirs is not None
                checks.close(name, heard.seen[at], theirs[:, :length])  # row j speaks of canvas cell j

    def _stepwise(self, case: Case, checks: Checks, history: Tensor, odd: list[int]) -> None:
        """Every step on its own from the recorded canvas before it, but those in which the reference contradicts its own logits."""
        length = case.data["max_new_tokens"]
        ours = self.prompts.of(named(case.fixture, case.data["prompt"]))
        canvas = canvas_of(case, len(ours.layouts), length)
        denoiser = BackboneDenoiser.of(case.fixture.model().model.backbone, ours.inputs, "full")
        for i, frame in enumerate(decode(denoiser, canvas, recipe(case, length), noise=noise(case))):
            if i not in odd:
                checks.equal(f"step {i}", frame.ids, history[i])
            canvas.ids, canvas.masked = history[i].clone(), (history[i] == canvas.mask_id) & ~canvas.frozen
        checks.equal(f"step {', '.join(map(str, odd))} left out: there the reference takes a cell less probable by its own logits than one it leaves", True, True)

    def _logits_after(self, case: Case, checks: Checks, heard: Heard, ours: Any, history: Tensor) -> None:
        """The recorded logits of the first and of the last step."""
        canvas = canvas_of(case, len(ours.layouts), case.data["max_new_tokens"])
        for name, before in (("logits_step0", canvas.ids.clone()), ("logits_last", history[-2])):
            theirs = expected(case, name)
            if theirs is not None:
                canvas.ids = before
                heard(canvas, canvas.valid)
                checks.close(name, heard.seen[-1], theirs[:, : canvas.ids.shape[1]])

    def _row(self, case: Case, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(embeddings [1, T, D], positions) of training ids [T] with their pictures in place."""
        backbone = case.fixture.model().model.backbone
        prompt, known = self.prompts.row(case.fixture, ids)
        with torch.no_grad():
            embeds = torch.cat((prompt.embeds, backbone.embed(ids[None, known:])), dim=1)
        return embeds, torch.cat((prompt.positions, behind(prompt, len(ids) - known)), dim=1)

    @torch.no_grad()
    def train(self, case: Case, checks: Checks) -> None:
        """Noise, logits from the last prompt row on, and the loss over masked cells, each predicted one row before it."""
        from vlm.training.losses import context_weights, masked_cross_entropy

        given = {name: case.fixture.inputs[key] for name, key in case.data["inputs_tensors"].items()}
        backbone, ids, answer = case.fixture.model().model.backbone, given["input_ids"], given["labels"] >= 0
        if "mask_indices" in given:
            masked, ratio = given["mask_indices"], given["p_mask"]
        else:
            ratio = FLOOR + (1 - FLOOR) * given["u_t"]
            checks.close("t", ratio, _tensor(case, "t"), tolerance=1e-6)
            masked = (given["u_tokens"] < ratio.unsqueeze(1)) & answer
            if case.data["mask_strategy"] == "dual":
                masked, ids, answer = torch.cat((masked, answer & ~masked)), ids.repeat(2, 1), answer.repeat(2, 1)
            checks.equal("noisy", ids.masked_fill(masked, backbone.config.mask_token_id), _tensor(case, "noisy_ids"))
        rows = [self._row(case, row) for row in ids]
        embeds, positions = (torch.cat(parts) for parts in zip(*rows, strict=True))
        embeds = torch.where(masked.unsqueeze(-1), backbone.token_embed.weight[backbone.config.mask_token_id], embeds)
        raw = backbone.logits(backbone(embeds, positions, torch.ones_like(masked)))
        theirs = _tensor(case, "logits_answer")
        checks.close("logits", raw[:, -theirs.shape[1] :], theirs)
        if (places := expected(case, "position_ids")) is not None:
            checks.equal("positions", positions[: places.shape[1]], places.movedim(0, 2))
        ahead = torch.cat((masked[:, 1:], torch.zeros_like(masked[:, :1])), dim=1)  # rows whose next cell is masked
        scheme = case.data.get("weighting", "none")
        weight = torch.ones_like(raw[..., 0])
        if scheme == "cart":
            weight = context_weights(ahead)
            checks.close("weights", weight[ahead], _tensor(case, "cart_weight_rows")[ahead], tolerance=1e-5)
        elif scheme != "none":
            weight = ((1 / ratio) if scheme == "original" else (1 - ratio)).unsqueeze(1).expand_as(weight)
        loss = masked_cross_entropy(raw[ahead], ids[masked], weight[ahead], float(masked.sum()))
        checks.close("loss", loss.view(1), _tensor(case, "loss").view(1))


#: Smallest chance with which a cell is masked, of the published training code.
FLOOR = 1e-3


def _tensor(case: Case, name: str) -> Tensor:
    found = expected(case, name)
    assert found is not None, name
    return found
