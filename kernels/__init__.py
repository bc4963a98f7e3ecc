"""Tensor operations: one file per operation, each with its plain-torch reference."""

from importlib.metadata import PackageNotFoundError, version

try:
    version("kernels")
except PackageNotFoundError:
    pass
else:  # somebody looking for Hugging Face's package of this name found ours: say so instead of failing over a missing name
    raise ImportError(
        "this is the package 'kernels' of diffusion-vlm, and the Hugging Face package 'kernels' is installed too. "
        "Use an environment of its own for diffusion-vlm (python3 -m venv)"
    )
