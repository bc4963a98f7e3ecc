"""Whether this environment can hold us: our package `kernels` shares its name with one of Hugging Face.

transformers imports that package whenever it is installed, and Python has room for one `kernels` only. Whichever is
found first, the other's users break somewhere deep inside. So the door is closed here, before anything is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from vision.errors import EnvironmentConflictError

_REMEDY = (
    "install diffusion-vlm into an environment of its own (python3 -m venv); to keep this one: pip uninstall kernels, then "
    "pip install --force-reinstall --no-deps diffusion-vlm, because the two overwrite each other's files"
)


def check_kernels() -> None:
    """Make sure that `kernels` is ours and the only one.

    Raises:
        EnvironmentConflictError: Hugging Face's package is installed, whichever of the two Python would import, or
            another module of that name comes first.
    """
    ours = Path(__file__).resolve().parents[1] / "kernels" / "__init__.py"
    found = _origin()
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if version:
        raise EnvironmentConflictError(
            f"the Hugging Face package 'kernels' {version} is installed here, and this project has a package of the same name; transformers would mix them up",
            source="environment",
            remedy=_REMEDY,
        )
    if found is None or found.resolve() != ours:
        where = "is missing" if found is None else f"comes from {found}"
        raise EnvironmentConflictError(f"the package 'kernels' {where}, ours is {ours}", source="environment", remedy=_REMEDY)


def _origin() -> Path | None:
    """File of the `kernels` that is imported already, or would be."""
    loaded = sys.modules.get("kernels")
    if loaded is not None:
        return Path(loaded.__file__) if loaded.__file__ else None
    spec = importlib.util.find_spec("kernels")
    return Path(spec.origin) if spec is not None and spec.origin else None
