"""Decoding options as people type them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from vlm.errors import OptionError


def parse_options(pairs: Iterable[str], source: str = "--set") -> dict[str, Any]:
    """``NAME=VALUE`` pairs as keyword arguments; values are JSON where they can be, text otherwise.

    Raises:
        OptionError: a pair of another form.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier():
            raise OptionError(f"{source} {pair!r} is not NAME=VALUE", remedy="for example gamma=0.95")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
