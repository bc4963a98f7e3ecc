"""SDAR-VL (arXiv:2512.14068; JetLM/SDAR-VL-Instruct-* and -Think-*): SDAR (arXiv:2510.06303), a block-diffusion Qwen3, behind SigLIP.

LLaVA-OneVision's views with the tensor resampler, feature before the last norm, packing with newlines, at most nine views' worth.
Blocks are counted from the first entry of the prompt; positions simply count on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from vision.preprocess.anyres import AnyResolution
from vision.preprocess.packing import Packing, max_views_named
from vision.preprocess.pixels import Normalization
from vision.towers import build_tower
from vlm.checkpoints.keymap import Weight, backbone_weights, linear, llama_names, weight
from vlm.checkpoints.load import on_meta, read_json
from vlm.decoding.blocks import Blocks
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Picture, Settings
from vlm.families.llava import LlavaModel, LlavaVision
from vlm.families.towers import module_weights
from vlm.processor.template import Frame, Special, Template

TOWER = "vision_tower.vision_model."
#: `<|MASK|>` of SDAR's tokenizer.
MASK = 151669


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(vision_feature_select_strategy="full", use_image_newline_parameter=True, projector_hidden_act="gelu", multimodal_projector_bias=True)
    text, sizes = settings.inner("text_config"), settings.inner("vision_config").data
    text.expect(rope_scaling=None)
    backbone = replace(
        qwen_backbone(text, logit_shift=0, qkv_bias=bool(text.get("attention_bias", default=False)), qk_norm=True),
        tie_embeddings=bool(settings.get("tie_word_embeddings", default=text.get("tie_word_embeddings", default=False))),
    )
    points = tuple((width, height) for height, width in settings.get("image_grid_pinpoints"))  # the height stands first
    normal = Normalization.from_dict(read_json(Path(settings.source).parent / "preprocessor_config.json", required=False))
    vision = LlavaVision(
        sizes, settings.number("vision_feature_layer", default=-1), "", 2,
        AnyResolution(int(sizes["image_size"]), points, "anyres", normal, backend="tensor"),
        Packing(max_views=max_views_named(settings.get("vision_aspect_ratio", default="anyres_max_9")), digits=7),
    )  # fmt: skip
    return ModelConfig(backbone, vision, settings.data, blocks=Blocks(text.number("block_size", default=4)))


class SdarModel(LlavaModel):
    """The same parts as LaViDa's; every picture is seen at any resolution."""

    def see(self, images: Sequence[Image.Image]) -> list[Picture]:
        """Features of RGB pictures."""
        views = [self.vision.views(image) for image in images]
        return [Picture(self.encode(v), v.size) for v in views]


def _weights(config: ModelConfig) -> list[Weight]:
    vision: LlavaVision = config.vision
    tower = on_meta(lambda: build_tower("siglip", vision.tower, select_layer=vision.select_layer))
    width, hidden = int(vision.tower["hidden_size"]), config.backbone.hidden_size
    return [
        *backbone_weights(config.backbone, llama_names("language_model.model.", "language_model.lm_head")), *module_weights(tower, "tower.", TOWER),
        *linear("projector.layers.0", "multi_modal_projector.linear_1", hidden, width),
        *linear("projector.layers.1", "multi_modal_projector.linear_2", hidden, hidden), weight("newline", "image_newline", hidden),
    ]  # fmt: skip


def _template() -> Template:
    """ChatML with the newlines of the published template: one before the end mark of a turn, and one more before bare text."""

    def frame(role: str, before: str, after: str) -> Frame:
        return Frame((Special("<|im_start|>"), f"{role}\n{before}"), (after, Special("<|im_end|>"), "\n"))

    roles = ("system", "user", "assistant")
    return replace(
        chatml_template("sdar-vl"), images_first=False, roles={role: frame(role, "", "\n") for role in roles},
        text_roles={role: frame(role, "\n", "\n") for role in roles}, system_frame=frame("system", "", ""),
    )  # fmt: skip


#: Demo of the release (2048 tokens), and the options of its script.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sdar-vl": ("block-dynamic", {"block_length": 4, "steps_per_block": 4, "threshold": 0.9, "tempered": True}),
    "sdar-vl-static": ("block-static", {"block_length": 4, "steps_per_block": 4, "tempered": True}),
    "sdar-vl-sequential": ("block-sequential", {"block_length": 4, "steps_per_block": 4, "tempered": True}),
}

FAMILY = Family(
    name="sdar-vl",
    model_types=("sdar_v",),
    architectures=("LlavaOnevisionForConditionalGeneration",),
    keys=("vision_aspect_ratio",),
    configure=_configure,
    weights=_weights,
    template=_template(),
    build=SdarModel,
    ignored=(r".*rotary.*inv_freq", rf"{TOWER}post_layernorm\..*", rf"{TOWER}head\..*", rf"{TOWER}embeddings\.position_ids"),
    attention="block-causal",
    stop=("<|im_end|>", "<|endoftext|>"),
    presets=PRESETS,
    default_preset="sdar-vl",
    proven="views, features, prompts, attention rule, forward, whole generations step by step and training losses against the published code on tiny "
    "random weights; real weights not run",
)
