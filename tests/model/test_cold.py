"""What a first use imports."""

from __future__ import annotations

import subprocess
import sys


def test_loading_pocket_and_one_answer_import_no_compiler():
    """A multiplication on the meta device is enough to import torch._dynamo, which takes longer than everything else together."""
    code = """
import sys
from PIL import Image
from vlm import DiffusionVLM
DiffusionVLM.from_pretrained().caption(Image.new("RGB", (64, 64), "white"), max_new_tokens=4)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
