"""Our checkpoints under transformers' names, for those who ask."""

from __future__ import annotations

from functools import cache

from vlm.errors import OptionError


@cache
def register_transformers() -> tuple[str, ...]:
    """Register the checkpoint kinds we know with transformers' Auto classes, without remote code.

    Afterwards ``AutoConfig``, ``AutoProcessor`` and ``AutoModelForImageTextToText`` take folders and Hub ids of published
    checkpoints and of pocket, and ``pipeline("image-text-to-text", model=...)`` answers with our decoding. Kinds that
    transformers has a model of its own for are left to it. Nothing is registered unless this is called; calling it again
    changes nothing.

    Returns:
        The values of `model_type` that now mean our models.

    Raises:
        OptionError: transformers is not installed.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise OptionError("transformers is not installed", remedy="pip install 'diffusion-vlm[transformers]'") from error
    from vlm.transformers_classes import register

    return register()
