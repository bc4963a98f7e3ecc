"""What a published checkpoint kind is: data and flags over the one backbone.

A module of this package that binds `FAMILY` is a family; nothing else has to be edited to add one
(see docs/architecture.md, 'How to add a family').
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.backbone.config import BackboneConfig
from vlm.backbone.model import DiffusionBackbone
from vlm.checkpoints.keymap import Weight
from vlm.checkpoints.shards import Shards
from vlm.decoding.blocks import Blocks
from vlm.decoding.loop import Recipe
from vlm.decoding.presets import preset
from vlm.errors import CheckpointError, OptionError
from vlm.processor.template import Template
from vlm.processor.tokenizer import Tokenizer

_ABSENT = object()


class Settings:
    """A parsed config.json that is read with care: absent and unsupported values raise and are named.

    Args:
        data: the JSON object. source: the file, for messages. path: of the object inside the file.
    """

    def __init__(self, data: Mapping[str, Any], source: str = "config.json", path: str = "") -> None:
        self.data, self.source, self.path = data, source, path

    def get(self, *keys: str, default: Any = _ABSENT) -> Any:
        """The first of `keys` that is there and not null; without a default an absent key raises CheckpointError."""
        for key in keys:
            if self.data.get(key) is not None:
                return self.data[key]
        if default is not _ABSENT:
            return default
        raise CheckpointError(f"has no {self.path}{keys[0]}", source=self.source, remedy="fetch the config.json that belongs to the checkpoint")

    def number(self, *keys: str, default: Any = _ABSENT) -> int:
        """Like :meth:`get`, for a whole number."""
        value = self.get(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{self.path}{keys[0]} is {value!r}, not a whole number", source=self.source)
        return value

    def real(self, *keys: str, default: Any = _ABSENT) -> float:
        """Like :meth:`get`, for a number."""
        value = self.get(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.path}{keys[0]} is {value!r}, not a number", source=self.source)
        return float(value)

    def inner(self, key: str) -> Settings:
        """The object under `key`."""
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self.path}{key} is no object", source=self.source)
        return Settings(value, self.source, f"{self.path}{key}.")

    def expect(self, **wanted: Any) -> None:
        """Raise CheckpointError unless each key is absent, null, or one of the supported values (a tuple: any of them)."""
        for key, value in wanted.items():
            supported = value if isinstance(value, tuple) else (value,)
            found = self.data.get(key)
            if found is not None and found not in supported:
                raise CheckpointError(f"{self.path}{key} is {found!r}, and only {' or '.join(map(repr, supported))} is supported", source=self.source)


@dataclass(frozen=True)
class ModelConfig:
    """What a family's module is built from.

    Attributes:
        backbone: sizes and switches of the language backbone.
        vision: whatever the family's tower and projector want; None for text families.
        raw: the config.json it came from, kept for writing the published layout back.
        fill_token: spelling of the control token that fills what a slot has left behind its value; '' the padding token.
        blocks: of models whose attention is causal over blocks.
    """

    backbone: BackboneConfig
    vision: Any = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    fill_token: str = ""
    blocks: Blocks | None = None


@dataclass(frozen=True)
class Picture:
    """What a model saw of a picture.

    Attributes:
        features: [T, D] in the backbone's width. size: width and height in pixels. grid: rows and columns of the features, where
            positions need them. deep: [T, D] each, what is added behind the first blocks (``vlm.backbone.inputs.Inputs``).
    """

    features: Tensor
    size: tuple[int, int]
    grid: Any = None
    deep: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.features)


#: (model, its configuration, keys the shards lack, dtype, device) -> what was done about them, in a sentence.
Complete = Callable[[nn.Module, ModelConfig, Sequence[str], "torch.dtype | None", torch.device], str]


class TextModel(nn.Module):
    """A family without media: the backbone alone. Families with a tower add `tower` and `projector` beside it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = DiffusionBackbone(config.backbone)


#: (folder, configuration, dtype, device) -> the module with its weights, for families whose module another library loads.
Open = Callable[[Path, ModelConfig, "torch.dtype | None", torch.device], nn.Module]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Attributes:
        name: of the family, as users see it.
        model_types, architectures: values of config.json that mean this family.
        keys: keys of config.json that must be there as well (`mm_vision_tower` tells a VLM from its text backbone).
        configure: config.json -> ModelConfig; raises CheckpointError for what it does not support.
        weights: key map of the published layout.
        template: prompt format.
        build: module of a configuration, made on the meta device by the loader; its backbone is called `backbone`.
        ignored: regular expressions of keys that may be in the shards and are not needed.
        complete: fills what the shards lack and the key map does not require (a vision tower), and says what it did.
        gather: finds tensors that lie outside the shards, in files of the family's own.
        open: loads the module where that is not ours to do; `build` and `weights` then serve inspection alone.
        corruption: 'mask' (cells without a token), or 'uniform' (random tokens; see ``vlm.decoding.uniform``).
        attention: rule of the reference between prompt and canvas: 'full' (everything sees everything), 'prefix' (the
            prompt does not see the canvas) or 'block-causal'.
        stop: spellings of the control tokens that end an answer; all others are banned from answers.
        presets: published settings by name -> (preset, its options); default_preset: ours, of ``vlm.decoding.presets``.
        variants: by name (the end of a checkpoint's name), keys laid over a config.json that cannot tell them itself.
        lost_after_media: released inference loses the first token of the text behind each picture; done under
            `reference_quirks` only.
        proven: what of this family has been checked, in a sentence.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    configure: Callable[[Settings], ModelConfig]
    weights: Callable[[ModelConfig], list[Weight]]
    template: Template
    build: Callable[[ModelConfig], nn.Module] = TextModel
    keys: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    complete: Complete | None = None
    gather: Callable[[Shards], Shards] | None = None
    open: Open | None = None
    corruption: str = "mask"
    attention: str = "full"
    stop: tuple[str, ...] = ()
    presets: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    default_preset: str = "dimple"
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lost_after_media: bool = False
    proven: str = ""

    def recipe(self, tokenizer: Tokenizer, logit_size: int, name: str | None = None, *, restrict: bool = True, **options: Any) -> Recipe:
        """A decoding recipe for this family.

        Args:
            tokenizer: of the checkpoint. logit_size: columns of its logits (``BackboneConfig.logit_size``).
            name: one of the family's presets or of ``vlm.decoding.presets``; None is the family's default.
            restrict: ban what :meth:`banned` names, unless `reference_quirks` is asked for.
            options: of the preset. Where it takes ids, control tokens may be given by their spelling.

        Raises:
            OptionError: unknown preset, option or control token.
        """
        base, defaults = self.presets.get(name or self.default_preset, (name or self.default_preset, {}))
        chosen = {**defaults, **options}
        for option in ("banned", "ignore_confidence_of", "penalised", "stop_at"):
            if option in chosen:
                chosen[option] = tuple(_id(tokenizer, token) for token in chosen[option])
        if restrict and not chosen.get("reference_quirks"):
            chosen["banned"] = tuple(sorted({*chosen.get("banned", ()), *self.banned(tokenizer, logit_size)}))
        return preset(base, **chosen)

    def banned(self, tokenizer: Tokenizer, logit_size: int) -> tuple[int, ...]:
        """Control tokens that do not end an answer, and columns of the logits that stand for no token."""
        ends = set(self.stop_ids(tokenizer))
        return (*sorted(tokenizer.control_ids - ends), *range(tokenizer.vocab_size, logit_size))

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids of the control tokens that end an answer, as far as the tokenizer has them."""
        return tuple(tokenizer.special[name] for name in self.stop if name in tokenizer.special)

    def claim(self, config: Mapping[str, Any]) -> int:
        """How strongly this family claims a config.json, 0 not at all; a required key outweighs a bare name."""
        if any(config.get(key) is None for key in self.keys):
            return 0
        named = config.get("architectures")
        by_class = isinstance(named, list) and bool(set(self.architectures) & {str(n) for n in named})
        by_type = config.get("model_type") in self.model_types
        return (2 * by_class + by_type) and 2 * by_class + by_type + 4 * len(self.keys)


def _id(tokenizer: Tokenizer, token: Any) -> Any:
    if not isinstance(token, str):  # an id, or a run of ids
        return token
    if token not in tokenizer.special:
        raise OptionError(f"the tokenizer has no control token {token!r}", source=tokenizer.source)
    return tokenizer.special[token]
