"""Errors a caller can act on: each names what failed (source), why (message) and what to do (remedy)."""

from __future__ import annotations


class VLMError(Exception):
    """Base of all typed errors. `str(error)` reads "source: message. Remedy"."""

    def __init__(self, message: str, *, source: str = "", remedy: str = "") -> None:
        self.message = message
        self.source = source
        self.remedy = remedy
        text = f"{source}: {message}" if source else message
        super().__init__(f"{text}. {remedy[0].upper()}{remedy[1:]}" if remedy else text)


class ImageError(VLMError):
    """An image that cannot be used."""


class ImageNotFoundError(ImageError):
    """No such file."""


class ImageFormatError(ImageError):
    """Not an image in one of the formats we read."""


class ImageTruncatedError(ImageError):
    """The file ends before the picture does, or is damaged inside."""


class ImageTooLargeError(ImageError):
    """More pixels than the limit allows."""


class VisionConfigError(VLMError):
    """A tower or preprocessing configuration that cannot be used."""


class DependencyError(VLMError):
    """An optional package is missing or does not import."""


class EnvironmentConflictError(VLMError, ImportError):
    """Another installed package makes this one unusable here."""
