"""Sizes and switches of the diffusion language backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from vlm.backbone.copy_head import CopyHeadConfig
from vlm.errors import ConfigError


@dataclass(frozen=True)
class BackboneConfig:
    """One bidirectional transformer; the published layouts are settings of it.

    Attributes:
        logit_shift: 1 when the logits of cell i are read at position i-1 (Dream), else 0 (LLaDA).
        rope_fp32: rotate queries and keys in float32 whatever the working precision (LLaDA).
        head_size: rows of the output head where they differ from `vocab_size` (checkpoints whose embedding alone was
            resized); ids from `vocab_size` on have logits but no embedding and must be banned.
        mrope_sections: rotary frequencies given to the temporal, height and width position (Qwen2-VL,
            arXiv:2409.12191), summing to half a head; None for one-dimensional positions.
        mrope_interleaved: the three positions take turns over the frequencies (Qwen3-VL) instead of lying in blocks.
        slot_positions: size of the learned embedding of a cell's place inside its slot; 0 switches it off.
        copy_head: sizes of the copy head; None for published checkpoints.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    mask_token_id: int
    pad_token_id: int
    eos_token_id: int
    bos_token_id: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_fp32: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    logit_shift: int = 0
    max_position_embeddings: int = 4096
    head_size: int | None = None
    mrope_sections: tuple[int, ...] | None = None
    mrope_interleaved: bool = False
    slot_positions: int = 0
    copy_head: CopyHeadConfig | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads and self.head_dim is None:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}", remedy="give head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.logit_shift not in (0, 1):
            raise ConfigError(f"logit_shift is {self.logit_shift}", remedy="use 0 or 1")
        if self.mrope_sections is not None and (len(self.mrope_sections) != 3 or 2 * sum(self.mrope_sections) != self.width_per_head):
            raise ConfigError(f"mrope_sections {list(self.mrope_sections)} do not fill half a head of {self.width_per_head}")
        if self.tie_embeddings and self.head_size not in (None, self.vocab_size):
            raise ConfigError(f"head_size {self.head_size} cannot differ from vocab_size {self.vocab_size} with tied embeddings")

    @property
    def width_per_head(self) -> int:
        """Dimensions of one attention head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def logit_size(self) -> int:
        """Columns of the logits."""
        return self.head_size or self.vocab_size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BackboneConfig:
        """Inverse of :meth:`to_dict`; an unknown key raises ConfigError naming it."""
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown keys in backbone config: {', '.join(unknown)}")
        head, sections = data.get("copy_head"), data.get("mrope_sections")
        known = {**data, "copy_head": CopyHeadConfig(**head) if isinstance(head, dict) else head}
        return cls(**{**known, "mrope_sections": None if sections is None else tuple(sections)})
