"""Dream-VL-7B (arXiv:2512.22615; Dream-org/Dream-VL-7B): Dream-7B behind the Qwen2-VL tower and a second projector.

Its chat format has no marks around a picture, and so positions simply count on; with marks the model would see three-axis
positions it was never trained on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlm.checkpoints.keymap import Weight, llama_names
from vlm.families.dream import chatml_template, qwen_backbone
from vlm.families.family import Family, ModelConfig, Settings
from vlm.families.qwen_vl import QwenVision, QwenVL, patches_of, qwen_vl_weights


def _configure(settings: Settings) -> ModelConfig:
    settings.expect(rope_scaling=None, full_attn_mask=True)
    patches = patches_of(settings, (3136, 3211264), small="enlarge")
    vision = QwenVision("qwen2_vl", settings.inner("vision_config").data, patches, settings.get("projector_hidden_act", default="gelu"), axes=False)
    return ModelConfig(qwen_backbone(settings, logit_shift=1), vision, settings.data)


def _weights(config: ModelConfig) -> list[Weight]:
    return qwen_vl_weights(config, llama_names(), "visual.", projector="projector.")


def _benchmark(steps: int) -> tuple[str, dict[str, Any]]:
    return "dream-maskgit-plus", {"steps": steps, "pooled": True}


#: `pooled` works under `reference_quirks` alone. README, and the evaluation scripts, whose answers have these lengths: 3 (MMMU), 8, 16, 32 and 128 tokens.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "dream-vl": ("dream-maskgit-plus", {"steps": 128, "temperature": 0.1, "pooled": True}),
    "dream-vl-mmmu": _benchmark(1),
    "dream-vl-mmstar": _benchmark(8),
    "dream-vl-chartqa": _benchmark(16),
    "dream-vl-docvqa": _benchmark(32),
    "dream-vl-mathvista": _benchmark(128),
}

FAMILY = Family(
    name="dream-vl",
    model_types=("dream-vl",),
    architectures=("DreamVLModel",),
    configure=_configure,
    weights=_weights,
    template=replace(chatml_template("dream-vl"), images_first=False),
    build=QwenVL,
    ignored=(r".*rotary.*inv_freq",),
    stop=("<|endoftext|>", "<|im_end|>"),
    presets=PRESETS,
    proven="pictures, prompts, forward, single generations and training losses against the published code on tiny random weights; "
    "real weights not run",
)
