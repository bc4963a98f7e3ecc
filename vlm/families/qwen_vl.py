"""What the families with a Qwen vision tower share: the model, its key map, positions, prompts with pictures in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from vision.preprocess.patches import QwenPatches, Small
from vision.projector import MlpProjector
from vision.towers import QwenTower, build_tower
from vlm.backbone.inputs import Inputs
from vlm.backbone.model import DiffusionBackbone
from vlm.checkpoints.keymap import Names, Weight, backbone_weights, linear
from vlm.checkpoints.load import on_meta
from vlm.families.family import ModelConfig
from vlm.families.towers import module_weights
from vlm.processor.prompt import MediaSpan, PromptLayout


@dataclass(frozen=True)
class QwenVision:
    """The vision part of a family.

    Attributes:
        kind: of the tower. sizes: vision_config of config.json.
        act: activation of a second MLP behind the tower's merger; None for none.
        small: what happens to pictures with a side below one cell (``vision.preprocess.smart_resize``).
        axes: entries of a picture have a temporal, height and width position; else positions count on.
    """

    kind: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
    sizes: Mapping[str, Any]
    act: str | None = None
    small: Small = "scale"
    axes: bool = True

    def tower(self) -> QwenTower:
        """The tower, on the current device."""
        tower = build_tower(self.kind, self.sizes)
        assert isinstance(tower, QwenTower)
        return tower

    def preprocessing(self, preprocessor: Mapping[str, Any]) -> QwenPatches:
        """As a preprocessor_config.json says. The published files of one model disagree about the pixel limits."""
        return QwenPatches.from_dict(preprocessor, small=self.small)


@dataclass
class Picture:
    """A picture as the backbone sees it.

    Attributes:
        features: [K, D]. grid: rows and columns, K = rows * columns. deep: [K, D] each, for the blocks behind.
    """

    features: Tensor
    grid: tuple[int, int]
    deep: tuple[Tensor, ...] = ()


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

    @torch.no_grad()
    def see(self, images: Sequence[Image.Image], patches: QwenPatches) -> list[Picture]:
        """Encode RGB pictures, all in one call."""
        if not images:
            return []
        pixels, grid = patches(images)
        device = self.backbone.token_embed.weight.device
        found = self.tower.encode(pixels.to(device), grid.to(device))
        merged = found.merged if self.projector is None else self.projector(found.merged)
        shapes = [(int(t) * int(h) // self.tower.merge, int(w) // self.tower.merge) for t, h, w in grid.tolist()]
        counts = [rows * columns for rows, columns in shapes]
        deep = list(zip(*(d.split(counts) for d in found.deepstack), strict=True)) if found.deepstack else [()] * len(shapes)
        return [Picture(f, shape, tuple(d)) for f, shape, d in zip(merged.split(counts), shapes, deep, strict=True)]

    @torch.no_grad()
    def encode(self, layouts: Sequence[PromptLayout], pictures: Sequence[Sequence[Picture]]) -> Inputs:
        """Prompts with their pictures in place; `pictures[i]` are those of prompt i, in order."""
        return Inputs.join([self._row(layout, seen) for layout, seen in zip(layouts, pictures, strict=True)])

    def _row(self, layout: PromptLayout, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor, int, tuple[Tensor, ...]]:
        weight = self.backbone.token_embed.weight
        embeds = self.backbone.embed(torch.tensor(layout.ids, device=weight.device))
        deep = [torch.zeros_like(embeds) for _ in range(len(getattr(self.tower, "deepstack_merger_list", ())))]
        for span in layout.spans:
            place, picture = slice(span.start, span.start + span.length), pictures[span.index]
            embeds[place] = picture.features.to(weight.dtype)
            for level, feature in zip(deep, picture.deep, strict=True):
                level[place] = feature.to(weight.dtype)
        vision: QwenVision = self.config.vision
        if not vision.axes:
            return embeds, torch.arange(layout.length, device=weight.device), layout.length, tuple(deep)
        positions, start = mrope_positions(layout.length, layout.spans, [p.grid for p in pictures])
        return embeds, positions.to(weight.device), start, tuple(deep)


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
