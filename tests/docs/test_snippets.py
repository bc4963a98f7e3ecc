"""What the documentation shows is run: Python blocks with pocket, commands through the grammar, links of the README.

A Python block is not run (but must compile) on the pages of the published families, whose weights are not here, and behind a
line ``<!-- not run: why -->``.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from app.cli import build_parser
from vlm import DiffusionVLM

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?P<mark><!-- not run:[^\n]*-->\n+)?^```(?P<kind>\w*)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def blocks(page, *kinds):
    return [m for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m["kind"] in kinds]


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def pocket():
    return DiffusionVLM.from_pretrained()


@pytest.fixture
def here(tmp_path, monkeypatch, pocket):
    """A folder with the pictures the pages speak of, and pocket without loading it again."""
    for picture in (ROOT / "app" / "web" / "examples").glob("*.png"):
        shutil.copy(picture, tmp_path)
    for name in ("a", "b", "photo", "scene"):
        shutil.copy(tmp_path / "shapes.png", tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DiffusionVLM, "from_pretrained", lambda *_, **__: pocket)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python(page, here):
    names: dict = {"__name__": "__main__"}  # the blocks of a page go on from each other
    for block in blocks(page, "python"):
        code = compile(block["body"], f"{name_of(page)} block", "exec")
        if block["mark"] is None and page.parent.name != "families":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "", "sh")], ids=name_of)
def test_commands(page):
    text = "\n".join(m["body"] for m in blocks(page, "", "sh")).replace("\\\n", " ")
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # no command: a listing
        if words[:1] == ["vlm"] and len(words) > 1:
            build_parser().parse_args(words[1:])  # leaves with an error for what does not exist
        elif words[:2] == ["python", "-m"] and words[2].startswith(("examples.", "benchmarks.", "tests.")):
            assert importlib.util.find_spec(words[2]), line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"
