"""Key maps: how the parameters of our modules lie in a published checkpoint, and back, bit for bit.

A parameter of ours is one or more stored tensors joined along the first axis (queries, keys and values; gate and up),
each viewed in a shape of its own if the layouts differ (a convolution stored where we keep a matrix).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.backbone.config import BackboneConfig

#: Parameters whose first axis is the vocabulary and may be longer or shorter than the configuration says.
ELASTIC = ("backbone.token_embed.weight", "backbone.head.weight")


@dataclass(frozen=True)
class Part:
    """A stored tensor: its key, and its shape in the checkpoint (rows first)."""

    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A parameter (or buffer) of ours and the stored tensors it is joined from.

    Attributes:
        name: in our state dict. elastic: the first axis may differ from the checkpoint's (see ``fit_vocabulary``).
        required: False for what a checkpoint may lack (the family says what happens then).
    """

    name: str
    parts: tuple[Part, ...]
    elastic: bool = False
    required: bool = True


def weight(name: str, key: str, *shape: int, required: bool = True) -> Weight:
    """A parameter stored as one tensor."""
    return Weight(name, (Part(key, shape),), name in ELASTIC, required)


def linear(name: str, key: str, rows: int, columns: int, *, bias: bool = True) -> list[Weight]:
    """Weight and bias of a linear layer stored under the same leaf names."""
    found = [weight(f"{name}.weight", f"{key}.weight", rows, columns)]
    return [*found, weight(f"{name}.bias", f"{key}.bias", rows)] if bias else found


@dataclass(frozen=True)
class Names:
    """What a published text backbone calls its parts; `{i}` stands for the number of the layer."""

    embed: str
    norm: str
    head: str
    attention_norm: str
    q: str
    k: str
    v: str
    out: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    q_norm: str = ""
    k_norm: str = ""


#: LLaDA's official files. `ff_out` names both the head and the down projection of a layer.
LLADA = Names(
    embed="model.transformer.wte", norm="model.transformer.ln_f", head="model.transformer.ff_out",
    attention_norm="model.transformer.blocks.{i}.attn_norm", mlp_norm="model.transformer.blocks.{i}.ff_norm",
    q="model.transformer.blocks.{i}.q_proj", k="model.transformer.blocks.{i}.k_proj", v="model.transformer.blocks.{i}.v_proj",
    out="model.transformer.blocks.{i}.attn_out", gate="model.transformer.blocks.{i}.ff_proj",
    up="model.transformer.blocks.{i}.up_proj", down="model.transformer.blocks.{i}.ff_out",
)  # fmt: skip


def llama_names(model: str = "model.", head: str = "lm_head") -> Names:
    """Names of the Llama and Qwen kind below the prefix `model` (Dream, LLaDA-V, SDAR and others)."""
    layer = f"{model}layers.{{i}}."
    return Names(
        embed=f"{model}embed_tokens", norm=f"{model}norm", head=head, attention_norm=f"{layer}input_layernorm",
        mlp_norm=f"{layer}post_attention_layernorm", q=f"{layer}self_attn.q_proj", k=f"{layer}self_attn.k_proj",
        v=f"{layer}self_attn.v_proj", out=f"{layer}self_attn.o_proj", gate=f"{layer}mlp.gate_proj", up=f"{layer}mlp.up_proj",
        down=f"{layer}mlp.down_proj", q_norm=f"{layer}self_attn.q_norm", k_norm=f"{layer}self_attn.k_norm",
    )  # fmt: skip


def backbone_weights(config: BackboneConfig, names: Names, prefix: str = "backbone.") -> list[Weight]:
    """The key map of a text backbone."""
    d, f, width = config.hidden_size, config.intermediate_size, config.width_per_head
    heads, kv = config.num_heads * width, config.num_kv_heads * width
    found = [weight(f"{prefix}token_embed.weight", f"{names.embed}.weight", config.vocab_size, d), weight(f"{prefix}norm.weight", f"{names.norm}.weight", d)]
    if not config.tie_embeddings:
        found.append(weight(f"{prefix}head.weight", f"{names.head}.weight", config.logit_size, d))
    for i in range(config.num_layers):
        block = f"{prefix}blocks.{i}."
        q, k, v = (n.format(i=i) for n in (names.q, names.k, names.v))
        found.append(Weight(f"{block}attention.qkv.weight", (Part(f"{q}.weight", (heads, d)), Part(f"{k}.weight", (kv, d)), Part(f"{v}.weight", (kv, d)))))
        if config.qkv_bias:
            found.append(Weight(f"{block}attention.qkv.bias", (Part(f"{q}.bias", (heads,)), Part(f"{k}.bias", (kv,)), Part(f"{v}.bias", (kv,)))))
        if config.qk_norm:
            norms = (("q_norm", names.q_norm), ("k_norm", names.k_norm))
            found += [weight(f"{block}attention.{ours}.weight", f"{theirs.format(i=i)}.weight", width) for ours, theirs in norms]
        found += [
            weight(f"{block}attention.out.weight", f"{names.out.format(i=i)}.weight", d, heads),
            weight(f"{block}attention_norm.weight", f"{names.attention_norm.format(i=i)}.weight", d),
            weight(f"{block}mlp_norm.weight", f"{names.mlp_norm.format(i=i)}.weight", d),
            Weight(f"{block}gate_up.weight", (Part(f"{names.gate.format(i=i)}.weight", (f, d)), Part(f"{names.up.format(i=i)}.weight", (f, d)))),
            weight(f"{block}down.weight", f"{names.down.format(i=i)}.weight", d, f),
        ]
    return found


@dataclass(frozen=True)
class KeyDiff:
    """How a checkpoint and a key map differ.

    Attributes:
        missing: keys the model needs; lacking: keys it can do without; unexpected: keys it has no place for;
        mismatched: key -> (shape stored, shape wanted).
    """

    missing: tuple[str, ...]
    lacking: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def fits(self) -> bool:
        """Nothing that loading would stop at."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"- {key} (missing)" for key in self.missing] + [f"- {key} (missing, optional)" for key in self.lacking]
        lines += [f"+ {key} (unexpected)" for key in self.unexpected]
        lines += [f"~ {key}: stored {stored}, wanted {wanted}" for key, (stored, wanted) in self.mismatched.items()]
        return "\n".join(lines) or "all keys fit"


def compare(weights: Sequence[Weight], shapes: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> KeyDiff:
    """Compare a key map with the shapes of a checkpoint.

    Args:
        ignored: regular expressions of keys that may be there and are not needed.
    """
    patterns = [re.compile(p) for p in ignored]
    wanted = {part.key: (part, w) for w in weights for part in w.parts}
    absent = [(key, w) for key, (_, w) in wanted.items() if key not in shapes]
    mismatched = {}
    for key, (part, w) in wanted.items():
        stored = shapes.get(key)
        if stored is None:
            continue
        enough = w.elastic and len(stored) == len(part.shape) and stored[1:] == part.shape[1:] and stored[0] >= part.shape[0]
        if stored != part.shape and not enough:
            mismatched[key] = (stored, part.shape)
    return KeyDiff(
        tuple(key for key, w in absent if w.required), tuple(key for key, w in absent if not w.required),
        tuple(sorted(key for key in shapes if key not in wanted and not any(p.fullmatch(key) for p in patterns))), mismatched,
    )  # fmt: skip


def to_published(weights: Sequence[Weight], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the keys and in the shapes of the published layout (views where possible).

    Raises:
        KeyError: `state` lacks a required parameter.
    """
    out: dict[str, Tensor] = {}
    for w in weights:
        if w.name not in state and not w.required:
            continue
        tensor = state[w.name]
        if len(w.parts) == 1:
            part = w.parts[0]
            out[part.key] = tensor if w.elastic else tensor.reshape(part.shape)
            continue
        pieces = torch.split(tensor, [part.shape[0] for part in w.parts], dim=0)
        out.update({part.key: piece.reshape(part.shape) for part, piece in zip(w.parts, pieces, strict=True)})
    return out


def from_published(weights: Sequence[Weight], tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Inverse of :func:`to_published`, in memory; `shapes` are those of our state dict."""
    found = {}
    for w in weights:
        if not w.required and any(part.key not in tensors for part in w.parts):
            continue
        joined = torch.cat([tensors[part.key].flatten() for part in w.parts])
        found[w.name] = joined[: torch.Size(shapes[w.name]).numel()].view(shapes[w.name])
    return found
