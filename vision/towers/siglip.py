"""SigLIP and SigLIP 2 vision towers (arXiv:2303.15343, arXiv:2502.14786), fixed size and NaFlex.

The fixed-size checkpoints of SigLIP 2 have the architecture of SigLIP. Features are a chosen hidden state before the final
layer norm, as the LLaVA family takes them: ``select_layer=-2`` runs all layers but the last, ``-1`` all. ``None`` gives the
last one after the final layer norm. Layers behind the chosen one are not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention
from vision.errors import VisionConfigError
from vision.towers.contract import Layout, activation, number


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes of a SigLIP tower; the defaults are those of transformers' config class, which published files rely on.

    Attributes:
        image_size: side of a view in pixels (fixed size only). num_patches: learned positions (NaFlex only), a square.
        select_layer: see the module's text; counted like ``hidden_states`` of transformers (0 = embeddings).
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    num_patches: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    select_layer: int | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise VisionConfigError(
                f"hidden_size {self.hidden_size} is not divisible by {self.num_attention_heads} heads", source="vision config", remedy="check both"
            )
        if self.select_layer is not None and not -self.num_hidden_layers - 1 <= self.select_layer <= self.num_hidden_layers:
            raise VisionConfigError(
                f"select_layer {self.select_layer} of {self.num_hidden_layers} layers", source="vision config", remedy="choose a hidden state there is"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], *, select_layer: int | None = None) -> SiglipConfig:
        """From the vision part of a ``config.json``; keys that do not shape the tower are passed over."""
        sizes = {
            name: number(config, name, getattr(cls, name))
            for name in (
                "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size", "patch_size", "num_patches",
            )
        }  # fmt: skip
        act, eps = str(config.get("hidden_act", cls.hidden_act)), float(config.get("layer_norm_eps", cls.layer_norm_eps))
        return cls(**sizes, hidden_act=act, layer_norm_eps=eps, select_layer=select_layer)

    @property
    def layers_run(self) -> int:
        """How many layers are needed for the chosen hidden state."""
        if self.select_layer is None:
            return self.num_hidden_layers
        return self.select_layer if self.select_layer >= 0 else self.num_hidden_layers + 1 + self.select_layer


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))  # [V,H,N,Dh]
        out: Tensor = self.out_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, act: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, hidden), nn.Linear(hidden, width), activation(act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class _Layer(nn.Module):
    def __init__(self, c: SiglipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.self_attn = _Attention(c.hidden_size, c.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = _Mlp(c.hidden_size, c.intermediate_size, c.hidden_act)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Encoder(nn.Module):
    def __init__(self, c: SiglipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(c) for _ in range(c.layers_run))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class _Siglip(nn.Module):
    """What both kinds share: encoder, final norm, and which keys of a checkpoint are of no use."""

    merge = 1

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.hidden_size
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.select_layer is None else None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Keys of the pooling head, stored position ids, and whatever lies behind the chosen layer."""
        behind = range(self.config.layers_run, self.config.num_hidden_layers)
        layers = (rf"encoder\.layers\.({'|'.join(map(str, behind))})\..*",) if behind else ()
        norm = () if self.post_layernorm is not None else (r"post_layernorm\..*",)
        return (r"head\..*", r"embeddings\.position_ids", *norm, *layers)

    def finish(self, x: Tensor) -> Tensor:
        return x if self.post_layernorm is None else self.post_layernorm(x)


class _Embeddings(nn.Module):
    def __init__(self, c: SiglipConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(c.num_channels, c.hidden_size, c.patch_size, stride=c.patch_size)
        self.position_embedding = nn.Embedding((c.image_size // c.patch_size) ** 2, c.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)  # [V,N,W]
        return x + self.position_embedding.weight


class SiglipTower(_Siglip):
    """SigLIP of fixed size; layout "views". Published keys follow ``vision_model.``."""

    layout: Layout = "views"

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__(config)
        self.embeddings = _Embeddings(config)

    @property
    def side(self) -> int:
        """Features per side of a view."""
        return self.config.image_size // self.config.patch_size

    def forward(self, pixel_values: Tensor, grid: Tensor | None = None) -> Tensor:
        """Features [V, side * side, width], row by row.

        Args:
            pixel_values: [V, 3, S, S] normalised, S = image_size.
            grid: must be None.

        Raises:
            VisionConfigError: views of another size.
        """
        size = self.config.image_size
        if grid is not None or pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (self.config.num_channels, size, size):
            raise VisionConfigError(
                f"pixel_values of shape {tuple(pixel_values.shape)}", source="SiglipTower", remedy=f"give views [V, {self.config.num_channels}, {size}, {size}]"
            )
        return self.finish(self.encoder(self.embeddings(pixel_values)))


class _NaflexEmbeddings(nn.Module):
    def __init__(self, c: SiglipConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(c.num_channels * c.patch_size**2, c.hidden_size)
        self.position_embedding = nn.Embedding(c.num_patches, c.hidden_size)
        self.side = round(c.num_patches**0.5)
        if self.side**2 != c.num_patches:
            raise VisionConfigError(f"num_patches {c.num_patches} is no square", source="vision config", remedy="check the config")

    def positions(self, shape: tuple[int, int]) -> Tensor:
        """The learned positions [rows * columns, W] resized to another grid: bilinear, antialiased, in float32."""
        table = self.position_embedding.weight
        square = table.float().view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        return F.interpolate(square, size=shape, mode="bilinear", align_corners=False, antialias=True)[0].flatten(1).T.to(table.dtype)

    def forward(self, pixels: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        x: Tensor = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))  # [V,N,W]
        known = {shape: self.positions(shape) for shape in set(shapes)}
        place = torch.stack([F.pad(known[s], (0, 0, 0, x.shape[1] - s[0] * s[1])) for s in shapes])
        return x + place


class NaflexTower(_Siglip):
    """SigLIP 2 NaFlex: native aspect ratio, any grid of up to N patches; layout "padded". Keys follow ``vision_model.``."""

    layout: Layout = "padded"

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__(config)
        self.embeddings = _NaflexEmbeddings(config)

    def forward(self, pixel_values: Tensor, grid: Tensor | None = None) -> Tensor:
        """Features [V, N, width], zero on padding.

        Args:
            pixel_values: [V, N, D] patches as (row, column, channel) numbers, row by row, padded to N.
            grid: [V, 2] rows and columns of each picture, rows * columns <= N.

        Raises:
            VisionConfigError: a missing grid or one that does not fit.
        """
        if grid is None or pixel_values.ndim != 3 or tuple(grid.shape) != (len(pixel_values), 2):
            raise VisionConfigError("NaFlex needs patches [V, N, D] and a grid [V, 2]", source="NaflexTower", remedy="use vision.preprocess.naflex_patches")
        shapes = [(int(r), int(c)) for r, c in grid.tolist()]
        if any(r < 1 or c < 1 or r * c > pixel_values.shape[1] for r, c in shapes):
            raise VisionConfigError(f"grid {shapes} against {pixel_values.shape[1]} patches", source="NaflexTower", remedy="check the grid")
        sizes = torch.tensor([r * c for r, c in shapes], device=pixel_values.device)
        valid = torch.arange(pixel_values.shape[1], device=pixel_values.device) < sizes[:, None]  # [V,N]
        mask = None if bool(valid.all()) else valid[:, None, None, :]
        features = self.finish(self.encoder(self.embeddings(pixel_values, shapes), mask))
        return features * valid[..., None]
