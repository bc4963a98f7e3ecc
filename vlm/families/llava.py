"""What the families of the LLaVA kind share: SigLIP views, an MLP projector, packing with newline embeddings.

LaViDa (arXiv:2505.16839) and LLaDA-V (arXiv:2505.16933) differ in their text backbone, in pooling and in prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vision.preprocess.anyres import AnyResolution, Views
from vision.preprocess.packing import Packing
from vision.projector import MlpProjector, projector_depth
from vision.towers import PUBLISHED, build_tower
from vision.towers.siglip import SiglipTower
from vlm.backbone.model import DiffusionBackbone
from vlm.checkpoints.hub import find_folder
from vlm.checkpoints.keymap import Names, Weight, backbone_weights, linear, weight
from vlm.checkpoints.load import on_meta, read_json
from vlm.errors import CheckpointError
from vlm.families.family import ModelConfig, Picture, Settings
from vlm.families.towers import load_base_tower, module_weights

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
NEWLINE = "model.image_newline"
#: The system sentence both families were trained with (LLaVA-NeXT's for Llama 3); protocol data.
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class LlavaVision:
    """The vision part of a configuration.

    Attributes:
        tower: sizes of the SigLIP tower. select_layer: hidden state it gives. base: name or folder of the base model.
        depth: layers of the projector. views: how pictures are cut. packing: how their features become a sequence.
    """

    tower: Mapping[str, Any]
    select_layer: int
    base: str
    depth: int
    views: AnyResolution
    packing: Packing


def llava_vision(settings: Settings, *, pooled: bool) -> LlavaVision:
    """From the ``mm_*`` and ``image_*`` keys of a config.json.

    ``mm_vision_tower`` is a name with known sizes, or a folder (relative to the checkpoint, or absolute) that holds the
    base model. ``mm_pool_stills`` is our own key: the released code takes an environment variable for it.

    Args:
        pooled: whether the family pools still pictures cut at any resolution; single views of low-resolution
            checkpoints are not pooled.
    """
    settings.expect(
        mm_resampler_type=None, mm_use_im_start_end=False, mm_use_im_patch_token=False, mm_vision_select_feature="patch", add_faster_video=False,
        mm_newline_position="grid",
    )  # fmt: skip
    base = str(settings.get("mm_vision_tower"))
    folder = tower_folder(base, Path(settings.source).parent)
    if folder is not None:
        config = read_json(folder / "config.json")
        sizes = config.get("vision_config", config)
    elif base in PUBLISHED:
        sizes = PUBLISHED[base]
    else:
        raise CheckpointError(
            f"the sizes of mm_vision_tower {base!r} are not known", source=settings.source,
            remedy="name the folder of the base tower: load(..., overrides={'mm_vision_tower': FOLDER})",
        )  # fmt: skip
    side = int(sizes["image_size"])
    anyres = str(settings.get("image_aspect_ratio", default="square")).startswith("anyres")
    pool = bool(settings.get("mm_pool_stills", default=pooled and anyres))
    return LlavaVision(
        sizes, settings.number("mm_vision_select_layer", default=-2), str(folder or base),
        projector_depth(str(settings.get("mm_projector_type", default="linear"))), AnyResolution.from_llava(settings.data, side),
        Packing.from_llava(settings.data, pool),
    )  # fmt: skip


def tower_folder(name: str, beside: Path) -> Path | None:
    """The folder `name` means, absolute or relative to `beside`; None if there is no such folder."""
    return next((path for path in (beside / name, Path(name)) if (path / "config.json").is_file()), None)


class LlavaModel(nn.Module):
    """Backbone, tower, projector and newline embedding of a configuration whose `vision` is a :class:`LlavaVision`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision: LlavaVision = config.vision
        self.backbone = DiffusionBackbone(config.backbone)
        tower = build_tower("siglip", self.vision.tower, select_layer=self.vision.select_layer)
        assert isinstance(tower, SiglipTower)
        self.tower = tower
        self.projector = MlpProjector(tower.width, config.backbone.hidden_size, depth=self.vision.depth)
        self.newline = nn.Parameter(torch.zeros(config.backbone.hidden_size))

    def see(self, images: Sequence[Image.Image]) -> list[Picture]:
        """Features of the RGB pictures of one prompt; several in one prompt are padded to a square and seen in one view each."""
        aspect = "pad" if len(images) > 1 and self.vision.views.aspect == "anyres" else None
        views = [self.vision.views(image, aspect) for image in images]  # type: ignore[arg-type]
        return [Picture(self.encode(v), v.size) for v in views]

    def encode(self, views: Views) -> Tensor:
        """Features [T, D] of a picture's views: tower, projector, pooling, packing."""
        pixels = views.pixels.to(self.newline.device, self.newline.dtype)
        pooled = self.vision.packing.pooled(self.projector(self.tower(pixels)))
        return self.vision.packing.pack(pooled, views, self.newline)


def llava_weights(config: ModelConfig, names: Names) -> list[Weight]:
    """The key map; the tower may be lacking (fine-tuned checkpoints are often saved without it)."""
    vision: LlavaVision = config.vision
    tower = on_meta(lambda: build_tower("siglip", vision.tower, select_layer=vision.select_layer))
    width, hidden = int(vision.tower["hidden_size"]), config.backbone.hidden_size
    projector: list[Weight] = []
    for i in range(vision.depth):  # activations have the odd numbers
        theirs = f"{PROJECTOR}{2 * i}" if vision.depth > 1 else PROJECTOR.removesuffix(".")
        projector += linear(f"projector.layers.{i}", theirs, hidden, hidden if i else width)
    return [
        *backbone_weights(config.backbone, names), *module_weights(tower, "tower.", TOWER, required=False), *projector,
        weight("newline", NEWLINE, hidden),
    ]  # fmt: skip


def tower_ignored() -> tuple[str, ...]:
    """Keys of a stored tower that are never needed: pooling head, final norm, the layers behind the chosen one."""
    prefix = TOWER.replace(".", r"\.")
    parts = (r"head\..*", r"post_layernorm\..*", r"embeddings\.position_ids", r"encoder\.layers\.\d+\..*")
    return (*(prefix + part for part in parts), r"model\.faster_token")


def complete(model: nn.Module, config: ModelConfig, lacking: Sequence[str], dtype: torch.dtype | None, device: torch.device) -> str:
    """Fill the tower, which the shards lack, from its base model; a warning says so.

    Raises:
        CheckpointError: the base model is nowhere.
    """
    assert isinstance(model, LlavaModel)
    vision: LlavaVision = config.vision
    folder = find_folder(vision.base, "the base vision tower")
    note = f"the checkpoint holds no vision tower; the base tower {vision.base} was loaded instead. If the tower was tuned, answers will be worse."
    warnings.warn(note, stacklevel=2)
    load_base_tower(model.tower, folder, dtype=dtype, device=device)
    return note


def special_id(settings: Settings, name: str, fallback: int) -> int:
    """Id of a control token by the tokenizer files beside config.json, `fallback` where there are none."""
    folder = Path(settings.source).parent
    for file, find in (("tokenizer_config.json", _in_config), ("tokenizer.json", _in_tokenizer)):
        if (folder / file).is_file():
            found = find(read_json(folder / file), name)
            if found is not None:
                return found
    return fallback


def _in_config(data: Mapping[str, Any], name: str) -> int | None:
    return next((int(i) for i, token in data.get("added_tokens_decoder", {}).items() if token.get("content") == name), None)


def _in_tokenizer(data: Mapping[str, Any], name: str) -> int | None:
    return next((int(token["id"]) for token in data.get("added_tokens", ()) if token.get("content") == name), None)
