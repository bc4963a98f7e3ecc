"""ReaderTower: the compact convolutional encoder of pocket, which reads while it encodes.

Every stride-8 cell of the picture answers questions whose truth a renderer knows: which characters have their centre
in its left and right half and where their boxes are, and which object or widget has its centre in it. Those answers
are what visual-token selection (:mod:`vision.tokens`) and read-out (:mod:`vision.readout`) work on; the cell's
features go to the backbone through the adapter.

Supervising a text encoder by the place of each character follows character-region detectors such as CRAFT
(arXiv:1904.01941); boxes are regressed from the centre as in CenterNet (arXiv:1904.07850).
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STRIDE = 8
#: Characters the tower can name, in class order; class 0 is 'no character'.
ALPHABET = "".join(chr(c) for c in range(33, 127)) + "£€"
COLORS = (
    "black", "gray", "white", "red", "green", "blue", "yellow", "teal", "brown", "orange", "purple", "pink",
)  # fmt: skip
#: Objects of scenes, which have a colour; they are the first of the things.
SHAPES = ("circle", "triangle", "square", "rectangle", "star", "diamond")
#: Objects and widgets the tower can name, in class order; class 0 is 'nothing'.
THINGS = (
    *SHAPES, "button", "field", "checkbox", "radio", "toggle",
    "dropdown", "link", "tab", "menu_item", "cell", "slider", "generic", "icon:other", "icon:search", "icon:menu",
    "icon:close", "icon:plus", "icon:trash", "icon:gear", "icon:home", "icon:user", "icon:bell", "icon:heart",
    "icon:star", "icon:mail", "icon:arrow_left", "icon:arrow_right", "icon:arrow_up", "icon:arrow_down", "icon:check",
    "icon:pencil", "icon:download", "icon:upload", "icon:eye", "icon:lock", "icon:cart", "icon:calendar",
)  # fmt: skip


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of a :class:`ReaderTower`.

    Attributes:
        stem: channels at stride 2 and at stride 4.
        width: channels at stride 8, the feature size handed to the adapter.
        stem_blocks, blocks: residual blocks at stride 4 and at stride 8.
        alphabet, things, colors: names of the classes, without the leading 'none'.
    """

    stem: tuple[int, int] = (32, 64)
    width: int = 160
    stem_blocks: int = 2
    blocks: int = 6
    alphabet: str = ALPHABET
    things: tuple[str, ...] = THINGS
    colors: tuple[str, ...] = COLORS

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ReaderConfig:
        """Inverse of :meth:`to_dict`; an unknown key raises ``TypeError`` naming it."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise TypeError(f"unknown keys in reader config: {', '.join(unknown)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


@dataclass
class ReaderOutput:
    """What the tower says about each cell; ``h, w`` count cells of 8x8 pixels.

    Attributes:
        features: [B, width, h, w].
        chars: [B, 2, 1+A, h, w] logits for the left and the right half of the cell.
        char_boxes: [B, 2, 4, h, w] (dx, dy, log w, log h): centre offset from the half-cell's centre and size,
            in units of 8 pixels.
        blanks: [B, 2, h, w] logit that a blank follows the character.
        things: [B, 1+T, h, w] logits; colors: [B, 1+C, h, w] logits.
        thing_boxes: [B, 4, h, w] (dx of the left edge, dy of the middle, log w, log h) from the cell's centre.
    """

    features: Tensor
    chars: Tensor
    char_boxes: Tensor
    blanks: Tensor
    things: Tensor
    colors: Tensor
    thing_boxes: Tensor


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm2.weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class ReaderTower(nn.Module):
    """Fully convolutional: any picture whose sides are multiples of 8 pixels.

    Attributes:
        steady: whether training, too, normalises by the running statistics. A batch of one kind of picture has other
            statistics than the mixture: what is learned with them does not hold when single pictures are read.
    """

    def __init__(self, config: ReaderConfig | None = None) -> None:
        super().__init__()
        self.steady = False
        self.config = c = config or ReaderConfig()
        self.stem = nn.Sequential(
            _down(3, c.stem[0]),
            _down(c.stem[0], c.stem[1]),
            *(_Block(c.stem[1]) for _ in range(c.stem_blocks)),
        )
        self.body = nn.Sequential(_down(c.stem[1], c.width), *(_Block(c.width) for _ in range(c.blocks)))
        self.sizes = (2 * (1 + len(c.alphabet)), 8, 2, 1 + len(c.things), 1 + len(c.colors), 4)
        self.head = nn.Conv2d(c.width, sum(self.sizes), 1)

    def train(self, mode: bool = True) -> ReaderTower:
        """Training or evaluation mode; with `steady`, norms stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if self.steady and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> ReaderOutput:
        """Encode and read.

        Args:
            pixels: [B, 3, H, W] in 0..1, H and W multiples of 8.

        Returns:
            ReaderOutput with maps of H/8 x W/8 cells.
        """
        x = self.body(self.stem(pixels * 2.0 - 1.0))
        chars, char_boxes, blanks, things, colors, thing_boxes = self.head(x).split(self.sizes, dim=1)
        return ReaderOutput(
            x, chars.unflatten(1, (2, -1)), char_boxes.unflatten(1, (2, 4)), blanks, things, colors, thing_boxes
        )

    def folded(self, dtype: torch.dtype) -> ReaderTower:
        """A copy for reading only: its norms are part of its convolutions, its weights are held in `dtype`, channels last.

        Reads what the tower in evaluation mode under autocast to `dtype` reads, up to rounding, in two thirds of the time.
        """
        tower = copy.deepcopy(self).eval().requires_grad_(False)
        pairs: list[tuple[nn.Module, str, str]] = []
        for module in tower.modules():
            if isinstance(module, _Block):
                pairs += [(module, "conv1", "norm1"), (module, "conv2", "norm2")]
            elif isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
                pairs.append((module, "0", "1"))
        for module, conv, norm in pairs:
            first, second = module.get_submodule(conv), module.get_submodule(norm)
            assert isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d)
            setattr(module, conv, fuse_conv_bn_eval(first, second))
            setattr(module, norm, nn.Identity())
        tower.to(dtype)
        return tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
