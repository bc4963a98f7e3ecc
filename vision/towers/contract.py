"""What every vision tower is to the rest: a module that turns prepared pixels into features.

A tower is built from the vision part of a checkpoint's ``config.json`` by :func:`vision.towers.build_tower`. Its state
dict has the published names without the checkpoint's prefix (the table in docs/architecture.md names the prefixes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.errors import VisionConfigError

#: How pictures lie in ``pixel_values`` and features in the output.
Layout = Literal["views", "padded", "packed"]


@runtime_checkable
class VisionTower(Protocol):
    """A vision encoder.

    Attributes:
        width: size of a feature, after the tower's own merger if it has one.
        layout: what `forward` takes and gives. `V` views or pictures, `N` patches, `S` side in pixels, `D` numbers of a patch:

            ========  ==========================  ======================  ================================
            layout    pixel_values                grid                    features
            ========  ==========================  ======================  ================================
            views     [V, 3, S, S]                None                    [V, side * side, width]
            padded    [V, N, D], zero-padded      [V, 2] rows, columns    [V, N, width], zero on padding
            packed    [N, D], one after another   [V, 3] frames, rows,    [sum(t*h*w) / merge^2, width],
                                                  columns in patches      picture order
            ========  ==========================  ======================  ================================
        merge: patches per side that become one feature (1: none).
        ignored: regular expressions of keys (without prefix) that a published checkpoint may hold and the tower has no use for.
    """

    width: int
    layout: Layout
    merge: int
    ignored: tuple[str, ...]

    def forward(self, pixel_values: Tensor, grid: Tensor | None = None) -> Tensor:
        """Features of prepared pixels; computed in the dtype of the tower's weights."""
        ...

    def __call__(self, pixel_values: Tensor, grid: Tensor | None = None) -> Tensor: ...


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "relu": F.relu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation with transformers' name `name`; raises VisionConfigError for an unknown one."""
    if name not in _ACTIVATIONS:
        raise VisionConfigError(f"unknown activation {name!r}", source="vision config", remedy=f"one of {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


def number(config: Mapping[str, Any], names: str | tuple[str, ...], default: int) -> int:
    """The first of `names` that `config` has, as an int of at least 1; raises VisionConfigError for anything else."""
    for name in (names,) if isinstance(names, str) else names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise VisionConfigError(f"{name} is {value!r}", source="vision config", remedy="give a whole number of at least 1")
        return value
    return default
