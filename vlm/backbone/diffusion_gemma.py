"""DiffusionGemma's transformer as transformers implements it: configuration and weights.

transformers is optional and is imported when a checkpoint is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vision.errors import DependencyError
from vlm.errors import CheckpointError

#: First release of transformers with the model.
SINCE = "5.17"


def implementation() -> Any:
    """transformers' module of the model.

    Raises:
        DependencyError: transformers is missing or too old.
    """
    try:
        import transformers
    except ImportError as error:
        raise DependencyError(f"transformers does not import ({error})", source="diffusion-gemma", remedy="pip install 'diffusion-vlm[gemma]'") from error
    try:
        from transformers.models.diffusion_gemma import modeling_diffusion_gemma
    except ImportError as error:
        raise DependencyError(
            f"transformers {transformers.__version__} cannot load DiffusionGemma ({error})", source="diffusion-gemma",
            remedy=f"use transformers {SINCE} or newer: pip install 'diffusion-vlm[gemma]'",
        ) from error
    return modeling_diffusion_gemma


def config_of(data: Mapping[str, Any], source: str = "config.json") -> Any:
    """transformers' configuration of a parsed config.json; CheckpointError if it refuses it."""
    implementation()
    from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig

    try:
        return DiffusionGemmaConfig.from_dict(dict(data))
    except Exception as error:  # its validators raise several kinds of their own
        raise CheckpointError(f"transformers refuses it ({error})", source=source, remedy="fetch the config.json that belongs to the checkpoint") from error


def open_module(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Any:
    """The module with its weights, by transformers' own loader; local files alone, no remote code.

    Args:
        dtype: None as stored.

    Raises:
        CheckpointError: keys are missing or of other shapes.
    """
    kind = implementation().DiffusionGemmaForBlockDiffusion
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        place = {} if device.type == "cpu" else {"device_map": {"": device}}
        module, info = kind.from_pretrained(folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True, **place)
    except ImportError as error:
        raise DependencyError(f"transformers lacks something ({error})", source="diffusion-gemma", remedy="pip install 'diffusion-vlm[gemma]'") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"transformers cannot load it ({error})", source=str(folder), remedy="fetch the checkpoint again") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    for what in ("missing_keys", "mismatched_keys"):
        if info.get(what):
            named = ", ".join(str(key) for key in sorted(info[what], key=str)[:5])
            raise CheckpointError(f"{len(info[what])} {what.replace('_', ' ')}: {named}", source=str(folder), remedy="fetch the checkpoint again")
    text = module.config.text_config
    if module.dtype.itemsize > 4 or any(size * module.dtype.itemsize % 16 for size in (text.hidden_size, text.moe_intermediate_size)):
        module.set_experts_implementation("eager")  # torch's grouped product has no float64 and wants rows of whole 16 bytes
    return module.eval()
