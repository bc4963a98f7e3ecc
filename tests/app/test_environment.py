"""What importing costs, and what happens beside the other package called `kernels`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "tokenizers", "numpy", "PIL", "timm", "torchvision")


def python(code, path, cwd):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd, check=False)


@pytest.fixture
def theirs(tmp_path):
    """A folder with an installed distribution 'kernels' that is not ours."""
    site = tmp_path / "site"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text("def get_kernel(name): ...\n")
    info = site / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    return site


def test_import_is_light(tmp_path):
    code = f"import vlm, app, app.cli, sys; vlm.VLMError, vlm.Result, dir(vlm); print([m for m in {HEAVY} if m in sys.modules])"
    done = python(code, [ROOT], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import vlm

    assert {name for name in vlm.__all__ if getattr(vlm, name) is not None} == set(vlm.__all__)
    assert set(vlm.__all__) <= set(dir(vlm))
    with pytest.raises(AttributeError, match="no attribute 'DiffusionVLLM'"):
        _ = vlm.DiffusionVLLM


CONFLICT = """
import sys
{before}
try:
    import vlm
except ImportError as error:
    assert not [m for m in ("torch", "transformers") if m in sys.modules]
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
@pytest.mark.parametrize("before", ["", "import kernels"])
def test_their_package_installed_beside_ours(theirs, tmp_path, order, before):
    if order == "ours first" and before:
        pytest.skip("that import fails by itself, see the next test")
    path = [theirs, ROOT] if order == "theirs first" else [ROOT, theirs]
    done = python(CONFLICT.format(before=before), path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EnvironmentConflictError environment: the Hugging Face package 'kernels' 0.18.2 is installed")
    assert "environment of its own" in done.stdout


def test_their_users_find_ours(theirs, tmp_path):
    done = python("from kernels import get_kernel", [ROOT, theirs], tmp_path)
    assert "ImportError: this is the package 'kernels' of diffusion-vlm" in done.stderr


@pytest.mark.parametrize("before", ["", "import kernels"])
def test_any_other_package_of_that_name(tmp_path, before):
    (tmp_path / "lib" / "kernels").mkdir(parents=True)
    (tmp_path / "lib" / "kernels" / "__init__.py").touch()
    done = python(CONFLICT.format(before=before), [tmp_path / "lib", ROOT], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"the package 'kernels' comes from {tmp_path / 'lib'}" in done.stdout


def test_both_unpacked_into_one_folder(theirs, tmp_path):
    """What two installs into one site-packages leave: one `kernels/__init__.py`, whoever came last, and both metadata."""
    for name in ("vlm", "vision", "app"):
        (theirs / name).symlink_to(ROOT / name)
    done = python(CONFLICT.format(before=""), [theirs], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EnvironmentConflictError")


def test_what_their_removal_leaves_of_ours(tmp_path):
    """Uninstalling theirs takes our `kernels/__init__.py` along if theirs was installed over it."""
    for name in ("vlm", "vision", "app"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "kernels").mkdir()
    done = python(CONFLICT.format(before=""), [tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the package 'kernels' is missing" in done.stdout and "--force-reinstall" in done.stdout


def test_command_line_says_it_in_one_line(theirs, tmp_path):
    code = "import sys; from app.cli import main; sys.exit(main(['caption', 'a.png']))"
    done = python(code, [ROOT, theirs], tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("vlm: EnvironmentConflictError: ")


@pytest.mark.skipif(not any((Path(p) / "transformers").is_dir() for p in sys.path), reason="transformers is not installed")
def test_transformers_takes_ours_for_nobody(tmp_path):
    """transformers must not believe that its optional package is there because of ours."""
    done = python("from transformers.utils import is_kernels_available as known; print(known())", [ROOT], tmp_path)
    assert done.stdout.strip() == "False", done.stderr
