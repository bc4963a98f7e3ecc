"""Training cases of the block-diffusion families: layouts, noise levels, masks and losses of the published code."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.cases import Case, Checks
from tests.parity.prompted import Prompts, behind
from tests.parity.vision import expected
from vlm.backbone.inputs import Inputs, deepstack
from vlm.training.block_diffusion import doubled_rule, prefix_rule, stratified_levels
from vlm.training.losses import masked_cross_entropy

#: Smallest noise level of the published training code.
FLOOR = 1e-3


def tensor(case: Case, name: str) -> Tensor:
    """An expected tensor that must be there."""
    found = expected(case, name)
    assert found is not None, name
    return found


def given(case: Case, name: str) -> Tensor:
    """An input by its name."""
    return case.fixture.inputs[case.data["inputs_tensors"][name]]


@dataclass(frozen=True)
class BlockTraining:
    """How such a family trains."""

    prompts: Prompts

    def whole(self, case: Case, ids: Tensor) -> tuple[Inputs, int]:
        """(inputs of ids [T] with pictures in place, entries that the prompt's pictures added)."""
        backbone = case.fixture.model().model.backbone
        prompt, known = self.prompts.row(case.fixture, ids)
        rest = ids[None, known:]
        embeds = torch.cat((prompt.embeds, backbone.embed(rest)), dim=1)
        positions = torch.cat((prompt.positions, behind(prompt, rest.shape[1])), dim=1)
        deep = tuple(F.pad(d, (0, 0, 0, rest.shape[1])) for d in prompt.deep)
        return Inputs(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), positions, prompt.start, deep), int(prompt.lengths[0]) - known

    def mask(self, case: Case, checks: Checks) -> None:
        """The training rule for several block lengths: [noisy | clean], packed samples, or [prefix | clean | noisy]."""
        for length in case.data["blocks"]:
            theirs = tensor(case, f"block{length}")
            if "prefix" in case.data:
                quirk, right = (prefix_rule(case.data["prefix"], case.data["response"], length, reference_quirks=q) for q in (True, False))
                n = len(quirk)
                checks.equal(f"block{length}", quirk, theirs[:n, :n])
                checks.equal(f"block{length} right", bool((right & ~quirk).any()), False)
                continue
            if "lens" in case.data:
                checks.equal(f"block{length}", packed_rule(case.data["lens"], length), theirs)
            else:
                checks.equal(f"block{length}", doubled_rule(torch.arange(case.data["n"]) // length), theirs)

    @torch.no_grad()
    def doubled(self, case: Case, checks: Checks) -> None:
        """DiffusionVL: end filling, levels by stratum, masks, logits of the noisy half, loss over the answer of each row."""
        backbone, block = case.fixture.model().model.backbone, case.data["block"]
        ids, labels_in, mask_in = given(case, "input_ids"), given(case, "labels_in"), given(case, "attention_mask_in")
        labels, valid = tensor(case, "labels"), tensor(case, "attention_mask")
        rows, targets = [], torch.full_like(labels, -100)
        end = backbone.config.eos_token_id
        for i in range(len(ids)):
            inside = mask_in[i].bool()
            inputs, more = self.whole(case, ids[i][inside])
            row, target = inputs.embeds[0], torch.cat((torch.full((more,), -100), labels_in[i][inside]))
            fill = -len(row) % block
            row = torch.cat((row, backbone.embed(torch.full((fill,), end))))
            rows.append(row)
            targets[i, : len(row)] = torch.cat((target, torch.full((fill,), end)))
        checks.equal("labels", targets, labels)
        width = labels.shape[1]
        embeds = torch.stack([F.pad(row, (0, 0, 0, width - len(row))) for row in rows])
        checks.equal("valid", torch.stack([torch.arange(width) < len(row) for row in rows]), valid)
        levels = stratified_levels(given(case, "u_block")).repeat_interleave(block, dim=1)[:, :width]
        checks.close("t", levels, tensor(case, "t"), tolerance=1e-6)
        answer = labels >= 0
        masked = (given(case, "u_token") < levels) & answer
        checks.equal("masked", masked, tensor(case, "masked"))
        noisy = torch.where(masked.unsqueeze(-1), backbone.token_embed.weight[backbone.config.mask_token_id], embeds)
        both, positions = torch.cat((noisy, embeds), dim=1), torch.arange(width).repeat(2).expand(len(ids), -1)
        rule = doubled_rule(torch.arange(width) // block).unsqueeze(0)
        raw = backbone.logits(backbone(both, positions, torch.cat((valid, valid), dim=1), rule=rule))[:, :width]
        checks.close("logits", raw[answer], tensor(case, "logits_supervised"))
        weight = (masked / levels / answer.sum(1, keepdim=True))[masked]
        loss = masked_cross_entropy(raw[masked], labels[masked], weight, float(len(ids)))
        checks.close("loss", loss.view(1), tensor(case, "loss").view(1))

    @torch.no_grad()
    def packed(self, case: Case, checks: Checks) -> None:
        """SDAR-VL: samples packed in a row, each as [noisy | clean]; cross-entropy over p, by the number of masked cells."""
        loaded = case.fixture.model()
        backbone, blocks = loaded.model.backbone, loaded.config.blocks
        assert blocks is not None
        ids, labels, places = (given(case, name)[0] for name in ("input_ids", "labels", "position_ids_in"))
        starts = (places == 0).nonzero().flatten().tolist()
        pads = next(i for i, s in enumerate(starts) if i + 1 < len(starts) and starts[i + 1] == s + 1)
        bounds = [*starts[: pads + 1], len(ids)]
        lens = [b - a for a, b in pairwise(bounds)]
        ratio = torch.repeat_interleave(FLOOR + (1 - FLOOR) * given(case, "u_sample")[: len(lens)], torch.tensor(lens))
        answer = labels >= 0
        masked = (given(case, "u_token")[0] < ratio) & answer
        checks.equal("masked", masked.unsqueeze(0), tensor(case, "masked"))
        checks.close("p", ratio[masked], tensor(case, "p_mask"), tolerance=1e-5)
        parts, positions, noisy, halves = [], [], [], []
        for i, (a, b) in enumerate(pairwise(bounds)):
            row = self.whole(case, ids[a:b])[0].embeds[0] if i < len(lens) - 1 else backbone.embed(ids[a:b])
            hidden = torch.where(masked[a:b].unsqueeze(1), backbone.token_embed.weight[backbone.config.mask_token_id], row)
            parts += [hidden, row]
            positions.append(torch.arange(b - a).repeat(2))
            noisy.append(torch.arange(2 * (b - a)) < b - a)
            halves.append(masked[a:b])
        where = torch.cat(noisy)
        checks.equal("positions", torch.cat(positions).unsqueeze(0), tensor(case, "position_ids_doubled"))
        checks.equal("noisy", where.unsqueeze(0), tensor(case, "noisy_part"))
        rule = packed_rule(lens, blocks.length)
        checks.equal("rule", rule.unsqueeze(0), tensor(case, "attention_mask"))
        hidden = backbone(torch.cat(parts).unsqueeze(0), torch.cat(positions).unsqueeze(0), torch.ones(1, len(rule), dtype=torch.bool), rule=rule.unsqueeze(0))
        raw = backbone.logits(hidden)[0][where]
        loss = masked_cross_entropy(raw[masked], labels[masked], 1 / ratio[masked], float(masked.sum()))
        checks.close("loss", loss.view(1), tensor(case, "loss").view(1))

    @torch.no_grad()
    def prefixed(self, case: Case, checks: Checks) -> None:
        """BARD-VL: collated rows [prefix | clean | noisy]; rule, positions, levels constant in a block, losses by 1/t."""
        backbone, block = case.fixture.model().model.backbone, case.data["block"]
        ids, labels, noisy, levels = (tensor(case, name) for name in ("input_ids", "labels", "response_mask", "t"))
        counted, attends, logits = tensor(case, "loss_mask"), tensor(case, "attention_mask"), []
        for i in range(len(ids)):
            response, first = int(noisy[i].sum()), int(noisy[i].int().argmax())
            prefix, end = first - response, first + response
            inputs, _ = self.whole(case, ids[i, :end])
            positions = inputs.positions[0]
            positions = torch.cat((positions[:first], positions[prefix:first]))
            checks.equal(f"positions {i}", positions, tensor(case, "position_ids")[:, i, :end].T)
            rule = prefix_rule(prefix, response, block, reference_quirks=True)
            checks.equal(f"rule {i}", rule, attends[i, :end, :end])
            steps = levels[i, first:end].split(block)
            checks.equal(f"blocks {i}", all(len(set(s.tolist())) <= 2 for s in steps), True)
            hidden = backbone(inputs.embeds, positions.unsqueeze(0), inputs.valid, rule=rule.unsqueeze(0), between=deepstack(inputs.deep))
            logits.append(backbone.logits(hidden)[0, first:end])
        raw = torch.cat(logits)
        checks.close("logits", raw, tensor(case, "logits_noisy"))
        at = counted & noisy
        each = F.cross_entropy(raw[counted[noisy]], labels[at], reduction="none") / levels[at]
        rows = at.nonzero()[:, 0]
        length = noisy.sum(1)
        checks.close("macro", ((each / length[rows]).sum() / len(ids)).view(1), tensor(case, "loss_macro").view(1))
        checks.close("token", each.mean().view(1), tensor(case, "loss_token").view(1))


def packed_rule(lens: list[int], block: int) -> Tensor:
    """[2N, 2N] of samples one after another, each as [noisy | clean]."""
    return torch.block_diag(*(doubled_rule(torch.arange(n) // block).float() for n in lens)).bool()
