"""Prompts with their media in place, as a backbone takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Inputs:
    """B prompts of up to P entries.

    Attributes:
        embeds: [B, P, D] embeddings, those of media already in their places.
        valid: [B, P], False on padding.
        positions: [B, P], or [B, P, 3] for backbones with ``mrope_sections``.
        start: [B] position of the first cell behind the prompt.
        deep: [B, P, D] each: what is added to the states behind the first, second, ... block (Qwen3-VL's deepstack,
            zero at text); empty for families without it.
    """

    embeds: Tensor
    valid: Tensor
    positions: Tensor
    start: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def lengths(self) -> Tensor:
        """[B] valid entries."""
        return self.valid.sum(dim=1)

    def to(self, device: torch.device | str) -> Inputs:
        """On another device."""
        deep = tuple(d.to(device) for d in self.deep)
        return Inputs(self.embeds.to(device), self.valid.to(device), self.positions.to(device), self.start.to(device), deep)

    @classmethod
    def join(cls, rows: Sequence[tuple[Tensor, Tensor, int, tuple[Tensor, ...]]]) -> Inputs:
        """Pad on the right: one (embeds [P, D], positions [P] or [P, 3], start, deep) for each row."""
        width, first = max(len(row[0]) for row in rows), rows[0]

        def padded(tensors: Sequence[Tensor]) -> Tensor:
            out = tensors[0].new_zeros(len(tensors), width, *tensors[0].shape[1:])
            for i, tensor in enumerate(tensors):
                out[i, : len(tensor)] = tensor
            return out

        valid = padded([torch.ones(len(row[0]), dtype=torch.bool, device=first[0].device) for row in rows])
        deep = tuple(padded([row[3][i] for row in rows]) for i in range(len(first[3])))
        starts = torch.tensor([row[2] for row in rows], device=first[0].device)
        return cls(padded([row[0] for row in rows]), valid, padded([row[1] for row in rows]), starts, deep)


def deepstack(deep: Sequence[Tensor]) -> Callable[[int, Tensor], Tensor] | None:
    """The hook of :meth:`vlm.backbone.model.DiffusionBackbone.forward` that adds `deep` [B, P, D] to the first P states."""
    if not deep:
        return None

    def between(done: int, x: Tensor) -> Tensor:
        if done > len(deep):
            return x
        more = deep[done - 1]
        return torch.cat((x[:, : more.shape[1]] + more, x[:, more.shape[1] :]), dim=1)

    return between
