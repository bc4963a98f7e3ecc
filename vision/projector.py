"""The plain projectors of the LLaVA family: a stack of linear layers between a tower and the language backbone."""

from __future__ import annotations

import re

from torch import Tensor, nn

from vision.errors import VisionConfigError
from vision.towers.contract import activation


class MlpProjector(nn.Module):
    """Linear layers with an activation between them: [..., inputs] -> [..., outputs].

    Args:
        inputs: width of the tower's features. outputs: width of the backbone. depth: number of layers, all but the first
            outputs x outputs. act: transformers' name of the activation.

    State dict: ``layers.0``, ``layers.1``, ... (published as ``mm_projector.0/.2``, ``linear_1/linear_2``, ...).
    """

    def __init__(self, inputs: int, outputs: int, *, depth: int = 2, act: str = "gelu") -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs if i == 0 else outputs, outputs) for i in range(depth))
        self.act = activation(act)

    def forward(self, features: Tensor) -> Tensor:
        x: Tensor = self.layers[0](features)
        for layer in list(self.layers)[1:]:
            x = layer(self.act(x))
        return x


def projector_depth(name: str) -> int:
    """Number of layers of LLaVA's ``mm_projector_type``: "linear" or "mlpNx_gelu"; raises VisionConfigError for others."""
    if name == "linear":
        return 1
    match = re.fullmatch(r"mlp(\d+)x_gelu", name)
    if match is None or int(match[1]) < 1:
        raise VisionConfigError(f"mm_projector_type {name!r}", source="vision config", remedy="linear or mlpNx_gelu")
    return int(match[1])
