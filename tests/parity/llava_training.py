"""Training cases of the LLaVA kind: assembled conversations, masks, losses, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case, Checks
from tests.parity.llava_driver import bare, engine_of, ids_of_prompt, literal, pictures_of, prompt_of
from vlm.checkpoints.keymap import to_published
from vlm.published import PublishedEngine
from vlm.training.conversations import IGNORE, Loss, Merged, Row, masked_states, merge, training_row

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
#: A gradient's norm, relative; the cases say 1e-3.
NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Trainer:
    """How a family is trained.

    Attributes:
        loss: (case, engine, batch, ratio [B], noise [B, T]) -> loss. options: of `training_row`.
        padding: whether text padding is learned although its labels say otherwise (LaViDa).
    """

    loss: Callable[[Case, PublishedEngine, Merged, Tensor, Tensor], Loss]
    options: dict[str, Any]
    padding: bool

    def check_prompt(self, case: Case, checks: Checks) -> None:
        """Ids and labels of a conversation, and the merged sequence where the case has it."""
        engine, marker = engine_of(case), case.fixture.meta["image_token_index"]
        row = self.row(engine, [(ROLES[t["from"]], t["value"]) for t in case.data["conversation"]])
        checks.equal("ids", ids_of_prompt(row.prompt, marker), case.input("input_ids").flatten().tolist())
        checks.equal("labels", list(row.labels), case.input("labels").flatten().tolist())
        batch = merge(engine.model.backbone, [row], [[p.features for p in engine.see_all(pictures_of(case))]])
        if "merged_labels" in case.data["tensors"]:
            checks.equal("merged_labels", batch.labels, case.tensor("merged_labels"))
        if "merged_input_ids" in case.data["tensors"]:
            checks.equal("merged_input_ids", batch.ids, case.tensor("merged_input_ids"))
        for name in case.data["tensors"]:
            if name.startswith("merged_embeds_every_"):
                checks.close(name, batch.embeds.detach()[:, :: int("".join(filter(str.isdigit, name)))], case.tensor(name))

    def row(self, engine: PublishedEngine, turns: list[tuple[str, str]]) -> Row:
        """The row of a conversation in which markers stand for pictures."""
        system = engine.family.template.default_system
        full = turns if turns[0][0] == "system" or system is None else [("system", system), *turns]
        return training_row(bare(engine.family.template), engine.tokenizer, literal(full), **self.options)

    def rows(self, case: Case, engine: PublishedEngine) -> list[Row]:
        """The rows of a training case as recorded; our own assembly is compared up to the padding."""
        marker, pad = case.fixture.meta["image_token_index"], engine.config.pad_token_id
        given, labels = case.input("input_ids"), case.input("labels").clone()
        if self.padding:
            labels[~case.input("attention_mask").bool()] = pad
        rows = []
        for ids, own, texts in zip(given.tolist(), labels.tolist(), case.data["texts"], strict=True):
            mine = self.row(engine, [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)])
            rounds = (*mine.rounds, *[mine.rounds[-1]] * (len(ids) - len(mine.rounds)))
            rows.append(Row(prompt_of(ids, ["picture"] * ids.count(marker), marker), tuple(own), rounds))
        return rows

    def __call__(self, case: Case, checks: Checks) -> None:
        """Masks, masked logits, loss and gradients."""
        engine = engine_of(case)
        rows = self.rows(case, engine)
        features = [[p.features for p in engine.model.see([image])] for image in pictures_of(case)]
        batch = merge(engine.model.backbone, rows, features, reference_quirks=True)
        ratio = (1 - 1e-3) * case.input("t") + 1e-3
        engine.model.zero_grad()
        loss = self.loss(case, engine, batch, ratio, case.input("u"))
        loss.value.backward()
        self._compare(case, checks, batch, ratio, loss)
        self._logits(case, checks, engine, batch, loss)
        self._gradients(case, checks, engine)

    def _compare(self, case: Case, checks: Checks, batch: Merged, ratio: Tensor, loss: Loss) -> None:
        tensors = case.data["tensors"]
        checks.equal("masked", loss.masks, case.tensor("masked"))
        checks.close("loss", loss.value.detach()[None], case.tensor("loss"), tolerance=1e-5)
        if "merged_labels" in tensors:
            checks.equal("merged_labels", batch.labels, case.tensor("merged_labels"))
        if "labels_doubled" in tensors:
            doubled = batch.labels.repeat(2, 1)
            checks.equal("labels_doubled", torch.where(loss.masks, doubled, IGNORE), case.tensor("labels_doubled"))
            checks.equal("merged_input_ids", batch.ids, case.tensor("merged_input_ids"))
            checks.close("p_mask", ratio.view_as(case.tensor("p_mask")), case.tensor("p_mask"))
        if "conversation_ids" in tensors:
            checks.equal("conversation_ids", batch.rounds, case.tensor("conversation_ids"))
        for name, ours in (("merged_length", batch.ids.shape[1]), ("num_targets", int(loss.masks.sum())), ("masked_counts", loss.masks.sum(1).tolist())):
            if name in case.data:
                checks.equal(name, ours, case.data[name])

    @torch.no_grad()
    def _logits(self, case: Case, checks: Checks, engine: PublishedEngine, batch: Merged, loss: Loss) -> None:
        """Raw logits at (the first of) the masked cells of the first row; without a shift the loss has them already."""
        name = next(name for name in case.data["tensors"] if name.endswith("_logits_row0"))
        theirs, backbone = case.tensor(name), engine.model.backbone
        ours = loss.logits[: int(loss.masks[0].sum())]
        if engine.config.logit_shift:
            ours = backbone.logits(masked_states(backbone, batch, loss.masks)[0][loss.masks[0]])
        checks.close(name, ours[: len(theirs)], theirs)

    def _gradients(self, case: Case, checks: Checks, engine: PublishedEngine) -> None:
        """Under the published keys; the embedding row that the reference never trains (Dream's padding) is left out."""
        if engine.config.logit_shift:
            engine.model.backbone.token_embed.weight.grad[engine.config.pad_token_id] = 0
        gradients = {name: p.grad for name, p in engine.model.named_parameters() if p.grad is not None}
        config = engine.loaded.config
        found = to_published([w for w in engine.family.weights(config) if w.name in gradients], gradients)
        wanted = case.data["gradient_norms"]
        missing = sorted(set(wanted) - set(found))
        checks.equal("gradients without counterpart", missing, [])
        keys = [key for key in wanted if key in found]
        norms, theirs = torch.stack([found[k].norm() for k in keys]), torch.tensor([wanted[k] for k in keys])
        scale = theirs.clamp_min(1e-5 * float(theirs.max()))  # a key's bias has no gradient: its norm is rounding
        checks.close(f"{len(keys)} gradient norms", (norms - theirs) / scale + 1, torch.ones_like(theirs), tolerance=NORM_TOLERANCE)
        for key, name in case.data["full_gradients"].items():
            checks.close(f"grad {key.rsplit('.', 2)[-2]}", found[key], case.fixture.expected[name])
