"""Typed errors of the language side, with those of the vision room re-exported beside them."""

from __future__ import annotations

from vision.errors import (
    EnvironmentConflictError,
    ImageError,
    ImageFormatError,
    ImageNotFoundError,
    ImageTooLargeError,
    ImageTruncatedError,
    VLMError,
)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DecodingError",
    "EnvironmentConflictError",
    "ImageError",
    "ImageFormatError",
    "ImageNotFoundError",
    "ImageTooLargeError",
    "ImageTruncatedError",
    "OptionError",
    "PromptError",
    "SchemaError",
    "VLMError",
]


class ConfigError(VLMError):
    """A configuration that cannot be used."""


class CheckpointError(VLMError):
    """A checkpoint that is missing something or does not fit its configuration."""


class PromptError(VLMError):
    """A prompt that cannot be built."""


class ContextLengthError(PromptError):
    """Prompt and answer together need more positions than the model has."""


class SchemaError(VLMError):
    """A schema that cannot be compiled; `pointer` is the JSON pointer of the culprit."""

    def __init__(self, message: str, *, pointer: str = "", source: str = "", remedy: str = "") -> None:
        self.pointer = pointer
        super().__init__(message, source=source or f"schema at {pointer or '/'}", remedy=remedy)


class DecodingError(VLMError):
    """The decoding loop was asked for something impossible."""


class OptionError(VLMError):
    """An unknown option or a value outside its range."""
