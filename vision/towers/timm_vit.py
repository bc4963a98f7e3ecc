"""Any Vision Transformer of timm as a tower. timm is an optional extra and is imported when such a tower is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vision.errors import DependencyError, VisionConfigError
from vision.towers.contract import Layout, number


def import_timm() -> Any:
    """The timm package; raises DependencyError if it is missing or does not import here."""
    try:
        timm = importlib.import_module("timm")
    except Exception as error:  # a torchvision built for another torch raises RuntimeError
        raise DependencyError(f"timm does not import ({error})", source="timm tower", remedy="install the extra: pip install 'diffusion-vlm[timm]'") from error
    return timm


class TimmTower(nn.Module):
    """A ViT of timm without its head; layout "views". State-dict names are those of timm.

    Args:
        config: ``model_name`` (required), ``image_size``, and ``select_layer``: -1 for the last block, -2 for the one before
            it, and so on, before the final norm; None for the last after it.
    """

    layout: Layout = "views"
    merge = 1
    ignored = (r"(head|fc_norm|attn_pool)\..*",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        timm = import_timm()
        name = str(config.get("model_name", ""))
        if not timm.is_model(name):
            raise VisionConfigError(f"timm has no model {name!r}", source="timm tower", remedy="see timm.list_models('vit*')")
        options = {"img_size": number(config, "image_size", 224)} if config.get("image_size") is not None else {}
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
        for part in ("patch_embed", "blocks", "forward_intermediates"):
            if not hasattr(model, part):
                raise VisionConfigError(f"{name} is no Vision Transformer", source="timm tower", remedy="choose a vit_* or eva02_* model")
        self.width = int(model.embed_dim)
        self.image_size = int(model.patch_embed.img_size[0])
        self.side = int(model.patch_embed.grid_size[0])
        self.select_layer = config.get("select_layer")
        self._depth = len(model.blocks)
        if self.select_layer is not None and not -self._depth <= int(self.select_layer) < 0:
            raise VisionConfigError(f"select_layer {self.select_layer}", source="timm tower", remedy=f"None or -{self._depth}..-1")
        self.model = model

    def forward(self, pixel_values: Tensor, grid: Tensor | None = None) -> Tensor:
        """Patch features [V, side * side, width]; class and register tokens are left out.

        Args:
            pixel_values: [V, 3, S, S] normalised. grid: must be None.
        """
        if grid is not None or pixel_values.ndim != 4 or pixel_values.shape[-1] != self.image_size or pixel_values.shape[-2] != self.image_size:
            raise VisionConfigError(f"pixel_values of shape {tuple(pixel_values.shape)}", source="timm tower", remedy=f"views of side {self.image_size}")
        pixels = pixel_values.to(next(self.model.parameters()).dtype)
        if self.select_layer is None:
            tokens: Tensor = self.model.forward_features(pixels)
            return tokens[:, int(getattr(self.model, "num_prefix_tokens", 0)) :]
        chosen = self.model.forward_intermediates(
            pixels, indices=[self._depth + int(self.select_layer)], norm=False, output_fmt="NLC", intermediates_only=True, stop_early=True
        )
        features: Tensor = chosen[0]
        return features
