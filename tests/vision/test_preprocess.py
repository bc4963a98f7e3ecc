"""Preprocessing: token counts, packing, views and limits, for pictures of any size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.vision.pictures import textured as picture
from vision.errors import ImageFormatError, VisionConfigError
from vision.preprocess import AnyResolution, Packing, QwenPatches, Views, naflex_patches, resize, smart_resize
from vision.preprocess.anyres import best_resolution, pinpoints_of
from vision.preprocess.patches import naflex_size
from vision.preprocess.pixels import CLIP

LAVIDA = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
LLADA_V = tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7))
SIZES = [(640, 480), (768, 768), (384, 384), (200, 100), (1920, 1080), (1280, 720), (1080, 1920), (1000, 200), (2480, 3508)]


def test_naflex_batches_and_too_narrow_pictures():
    both = naflex_patches([picture(50, 40), picture(90, 200)], max_patches=30)
    for i, image in enumerate((picture(50, 40), picture(90, 200))):
        assert torch.equal(naflex_patches([image], max_patches=30).pixels[0], both.pixels[i])
    with pytest.raises(ImageFormatError):
        naflex_size((1, 100_000_000), 16, 2)


def test_the_token_counts_of_the_papers_rules():
    """Counts worked out by hand from the published rules."""
    lavida = AnyResolution(384, LAVIDA), Packing(pool="bilinear")
    llada_v = AnyResolution(384, LLADA_V), Packing(max_views=4)
    for (cut, packing), wanted in (
        (lavida, [834, 1008, 406, 316, 660, 660, 672, 540, 784]),
        (llada_v, [2929, 3699, 1485, 1093, 3649, 3649, 3681, 2123, 3673]),
    ):
        counts = []
        for size in SIZES:
            canvas = cut.canvas(size)
            counts.append(packing.count(size, (canvas[0] // 384, canvas[1] // 384), 27))
        assert counts == wanted


RULES = [
    Packing(pool="bilinear"), Packing(), Packing(max_views=4), Packing(max_views=9, digits=7), Packing(pool="average"), Packing(pool="max", stride=3),
    Packing(unpad=False), Packing(newline=False), Packing(pool="bilinear", max_views=1),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from(RULES), st.sampled_from([LAVIDA, LLADA_V]))
def test_packing_gives_as_many_tokens_as_it_counts(width, height, rule, points):
    canvas = best_resolution((width, height), points)
    grid = (canvas[0] // 384, canvas[1] // 384)
    views = Views(torch.zeros(0), (width, height), grid)
    features = torch.randn(1 + grid[0] * grid[1], 81, 3)
    packed = rule.pack(rule.pooled(features), views, torch.full((3,), 7.0))
    assert len(packed) == rule.count((width, height), grid, 9)
    side = rule.pooled_side(9)
    assert torch.equal(packed[: side**2], rule.pooled(features)[0])  # the base view comes first
    newlines = (packed == 7.0).all(dim=1).sum()
    rows = newlines if rule.newline else 0
    assert rule.newline or newlines == 0
    assert not rule.newline or len(packed) == side**2 or (packed[-1] == 7.0).all()
    assert (len(packed) - side**2 - rows) % max(1, rows) == 0  # rows of one length


def test_packing_stitches_rows_across_tiles():
    """Two tiles beside each other: a row of the page runs through both, and the letterbox is gone."""
    features = torch.arange(3 * 16).view(3, 16, 1).float()
    packed = Packing().pack(features, Views(torch.zeros(0), (80, 20), (2, 1)), torch.tensor([-1.0]))
    rows = [[20, 21, 22, 23, 36, 37, 38, 39, -1], [24, 25, 26, 27, 40, 41, 42, 43, -1]]  # rows 1 and 2 of 4
    assert packed[16:, 0].tolist() == rows[0] + rows[1]
    single = Packing().pack(features[:1], Views(torch.zeros(0), (80, 20), (0, 0)), torch.tensor([-1.0]))
    assert single[:, 0].tolist() == [*range(16), -1]


def test_bilinear_pooling_is_no_mean():
    features = torch.randn(2, 729, 5)
    assert Packing(pool="bilinear").pooled(features).shape == (2, 196, 5) and Packing(pool="average").pooled(features).shape == (2, 169, 5)
    even = torch.randn(1, 16, 2)
    torch.testing.assert_close(Packing(pool="bilinear").pooled(even), Packing(pool="average").pooled(even))  # they agree on even sides


def test_packing_refuses_what_does_not_fit():
    views = Views(torch.zeros(0), (10, 10), (2, 1))
    for call in (
        lambda: Packing().pack(torch.zeros(2, 9, 1), views, torch.zeros(1)),
        lambda: Packing().pack(torch.zeros(3, 9, 1), views, None),
        lambda: Packing().pack(torch.zeros(3, 8, 1), views, torch.zeros(1)),
        lambda: Packing.from_llava({"mm_patch_merge_type": "unpadded"}),
        lambda: Packing.from_llava({"mm_spatial_pool_mode": "cubic"}),
        lambda: Packing.from_llava({"image_aspect_ratio": "anyres_max_x"}),
    ):
        with pytest.raises(VisionConfigError):
            call()


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([28, 32]), st.integers(1, 40), st.integers(0, 400))
def test_smart_resize(height, width, factor, low, more):
    """Multiples of the factor and at least one cell; near the limits of the area as far as the ratio of sides allows."""
    least, most = low * factor**2, (4 * low + more) * factor**2
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ImageFormatError):
            smart_resize(height, width, factor, least, most)
        return
    rows, columns = smart_resize(height, width, factor, least, most)
    assert rows % factor == columns % factor == 0 and min(rows, columns) >= factor
    assert rows * columns >= least or rows == factor or columns == factor
    assert rows * columns <= most or min(rows, columns) == factor


def test_small_and_narrow_pictures():
    with pytest.raises(ImageFormatError, match="at least 28"):
        smart_resize(27, 100, 28, 3136, 100_000, small="refuse")
    with pytest.raises(ImageFormatError, match="200"):
        smart_resize(30, 6100, 28, 3136, 100_000)
    assert smart_resize(10, 200, 28, 3136, 14112, small="enlarge", reference_quirks=True) == (0, 504)
    assert smart_resize(10, 200, 28, 3136, 14112, small="enlarge") == (28, 504)
    assert smart_resize(5, 5000, 28, 3136, 100_000, small="enlarge")[0] == 28  # no limit on the ratio


@pytest.mark.parametrize("size", SIZES)
def test_views_cover_the_picture(size):
    """Every tile is there, base view first, and the pixels in the middle are those of the picture."""
    cut = AnyResolution(384, LAVIDA)
    image = Image.new("RGB", size, (200, 100, 50))
    views, grid = cut.cut(image, "anyres")
    canvas = cut.canvas(size)
    assert len(views) == 1 + grid[0] * grid[1] and (grid[0] * 384, grid[1] * 384) == canvas
    page = Image.new("RGB", canvas)
    for i, view in enumerate(views[1:]):
        page.paste(view, (i % grid[0] * 384, i // grid[0] * 384))
    pixels = np.asarray(page)
    lit = (pixels == (200, 100, 50)).all(axis=2)
    assert (pixels[~lit] == 0).all()  # letterbox is black
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    assert lit.any(axis=0).sum() == pytest.approx(size[0] * scale, abs=1) and lit.any(axis=1).sum() == pytest.approx(size[1] * scale, abs=1)


def test_padding_to_a_square():
    view = AnyResolution(40, aspect="pad").cut(Image.new("RGB", (80, 40), (255, 0, 0)), "pad")[0][0]
    assert view.getpixel((20, 2)) == (127, 127, 127) and view.getpixel((20, 20)) == (255, 0, 0) and view.getpixel((20, 37)) == (127, 127, 127)


def test_pinpoints():
    assert pinpoints_of("(1x1),...,(2x3)", 10) == ((10, 10), (10, 20), (10, 30), (20, 10), (20, 20), (20, 30))
    assert pinpoints_of("[[384, 768], [768, 384]]", 384) == ((384, 768), (768, 384))
    for bad in ("nonsense(", [1, 2], None, [[1]]):
        with pytest.raises(VisionConfigError):
            pinpoints_of(bad, 384)
    with pytest.raises(VisionConfigError):
        AnyResolution(384, ((384, 700),))
    with pytest.raises(VisionConfigError):
        AnyResolution(384)
    with pytest.raises(VisionConfigError):
        AnyResolution.from_llava({"image_aspect_ratio": "highres"}, 384)


def test_limits_must_be_given():
    with pytest.raises(VisionConfigError):
        QwenPatches.from_dict({"patch_size": 14})
    with pytest.raises(VisionConfigError):
        QwenPatches(10, 5)
    assert QwenPatches.from_dict({"size": {"shortest_edge": 100, "longest_edge": 900}}) == QwenPatches(100, 900, normalization=CLIP)
    with pytest.raises(VisionConfigError):
        QwenPatches.from_dict({"min_pixels": 1, "max_pixels": 2, "resample": 0})
    empty = QwenPatches(100, 900)([])
    assert empty[0].shape == (0, 1176) and empty[1].shape == (0, 3)


def test_the_two_resamplers_are_close():
    image = picture(301, 97)
    pil, tensor = (np.asarray(resize(image, (120, 60), "bicubic", b)).astype(int) for b in ("pil", "tensor"))
    assert np.abs(pil - tensor).max() <= 2
    assert resize(image, image.size) is image


def test_naflex_size_uses_the_patches_it_may():
    for size in SIZES:
        width, height = naflex_size(size, 16, 256)
        assert width % 16 == height % 16 == 0 and 200 <= width * height // 256 <= 256
