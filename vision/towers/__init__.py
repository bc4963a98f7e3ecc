"""Vision towers of the published checkpoints in plain torch, behind one contract."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from vision.errors import VisionConfigError
from vision.towers.contract import VisionTower
from vision.towers.qwen import QwenFeatures, QwenTower, QwenVitConfig
from vision.towers.siglip import NaflexTower, SiglipConfig, SiglipTower

__all__ = [
    "KINDS", "PUBLISHED", "NaflexTower", "QwenFeatures", "QwenTower", "QwenVitConfig", "SiglipConfig", "SiglipTower", "VisionTower", "build_tower",
]  # fmt: skip

#: What :func:`build_tower` can build.
KINDS = ("siglip", "siglip2_naflex", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "timm")

_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip
#: Vision configs of towers that checkpoints name without giving their sizes (``mm_vision_tower``).
PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"google/siglip-so400m-patch14-384": MappingProxyType(_SO400M), "google/siglip2-so400m-patch14-384": MappingProxyType(_SO400M)}
)


def build_tower(kind: str, config: Mapping[str, Any], *, select_layer: int | None = None) -> nn.Module:
    """A tower with fresh weights; it fulfils :class:`VisionTower`. Build under ``torch.device("meta")`` to load into it.

    Args:
        kind: one of KINDS. Families name it, since the ``model_type`` of published vision configs is often missing or the
            family's own. Fixed-size SigLIP 2 checkpoints are "siglip".
        config: the vision part of ``config.json`` (of the SigLIP repositories: its ``vision_config``); for timm see
            :class:`vision.towers.timm_vit.TimmTower`.
        select_layer: hidden state that SigLIP towers give, see :mod:`vision.towers.siglip`; others must not have it.

    Raises:
        VisionConfigError: unknown kind, sizes that do not fit. DependencyError: timm is asked for and missing.
    """
    if kind in ("siglip", "siglip2_naflex"):
        sizes = SiglipConfig.from_dict(config, select_layer=select_layer)
        return SiglipTower(sizes) if kind == "siglip" else NaflexTower(sizes)
    if kind == "timm":
        from vision.towers.timm_vit import TimmTower

        return TimmTower({**config, "select_layer": select_layer} if select_layer is not None else config)
    if kind not in KINDS:
        raise VisionConfigError(f"unknown tower {kind!r}", source="vision config", remedy=f"one of {', '.join(KINDS)}")
    if select_layer is not None:
        raise VisionConfigError("select_layer is for SigLIP and timm towers", source="vision config", remedy="leave it out")
    return QwenTower(QwenVitConfig.from_dict(kind, config))
