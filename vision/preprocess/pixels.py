"""Resizing and normalising, in the two ways the references do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vision.errors import VisionConfigError

#: "pil": Pillow's filters on 8-bit RGB. "tensor": torch's antialiased filters on 8-bit RGB, as transformers' fast
#: processors use them; the two differ by a level here and there.
Backend = Literal["pil", "tensor"]
Filter = Literal["bicubic", "bilinear"]

_PIL: dict[Filter, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
#: Numbers of Pillow's filters as ``resample`` in a preprocessor_config.json names them.
_NUMBERS: dict[int, Filter] = {2: "bilinear", 3: "bicubic"}


def filter_named(number: int | None, default: Filter = "bicubic") -> Filter:
    """The filter that ``resample`` of a preprocessor_config.json means; raises VisionConfigError for others."""
    if number is None:
        return default
    if number not in _NUMBERS:
        raise VisionConfigError(f"resample is {number!r}", source="preprocessor config", remedy="2 (bilinear) and 3 (bicubic) are supported")
    return _NUMBERS[number]


def resize(image: Image.Image, size: tuple[int, int], how: Filter = "bicubic", backend: Backend = "pil") -> Image.Image:
    """An RGB picture resized to `size` (width, height); itself if it has that size."""
    if image.size == size:
        return image
    if backend == "pil":
        return image.resize(size, _PIL[how])
    pixels = to_tensor(image).unsqueeze(0)
    # torch rounds to 8 bits itself where it has a kernel for them, which is what the reference relies on
    out = F.interpolate(pixels, size=(size[1], size[0]), mode=how, antialias=True, align_corners=False)
    return Image.fromarray(out[0].permute(1, 2, 0).contiguous().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] uint8 of an RGB picture."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@dataclass(frozen=True)
class Normalization:
    """Scaling to 0..1, then (x - mean) / std per channel, in float32."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], default: Normalization | None = None) -> Normalization:
        """From ``image_mean`` and ``image_std`` of a preprocessor_config.json; `default` for what is missing."""
        default = default or cls()

        def three(name: str, fallback: tuple[float, float, float]) -> tuple[float, float, float]:
            value: Sequence[Any] | None = config.get(name)
            if value is None:
                return fallback
            if len(value) != 3:
                raise VisionConfigError(f"{name} is {value!r}", source="preprocessor config", remedy="give three numbers")
            return (float(value[0]), float(value[1]), float(value[2]))

        return cls(three("image_mean", default.mean), three("image_std", default.std))

    def __call__(self, image: Image.Image) -> Tensor:
        """[3, H, W] float32 of an RGB picture."""
        mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        return (to_tensor(image).double().mul(1 / 255).float() - mean) / std


#: Values in -1..1, as SigLIP has them.
HALF = Normalization()
#: The statistics of CLIP, which the Qwen2 towers use.
CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
