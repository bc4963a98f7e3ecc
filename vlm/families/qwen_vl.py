"""What the families with a Qwen vision tower share: the model, its key map, positions, prompts with pictures in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from vision.preprocess.patches import QwenPatches, Small
from vision.projector import MlpProjector
from vision.towers import QwenTower, build_tower
from vlm.backbone.model import DiffusionBackbone
from vlm.checkpoints.keymap import Names, Weight, backbone_weights, linear
from vlm.checkpoints.load import on_meta, read_json
from vlm.families.family import ModelConfig, Picture, Settings
from vlm.families.towers import module_weights
from vlm.processor.prompt import MediaSpan, PromptLayout


@dataclass(frozen=True)
class QwenVision:
    """The vision part of a family.

    Attributes:
        kind: of the tower. sizes: vision_config of config.json. patches: how pictures are resized and cut.
        act: activation of a second MLP behind the tower's merger; None for none.
        axes: entries of a picture have a temporal, height and width position; else positions count on.
    """

    kind: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
    sizes: Mapping[str, Any]
    patches: QwenPatches
    act: str | None = None
    axes: bool = True

    def tower(self) -> QwenTower:
        """The tower, on the current device."""
        tower = build_tower(self.kind, self.sizes)
        assert isinstance(tower, QwenTower)
        return tower


class QwenVL(nn.Module):
    """Qwen vision tower, a second projector in some families, and the diffusion backbone.

    Args:
        config: `vision` is a :class:`QwenVision`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vision: QwenVision = config.vision
        self.backbone = DiffusionBackbone(config.backbone)
        self.tower = vision.tower()
        self.projector = MlpProjector(self.tower.width, config.backbone.hidden_size, act=vision.act) if vision.act else None

    def see(self, images: Sequence[Image.Image]) -> list[Picture]:
        """Features of RGB pictures, all in one call."""
        if not images:
            return []
        pixels, grid = self.config.vision.patches(images)
        device = self.backbone.token_embed.weight.device
        found = self.tower.encode(pixels.to(device), grid.to(device))
        merged = found.merged if self.projector is None else self.projector(found.merged)
        grids = [(t * h // self.tower.merge, w // self.tower.merge) for t, h, w in grid.tolist()]
        counts = [rows * columns for rows, columns in grids]
        deep = list(zip(*(d.split(counts) for d in found.deepstack), strict=True)) or [()] * len(grids)
        return [Picture(f, image.size, cells, tuple(d)) for f, image, cells, d in zip(merged.split(counts), images, grids, deep, strict=True)]

    def positions(self, layout: PromptLayout, pictures: Sequence[Picture]) -> tuple[Tensor, int]:
        """Positions [P, 3] (or [P]) of a prompt and that of whatever comes next."""
        if not self.config.vision.axes:
            return torch.arange(layout.length), layout.length
        return mrope_positions(layout.length, layout.spans, [p.grid for p in pictures])


def patches_of(settings: Settings, pixels: tuple[int, int], *, patch: int = 14, small: Small = "scale", **other: Any) -> QwenPatches:
    """Preprocessing as the preprocessor_config.json beside a config.json says.

    Args:
        pixels: smallest and largest area of the published file, where there is none.
        small: what happens to pictures with a side below one cell (``vision.preprocess.smart_resize``).
        other: further defaults of :class:`vision.preprocess.QwenPatches`, for the same case.
    """
    config = read_json(Path(settings.source).parent / "preprocessor_config.json", required=False)
    return QwenPatches.from_dict(config, small=small) if config else QwenPatches(*pixels, patch, small=small, **other)


def mrope_positions(length: int, spans: Sequence[MediaSpan], grids: Sequence[tuple[int, int]]) -> tuple[Tensor, int]:
    """Positions of three axes (Qwen2-VL, arXiv:2409.12191, section 2.1).

    Text counts on in all three. The entries of a picture share the temporal position and count rows and columns from there;
    what follows goes on behind the largest position so far.

    Args:
        length: entries of the prompt. spans: where the pictures lie, in order. grids: rows and columns of picture `span.index`.

    Returns:
        ([length, 3] positions, position of whatever comes next).
    """
    positions = torch.zeros(length, 3, dtype=torch.long)
    done, at = 0, 0
    for span in spans:
        rows, columns = grids[span.index]
        positions[done : span.start] = at + torch.arange(span.start - done).unsqueeze(1)
        at += span.start - done
        cell = torch.arange(span.length)
        positions[span.start : span.start + span.length] = at + torch.stack((torch.zeros_like(cell), cell // columns, cell % columns), dim=1)
        at += max(rows, columns)
        done = span.start + span.length
    positions[done:] = at + torch.arange(length - done).unsqueeze(1)
    return positions, at + length - done


def qwen_vl_weights(config: ModelConfig, names: Names, tower: str, *, merger: str | None = None, projector: str | None = None) -> list[Weight]:
    """The key map of such a family.

    Args:
        names: of the language part. tower: prefix of the tower's keys. merger: prefix of its merger's, if it is not stored with
            the tower. projector: prefix of the second MLP's `linear_1` and `linear_2`.
    """
    vision: QwenVision = config.vision
    found = backbone_weights(config.backbone, names)
    module = on_meta(vision.tower)
    for weight in module_weights(module, "tower.", tower):
        if merger is not None and weight.name.startswith("tower.merger."):
            continue
        found.append(weight)
    if merger is not None:
        found += module_weights(module.merger, "tower.merger.", merger)
    if projector is not None:
        width = config.backbone.hidden_size
        found += linear("projector.layers.0", f"{projector}linear_1", width, module.width)
        found += linear("projector.layers.1", f"{projector}linear_2", width, width)
    return found
