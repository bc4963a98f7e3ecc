"""Optimisers: Muon for hidden matrices, AdamW for the rest, one schedule and clip for both; EMA of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlm.errors import CheckpointError


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix by the quintic Newton-Schulz iteration of Muon (Jordan et al., 2024).

    Args:
        update: [M, N].
        steps: iterations; five bring all singular values to about 0.7..1.2.

    Returns:
        [M, N] in the dtype of `update`, computed in bf16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b g + c g g) x
    return (x.T if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. For 2-D (and convolution) weights of hidden layers only.

    Args:
        params: weights; a convolution [O, I, kh, kw] counts as the matrix [O, I*kh*kw].
        lr: step per update, for matrices of any shape (scaled by sqrt(max(1, rows/columns))).
        momentum: Nesterov momentum.
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p.grad)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                flat = orthogonalise(update.flatten(1))
                scale = math.sqrt(max(1.0, flat.shape[0] / flat.shape[1]))
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(flat.view_as(p), alpha=-group["lr"] * scale)


class Optimisers:
    """Muon on hidden matrices, AdamW on embeddings, heads, norms and biases, under one schedule.

    Args:
        model: everything trainable.
        muon_lr, adam_lr: peak rates.
        is_matrix: says of (name, parameter) whether Muon takes it; default: two or more dimensions, and neither
            an embedding nor a head.
        clip: largest norm of the whole gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_lr: float = 0.02,
        adam_lr: float = 1.5e-3,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        is_matrix: Callable[[str, Tensor], bool] | None = None,
    ) -> None:
        is_matrix = is_matrix or _hidden_matrix
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if is_matrix(n, p)]
        others = [p for n, p in named if not is_matrix(n, p)]
        self.clip = clip
        self.params = [p for _, p in named]
        self.optimisers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimisers.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
        if others:
            self.optimisers.append(torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0))
        self.peaks = [o.param_groups[0]["lr"] for o in self.optimisers]

    def step(self, factor: float) -> float:
        """Clip, update at `factor` times the peak rates, clear gradients. Returns the gradient's norm."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.params, self.clip))
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """State of every optimiser, for a resumable checkpoint."""
        return {"optimisers": [o.state_dict() for o in self.optimisers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def _hidden_matrix(name: str, p: Tensor) -> bool:
    return p.ndim >= 2 and not any(part in name for part in ("embed", "head"))


def warmup_stable_decay(done: float, warmup: float = 0.02, decay: float = 0.3) -> float:
    """Learning-rate factor after the fraction `done` of training: linear up, flat, linear to zero."""
    if done < warmup:
        return max(done / warmup, 1e-3)
    if done > 1 - decay:
        return max((1 - done) / decay, 0.0)
    return 1.0


class EMA:
    """Exponential moving average of a module's parameters and floating-point buffers.

    Args:
        model: the module to follow.
        decay: weight of the past per update.
    """

    def __init__(self, model: nn.Module, decay: float = 0.995) -> None:
        self.decay = decay
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's present weights."""
        ours, theirs = [], []
        for k, v in model.state_dict().items():
            if v.dtype.is_floating_point:
                ours.append(self.average[k])
                theirs.append(v)
            else:
                self.average[k].copy_(v)
        torch._foreach_lerp_(ours, theirs, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, loadable into the model."""
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`; keeps the device."""
        if state.keys() != self.average.keys():
            odd = sorted(state.keys() ^ self.average.keys())
            raise CheckpointError(f"the average does not fit the model: {', '.join(odd[:3])}", remedy="train with the model it was written by")
        for name, value in state.items():
            self.average[name].copy_(value)
