"""Names to files: order, folders, patterns, nothing lost silently."""

import pytest

from app.inputs import expand
from vlm.errors import ImageNotFoundError


def paths(inputs):
    return [i.path for i in inputs.files]


@pytest.fixture
def folder(tmp_path, picture):
    for name in ("b.PNG", "a.jpg", "c d.png", "deep/e.png", ".hidden.png"):
        picture(name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "bare").write_bytes((tmp_path / "a.jpg").read_bytes())
    return tmp_path


def test_folder_is_scanned_in_order_of_names(folder):
    found = expand([str(folder)], recursive=False)
    assert paths(found) == [str(folder / n) for n in ("a.jpg", "b.PNG", "bare", "c d.png", "scan.pdf")]
    assert found.passed_over == [str(folder / n) for n in (".hidden.png", "notes.txt")]


def test_recursive(folder):
    assert str(folder / "deep" / "e.png") in paths(expand([str(folder)]))


def test_named_files_are_taken_whatever_they_are(folder):
    names = [str(folder / "notes.txt"), str(folder / "missing.png"), str(folder / "a.jpg")]
    assert paths(expand(names)) == names


def test_a_file_named_twice_counts_once(folder):
    found = expand([str(folder / "b.PNG"), str(folder), str(folder / "deep" / ".." / "a.jpg")])
    assert paths(found)[0] == str(folder / "b.PNG") and len(paths(found)) == 6


def test_patterns(folder):
    assert paths(expand([str(folder / "*.png")])) == [str(folder / "c d.png")]
    assert paths(expand([str(folder / "**" / "*.png")])) == [str(folder / n) for n in ("c d.png", "deep/e.png")]


def test_a_name_that_exists_is_no_pattern(tmp_path, picture):
    odd = picture("scan[1].png")
    picture("scan1.png")
    assert paths(expand([str(odd)])) == [str(odd)]


def test_what_gives_nothing_is_a_failed_input(tmp_path, picture):
    (tmp_path / "empty").mkdir()
    found = expand([str(tmp_path / "empty"), str(tmp_path / "*.gif"), str(picture())])
    assert [type(i.error) for i in found.files] == [ImageNotFoundError, ImageNotFoundError, type(None)]
    assert "no images in this folder" in str(found.files[0].error) and "no file matches" in str(found.files[1].error)
