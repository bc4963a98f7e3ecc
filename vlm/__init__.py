"""Diffusion vision-language models: images in; captions, answers, JSON, boxes and lines out.

Names are loaded when they are first used (PEP 562): importing this package imports neither torch nor a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import vision  # noqa: F401  raises EnvironmentConflictError where the environment cannot hold us
from vlm.version import VERSION as __version__

if TYPE_CHECKING:
    from vision.loading import LoadedImage, load_image
    from vlm.errors import (
        CheckpointError,
        ConfigError,
        ContextLengthError,
        DecodingError,
        EnvironmentConflictError,
        ImageError,
        ImageFormatError,
        ImageNotFoundError,
        ImageTooLargeError,
        ImageTruncatedError,
        OptionError,
        PromptError,
        SchemaError,
        VLMError,
    )
    from vlm.model import DiffusionVLM, Partial
    from vlm.processor.messages import ImagePart, Message, TextPart, user
    from vlm.registration import register_transformers
    from vlm.results import FieldInfo, Item, Line, Result, Usage

_HOME = {
    "vlm.model": "DiffusionVLM Partial",
    "vlm.results": "FieldInfo Item Line Result Usage",
    "vlm.processor.messages": "ImagePart Message TextPart user",
    "vlm.registration": "register_transformers",
    "vision.loading": "LoadedImage load_image",
    "vlm.errors": (
        "CheckpointError ConfigError ContextLengthError DecodingError EnvironmentConflictError ImageError ImageFormatError "
        "ImageNotFoundError ImageTooLargeError ImageTruncatedError OptionError PromptError SchemaError VLMError"
    ),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DecodingError",
    "DiffusionVLM",
    "EnvironmentConflictError",
    "FieldInfo",
    "ImageError",
    "ImageFormatError",
    "ImageNotFoundError",
    "ImagePart",
    "ImageTooLargeError",
    "ImageTruncatedError",
    "Item",
    "Line",
    "LoadedImage",
    "Message",
    "OptionError",
    "Partial",
    "PromptError",
    "Result",
    "SchemaError",
    "TextPart",
    "Usage",
    "VLMError",
    "__version__",
    "load_image",
    "register_transformers",
    "user",
]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'vlm' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
