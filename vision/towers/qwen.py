"""The vision transformers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (arXiv:2409.12191, 2502.13923, 2511.21631).

All take packed patches of any number of pictures of any size: 2-D rotary positions, attention inside each frame, and a
merger that turns merge x merge patches into one feature. They differ in norms, MLP and positions:

    ==========  =========  ==========  =======================  ==========================================
    kind        norm       MLP         attention                besides
    ==========  =========  ==========  =======================  ==========================================
    qwen2_vl    LayerNorm  fc1, fc2    frames
    qwen2_5_vl  RMSNorm    SwiGLU      windows, frames in some  blocks work in window order
    qwen3_vl    LayerNorm  linear_fc*  frames                   learned positions, deepstack mergers
    ==========  =========  ==========  =======================  ==========================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernels.attention import attention
from kernels.rms_norm import rms_norm
from kernels.rope import apply_rope
from vision.errors import VisionConfigError
from vision.towers.contract import Layout, activation, number
from vision.towers.qwen_layout import Grids, Plan, Segments, bilinear_taps, plan

Kind = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
_EPS = 1e-6
_THETA = 10000.0


@dataclass(frozen=True)
class QwenVitConfig:
    """Sizes of a Qwen vision tower.

    Attributes:
        hidden: inner size of the MLPs. out: size of a merged feature, the language model's width.
        window: side of an attention window in merged cells, None for none. full_blocks: blocks that attend over the frame
            nevertheless. learned_positions: entries of the learned table (a square), 0 for none. deepstack: blocks whose
            output is merged as well.
    """

    kind: Kind
    depth: int
    width: int
    heads: int
    hidden: int
    out: int
    act: str
    channels: int = 3
    patch: int = 14
    temporal: int = 2
    merge: int = 2
    window: int | None = None
    full_blocks: tuple[int, ...] = ()
    learned_positions: int = 0
    deepstack: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 4:
            raise VisionConfigError(f"width {self.width} with {self.heads} heads", source="vision config", remedy="the head size must be a multiple of 4")
        if round(self.learned_positions**0.5) ** 2 != self.learned_positions:
            raise VisionConfigError(f"num_position_embeddings {self.learned_positions} is no square", source="vision config", remedy="check the config")
        if any(not 0 <= b < self.depth for b in self.full_blocks + self.deepstack):
            raise VisionConfigError(
                f"blocks {self.full_blocks + self.deepstack} of {self.depth}", source="vision config", remedy="name blocks there are"
            )

    @classmethod
    def from_dict(cls, kind: str, config: Mapping[str, Any]) -> QwenVitConfig:
        """From the ``vision_config`` of a published ``config.json``; missing keys have transformers' defaults."""
        third = kind == "qwen3_vl"
        depth, heads = number(config, "depth", 27 if third else 32), number(config, "num_heads", 16)
        channels, patch = number(config, ("in_channels", "in_chans"), 3), number(config, "patch_size", 16 if third else 14)
        temporal, merge = number(config, "temporal_patch_size", 2), number(config, "spatial_merge_size", 2)
        if kind == "qwen2_vl":  # here "hidden_size" is the language model's
            width, act = number(config, "embed_dim", 1280), str(config.get("hidden_act", "quick_gelu"))
            hidden, out = int(width * float(config.get("mlp_ratio", 4))), number(config, "hidden_size", 3584)
            return cls("qwen2_vl", depth, width, heads, hidden, out, act, channels, patch, temporal, merge)
        if kind == "qwen2_5_vl":
            width, act = number(config, "hidden_size", 3584), str(config.get("hidden_act", "silu"))
            hidden, out = number(config, "intermediate_size", 3420), number(config, "out_hidden_size", 3584)
            window = number(config, "window_size", 112)
            if window < patch * merge:
                raise VisionConfigError(f"window_size {window} is below one cell of {patch * merge}", source="vision config", remedy="check the config")
            full = tuple(int(b) for b in config.get("fullatt_block_indexes", (7, 15, 23, 31)))
            return cls("qwen2_5_vl", depth, width, heads, hidden, out, act, channels, patch, temporal, merge, window // (patch * merge), full)
        if third:
            width, act = number(config, "hidden_size", 1152), str(config.get("hidden_act", "gelu_pytorch_tanh"))
            hidden, out = number(config, "intermediate_size", 4304), number(config, "out_hidden_size", 3584)
            learned = number(config, "num_position_embeddings", 2304)
            deep = tuple(int(b) for b in config.get("deepstack_visual_indexes", (8, 16, 24)))
            return cls(
                "qwen3_vl", depth, width, heads, hidden, out, act, channels, patch, temporal, merge, learned_positions=learned, deepstack=deep
            )
        raise VisionConfigError(f"unknown kind {kind!r}", source="vision config", remedy="qwen2_vl, qwen2_5_vl or qwen3_vl")


class _RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, _EPS)


def _norm(kind: Kind, width: int) -> nn.Module:
    return _RMSNorm(width) if kind == "qwen2_5_vl" else nn.LayerNorm(width, eps=_EPS)


class _PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel, on patches cut beforehand: a matrix product."""

    def __init__(self, c: QwenVitConfig) -> None:
        super().__init__()
        kernel = (c.temporal, c.patch, c.patch)
        self.proj = nn.Conv3d(c.channels, c.width, kernel, stride=kernel, bias=c.kind == "qwen3_vl")

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        return nn.functional.linear(patches.to(weight.dtype), weight, self.proj.bias)


def segment_attention(q: Tensor, k: Tensor, v: Tensor, runs: Segments) -> Tensor:
    """Attention inside each run of a packed sequence: q, k, v [1, H, N, Dh] -> [N, H * Dh]. The runs cover the sequence."""
    if runs.whole:
        count, length = runs.groups[0].shape
        q, k, v = (x.view(x.shape[1], count, length, -1).transpose(0, 1) for x in (q, k, v))  # [runs,H,length,Dh]
        return attention(q, k, v).transpose(1, 2).reshape(count * length, -1)
    out = torch.empty(q.shape[2], q.shape[1] * q.shape[3], dtype=v.dtype, device=q.device)
    parts, places = [], []
    for group in runs.groups:
        here = (x[0][:, group].transpose(0, 1) for x in (q, k, v))
        parts.append(attention(*here).transpose(1, 2).flatten(2).flatten(0, 1))
        places.append(group.flatten())
    return out.index_copy(0, torch.cat(places), torch.cat(parts))


class _Attention(nn.Module):
    def __init__(self, c: QwenVitConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.qkv, self.proj = nn.Linear(c.width, 3 * c.width), nn.Linear(c.width, c.width)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], runs: Segments) -> Tensor:
        q, k, v = self.qkv(x).view(1, len(x), 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each [1,H,N,Dh]
        out: Tensor = self.proj(segment_attention(apply_rope(q, table, True), apply_rope(k, table, True), v, runs))
        return out


class _Mlp(nn.Module):
    """fc1 and fc2 under the names of the kind."""

    def __init__(self, c: QwenVitConfig) -> None:
        super().__init__()
        self.names = ("fc1", "fc2") if c.kind == "qwen2_vl" else ("linear_fc1", "linear_fc2")
        self.add_module(self.names[0], nn.Linear(c.width, c.hidden))
        self.add_module(self.names[1], nn.Linear(c.hidden, c.width))
        self.act = activation(c.act)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.names)
        out: Tensor = second(self.act(first(x)))
        return out


class _GatedMlp(nn.Module):
    def __init__(self, c: QwenVitConfig) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(c.width, c.hidden), nn.Linear(c.width, c.hidden)
        self.down_proj, self.act = nn.Linear(c.hidden, c.width), activation(c.act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Block(nn.Module):
    def __init__(self, c: QwenVitConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(c.kind, c.width), _norm(c.kind, c.width)
        self.attn = _Attention(c)
        self.mlp = _GatedMlp(c) if c.kind == "qwen2_5_vl" else _Mlp(c)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], runs: Segments) -> Tensor:
        x = x + self.attn(self.norm1(x), table, runs)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class QwenMerger(nn.Module):
    """merge x merge patches to one feature: norm of each patch, then an MLP over all of them (Qwen2-VL, Qwen2.5-VL)."""

    def __init__(self, c: QwenVitConfig) -> None:
        super().__init__()
        self.inner = c.width * c.merge**2
        self.ln_q = _norm(c.kind, c.width)
        self.mlp = nn.Sequential(nn.Linear(self.inner, self.inner), nn.GELU(), nn.Linear(self.inner, c.out))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] in merge order -> [N / merge^2, out]."""
        out: Tensor = self.mlp(self.ln_q(x).view(-1, self.inner))
        return out


class Qwen3Merger(nn.Module):
    """The same under other names; `joint` norms all patches of a cell together, as the deepstack mergers do (Qwen3-VL)."""

    def __init__(self, c: QwenVitConfig, joint: bool) -> None:
        super().__init__()
        self.inner, self.joint = c.width * c.merge**2, joint
        self.norm = nn.LayerNorm(self.inner if joint else c.width, eps=_EPS)
        self.linear_fc1, self.linear_fc2 = nn.Linear(self.inner, self.inner), nn.Linear(self.inner, c.out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] in merge order -> [N / merge^2, out]."""
        x = self.norm(x.view(-1, self.inner)) if self.joint else self.norm(x).view(-1, self.inner)
        out: Tensor = self.linear_fc2(nn.functional.gelu(self.linear_fc1(x)))
        return out


@dataclass
class QwenFeatures:
    """Everything a Qwen tower computes.

    Attributes:
        merged: [M, out] features in picture order. deepstack: the same from the blocks named in the config.
        hidden: [N, width] output of the last block, in the order the blocks work in.
        cells: [M] picture-order number of the merged cell at each place of that order; None if it is the picture order.
    """

    merged: Tensor
    deepstack: tuple[Tensor, ...]
    hidden: Tensor
    cells: Tensor | None


class QwenTower(nn.Module):
    """A Qwen vision transformer with its merger; layout "packed". Published keys follow ``visual.``."""

    layout: Layout = "packed"
    ignored = (r"rotary_pos_emb\.inv_freq",)  # which some files store

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        self.config = c = config
        self.width, self.merge = c.out, c.merge
        self.patch_embed = _PatchEmbed(c)
        self.pos_embed = nn.Embedding(c.learned_positions, c.width) if c.learned_positions else None
        self.blocks = nn.ModuleList(_Block(c) for _ in range(c.depth))
        self.merger: nn.Module = Qwen3Merger(c, joint=False) if c.kind == "qwen3_vl" else QwenMerger(c)
        if c.kind == "qwen3_vl":
            self.deepstack_merger_list = nn.ModuleList(Qwen3Merger(c, joint=True) for _ in c.deepstack)

    def forward(self, pixel_values: Tensor, grid: Tensor | None = None) -> Tensor:
        """Merged features [sum(t*h*w) / merge^2, out] in picture order; arguments as for :meth:`encode`."""
        return self.encode(pixel_values, grid).merged

    def encode(self, pixel_values: Tensor, grid: Tensor | None) -> QwenFeatures:
        """All features.

        Args:
            pixel_values: [N, channels * temporal * patch^2] patches in merge order, pictures one after another.
            grid: [V, 3] frames, rows and columns of each picture, in patches.

        Raises:
            VisionConfigError: a missing grid, or one that does not fit the patches.
        """
        grids = self._grids(pixel_values, grid)
        layout = plan(grids, self.merge, self.config.window, pixel_values.device)
        x = self.patch_embed(pixel_values)  # [N,W]
        if self.pos_embed is not None:
            index, weight = bilinear_taps(grids, self.merge, round(self.config.learned_positions**0.5))
            places = (self.pos_embed(index.to(x.device)) * weight.to(x.device)[..., None]).sum(1)
            x = x + places.to(x.dtype)
        if layout.cells is not None:
            x = x.view(-1, self.merge**2, x.shape[-1])[layout.cells].flatten(0, 1)
        table = self._rotary(layout)
        deep: dict[int, Tensor] = {}
        for number_, block in enumerate(self.blocks):
            windowed = layout.windows is not None and number_ not in self.config.full_blocks
            runs = layout.windows if windowed and layout.windows is not None else layout.frames
            x = block(x, table, runs)
            if number_ in self.config.deepstack:
                deep[number_] = self.deepstack_merger_list[self.config.deepstack.index(number_)](x)
        merged = self.merger(x)
        if layout.inverse is not None:
            merged = merged[layout.inverse]
        return QwenFeatures(merged, tuple(deep[b] for b in self.config.deepstack), x, layout.cells)

    def _rotary(self, layout: Plan) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, 1, N, Dh]: a quarter of the head turns with the row, a quarter with the column, twice."""
        half = self.config.width // self.config.heads // 2
        frequency = 1.0 / _THETA ** (torch.arange(0, half, 2, dtype=torch.float32, device=layout.positions.device) / half)
        angle = (layout.positions[..., None].float() * frequency).flatten(1)  # [N,Dh/2]
        angle = torch.cat((angle, angle), dim=-1)[None, None]
        return angle.cos(), angle.sin()

    def _grids(self, pixel_values: Tensor, grid: Tensor | None) -> Grids:
        c = self.config
        size = c.channels * c.temporal * c.patch**2
        if grid is None or grid.ndim != 2 or grid.shape[1] != 3 or pixel_values.ndim != 2 or pixel_values.shape[1] != size:
            raise VisionConfigError(
                f"pixel_values {tuple(pixel_values.shape)} with grid {None if grid is None else tuple(grid.shape)}", source="QwenTower",
                remedy=f"give patches [N, {size}] and a grid [V, 3]",
            )  # fmt: skip
        grids = tuple((int(t), int(h), int(w)) for t, h, w in grid.tolist())
        if not grids or any(t < 1 or h < c.merge or w < c.merge or h % c.merge or w % c.merge for t, h, w in grids):
            raise VisionConfigError(f"grid {grids}", source="QwenTower", remedy=f"rows and columns must be multiples of {c.merge}")
        if sum(t * h * w for t, h, w in grids) != len(pixel_values):
            raise VisionConfigError(f"grid {grids} against {len(pixel_values)} patches", source="QwenTower", remedy="check the grid")
        return grids
