"""DiffusionGemma (google/diffusiongemma-26B-A4B-it): Gemma 4's mixture of experts as encoder of the prompt and decoder of canvases.

Corruption is uniform noise; there is no mask token. The transformer is that of transformers (extra `gemma`), everything around
it ours: prompts, pictures, decoding, scaffolds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from vision.preprocess.gemma import GemmaPatches
from vlm.backbone.config import BackboneConfig
from vlm.backbone.diffusion_gemma import config_of, implementation, open_module
from vlm.checkpoints.keymap import Weight, weight
from vlm.checkpoints.load import on_meta, read_json
from vlm.families.family import Family, ModelConfig, Picture, Settings
from vlm.processor.template import Frame, Special, Template


def _configure(settings: Settings) -> ModelConfig:
    text, vision = settings.inner("text_config"), settings.inner("vision_config")
    words = text.number("vocab_size")
    eos = text.get("eos_token_id", default=1)
    backbone = BackboneConfig(
        vocab_size=words, hidden_size=text.number("hidden_size"), num_layers=text.number("num_hidden_layers"), num_heads=text.number("num_attention_heads"),
        num_kv_heads=text.number("num_key_value_heads"), intermediate_size=text.number("intermediate_size"), head_dim=text.number("head_dim"),
        mask_token_id=words, pad_token_id=text.number("pad_token_id", default=0), eos_token_id=eos[0] if isinstance(eos, list) else eos,
        bos_token_id=text.number("bos_token_id", default=2), rms_norm_eps=text.real("rms_norm_eps", default=1e-6), qk_norm=True, tie_embeddings=True,
        max_position_embeddings=text.number("max_position_embeddings"),
    )  # fmt: skip
    return ModelConfig(backbone, _patches(settings, vision), settings.data, fill_token="<pad>")


def _patches(settings: Settings, vision: Settings) -> GemmaPatches:
    folder = Path(settings.source).parent
    found = read_json(folder / "processor_config.json", required=False).get("image_processor") or read_json(folder / "preprocessor_config.json", required=False)
    return GemmaPatches.from_dict(found, vision.number("patch_size", default=16), vision.number("pooling_kernel_size", default=3))


class GemmaModel(nn.Module):
    """transformers' module, and what its tower makes of pictures.

    Args:
        config: `vision` is a :class:`GemmaPatches`. module: with its weights; None makes one without.
    """

    def __init__(self, config: ModelConfig, module: Any = None) -> None:
        super().__init__()
        self.config = config
        self.module: Any = module or implementation().DiffusionGemmaForBlockDiffusion(config_of(config.raw))

    def see(self, images: Sequence[Image.Image]) -> list[Picture]:
        """Features of RGB pictures, all in one call."""
        if not images:
            return []
        patches: GemmaPatches = self.config.vision
        pixels, places = patches(images)
        weight = self.module.lm_head.weight
        found = self.module.model.encoder.get_image_features(pixels.to(weight.device, weight.dtype), places.to(weight.device), return_dict=True)
        counts = [patches.count(image.size) for image in images]
        return [Picture(f, image.size) for f, image in zip(found.pooler_output.split(counts), images, strict=True)]


def _weights(config: ModelConfig) -> list[Weight]:
    """Published keys as they are; encoder and head, tied to the decoder, are not stored. `layer_scalar` is stored for both."""
    model = on_meta(lambda: GemmaModel(config))
    tied = {f"module.{key}" for key in model.module.all_tied_weights_keys}
    return [weight(name, name.removeprefix("module."), *tensor.shape) for name, tensor in model.state_dict().items() if name not in tied]


def _open(folder: Path, config: ModelConfig, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    return GemmaModel(config, open_module(folder, dtype, device))


def _frame(role: str) -> Frame:
    return Frame((Special("<|turn>"), f"{role}\n"), (Special("<turn|>"), "\n"))


#: What the published chat template puts behind the opening of an answer that shall not think aloud.
NO_THOUGHT = (Special("<|channel>"), "thought\n", Special("<channel|>"))
TEMPLATE = Template(
    name="diffusion-gemma", begin=(Special("<bos>"),), roles={"system": _frame("system"), "user": _frame("user"), "assistant": _frame("model")},
    answer=_frame("model").before, image=Frame((Special("<|image>"),), (Special("<image|>"),)), media_token="<|image|>", images_first=False, strip_text=True,
)  # fmt: skip

FAMILY = Family(
    name="diffusion-gemma",
    model_types=("diffusion_gemma",),
    architectures=("DiffusionGemmaForBlockDiffusion",),
    configure=_configure,
    weights=_weights,
    template=TEMPLATE,
    build=GemmaModel,
    open=_open,
    ignored=(r"lm_head\.weight", r"model\.encoder\.language_model\.(?!.*layer_scalar).*"),
    attention="prefix",
    corruption="uniform",
    stop=("<turn|>", "<eos>", "<|tool_response>"),
    presets={"diffusion-gemma": ("entropy-bound", {})},
    default_preset="diffusion-gemma",
    proven="encoder, decoder, acceptance, stopping and whole generations, with and without pinned cells, step by step against transformers on tiny random "
    "weights; prompts and real weights not run",
)
