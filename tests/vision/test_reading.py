"""Reading whole pictures: tiles give the maps of the whole page, the scale follows the text, boxes come back."""

import numpy as np
import pytest
import torch
from PIL import Image

import vision.reading as reading
from tests.vision.test_tokens import COLON, written
from vision.reader import ALPHABET, STRIDE, THINGS, ReaderConfig, ReaderOutput, ReaderTower
from vision.reading import better_scale, read_maps, read_picture, read_pictures, tiles
from vision.tokens import CHAR, THING, text_of


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(reading, "fast_bf16", lambda device=None: False)


def small_tower(seed=0):
    """The default depth, so the default field of view, but narrow; norms away from the identity."""
    torch.manual_seed(seed)
    tower = ReaderTower(ReaderConfig(stem=(4, 6), width=8)).eval()
    for name, parameter in tower.named_parameters():
        if "norm2.weight" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return tower


@pytest.mark.parametrize(("width", "height"), [(8, 8), (1600, 1600), (1608, 1640), (20_000, 136), (144, 21_000), (3000, 4000), (2568, 2568)])
def test_cores_divide_the_page(width, height):
    count = np.zeros((height // STRIDE, width // STRIDE), int)
    for tile in tiles(width, height):
        left, top, right, bottom = tile.core
        assert all(v % STRIDE == 0 for v in (tile.x0, tile.y0, left, top))
        assert 0 <= tile.x0 <= left < right <= tile.x1 <= width and 0 <= tile.y0 <= top < bottom <= tile.y1 <= height
        assert left - tile.x0 in (0, reading.OVERLAP) or tile.x0 == 0
        count[top // STRIDE : bottom // STRIDE, left // STRIDE : right // STRIDE] += 1
    assert (count == 1).all()
    assert (len(tiles(width, height)) == 1) == (width * height <= reading.TILE_PIXELS)


def test_tiles_give_the_maps_of_the_whole_page(monkeypatch):
    tower = small_tower()
    pixels = np.random.default_rng(0).integers(0, 256, (403, 590, 3), dtype=np.uint8)
    with torch.inference_mode():
        whole = read_maps(tower, pixels)
        monkeypatch.setattr(reading, "TILE_PIXELS", 60_000)
        monkeypatch.setattr(reading, "TILE_SIDE", 200)
        assert len(tiles(592, 408)) == 9
        tiled = read_maps(tower, pixels)
        for name in ReaderOutput.__dataclass_fields__:
            torch.testing.assert_close(getattr(tiled, name), getattr(whole, name), rtol=0, atol=2e-5)
        monkeypatch.setattr(reading, "OVERLAP", 16)  # the test can fail: too little context shows
        assert (read_maps(tower, pixels).features - whole.features).abs().max() > 1e-3


def test_the_field_of_view_fits_the_overlap():
    tower = small_tower().double()
    pixels = torch.rand(1, 3, 408, 408, dtype=torch.float64, requires_grad=True)
    tower(pixels).features[0, :, 25, 25].sum().backward()
    seen = pixels.grad[0].abs().sum(0).nonzero()
    assert int(seen.min()) >= 25 * STRIDE - reading.OVERLAP and int(seen.max()) < 26 * STRIDE + reading.OVERLAP


def test_a_folded_tower_reads_the_same():
    tower = small_tower()
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    pixels = torch.rand(1, 3, 64, 96)
    folded = tower.folded(torch.float32)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()) and not any(p.requires_grad for p in folded.parameters())
    for name in ("features", "chars", "char_boxes", "blanks", "things", "colors", "thing_boxes"):
        torch.testing.assert_close(getattr(folded(pixels), name), getattr(tower(pixels), name), atol=1e-4, rtol=1e-4)
    assert {p.dtype for p in tower.folded(torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tower.parameters()} == {torch.float32}  # a copy


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Sizes of the tests' own, whatever the shipped tower reads best."""
    for name, value in (("LOWEST", 8.0), ("IDEAL", 12.0), ("HIGHEST", 19.0)):
        monkeypatch.setattr(reading, name, value)


class Printed(torch.nn.Module):
    """A tower that reads what it is told, at the size of the picture it is given."""

    def __init__(self, *lines, at=1.0):
        super().__init__()
        self.marker = torch.nn.Parameter(torch.zeros(()))
        self.lines, self.at, self.seen = lines, at, []

    def forward(self, pixels):
        height, width = pixels.shape[-2:]
        self.seen.append((width, height))
        output = written(height // 8, width // 8, *self.lines)
        output.features[:] = torch.arange(height // 8 * (width // 8)).view(height // 8, width // 8)
        return output


def test_text_boxes_and_features():
    tower = Printed(("first row", 10, 10), ("and more", 10, 40))
    result = read_picture(tower, Image.new("RGB", (203, 101)), COLON, pooled=False)
    assert [row[0] for row in text_of(result.tokens, ALPHABET)] == ["first row", "and more"]
    assert result.size == (203, 101) and result.scale == 1.0 and tower.seen == [(208, 104)]
    np.testing.assert_allclose(result.tokens.boxes[0], (10, 10, 15.4, 20), atol=1e-3)
    cells = result.tokens.cells
    assert (result.features[cells >= 0] == torch.from_numpy(cells[cells >= 0]).float()[:, None]).all()
    assert (result.features[cells < 0] == 0).all() and (cells >= 0).tolist() == (result.tokens.kind == CHAR).tolist()


def test_small_text_is_read_again_enlarged(monkeypatch):
    monkeypatch.setattr(reading, "LOWEST", 11.0)  # the printed text is 10 pixels high
    tower = Printed(("some text", 10, 10))
    result = read_picture(tower, Image.new("RGB", (200, 100)), COLON, pooled=False)
    assert tower.seen == [(200, 104), (240, 120)] and result.scale == pytest.approx(1.2)
    np.testing.assert_allclose(result.tokens.boxes[0], np.array([10, 10, 15.4, 20]) / 1.2, atol=1e-3)
    once = Printed(("some text", 10, 10))
    assert read_picture(once, Image.new("RGB", (200, 100)), COLON, rescale=False, pooled=False).scale == 1.0 and len(once.seen) == 1


class WithButton(Printed):
    """Shows a button (40, 48)-(80, 64) where the page is as large as it is; enlarged, none."""

    def forward(self, pixels):
        output = super().forward(pixels)
        if len(self.seen) == 1:
            output.things[0, THINGS.index("button") + 1, 7, 7] = 30.0  # 20 px right of its left edge
            output.thing_boxes[0, :, 7, 7] = torch.tensor([(40 - 60) / 8, (56 - 60) / 8, np.log(40 / 8), np.log(16 / 8)])
        return output


def test_widgets_are_those_of_the_page_as_large_as_it_is(monkeypatch):
    monkeypatch.setattr(reading, "LOWEST", 11.0)
    tower = WithButton(("some text", 10, 10))
    result = read_picture(tower, Image.new("RGB", (200, 100)), COLON, pooled=False)
    assert len(tower.seen) == 2 and [row[0] for row in text_of(result.tokens, ALPHABET)] == ["some text"]
    (thing,) = np.flatnonzero(result.tokens.kind == THING)
    np.testing.assert_allclose(result.tokens.boxes[thing], (40, 48, 80, 64), atol=1e-3)
    assert result.features[thing, 0] == 7 * 25 + 7  # of its cell on the page as it is
    monkeypatch.setattr(reading, "LOWEST", 2.0)
    monkeypatch.setattr(reading, "HIGHEST", 4.0)
    monkeypatch.setattr(reading, "IDEAL", 3.0)  # print too large: widgets too are known on the page made smaller
    assert not (read_picture(WithButton(("some text", 10, 10)), Image.new("RGB", (200, 100)), COLON, pooled=False).tokens.kind == THING).any()


def test_further_looks_are_pooled_with_the_first(monkeypatch):
    monkeypatch.setattr(reading, "SECOND", 1.6)
    given = []
    monkeypatch.setattr(reading, "pool", lambda looks, offsets: given.append((looks, offsets)) or looks[1])
    tower = Printed(("some", 10, 10))
    read_picture(tower, Image.new("RGB", (200, 100)), COLON)
    assert tower.seen == [(200, 104)] and not given, "too little text for a second look"
    tower = Printed(("some text", 10, 10))
    result = read_picture(tower, Image.new("RGB", (200, 100)), COLON)
    assert tower.seen == [(200, 104), (320, 160), (264, 136)] and result.scale == 1.0
    looks, offsets = given[0]
    for look, factor in zip(looks, (1.0, 1.6, 1.3), strict=True):  # in pixels of the first
        np.testing.assert_allclose(look.boxes[look.boxes[:, 0].argmin()], np.array([10, 10, 15.4, 20]) / factor, atol=1e-2)
    assert offsets == [0, 13 * 25, 13 * 25 + 20 * 40]  # cells of each behind those of the looks before
    # the pooled look is the second one here, its cells not yet counted behind the first's: their features are the first look's
    assert sorted(result.features[:, 0][torch.from_numpy(result.tokens.kind == CHAR)].tolist()) == sorted(cell if cell < 325 else cell - 325 for cell in looks[1].cells.tolist())
    monkeypatch.setattr(reading, "MAX_READ_PIXELS", 20_000)  # no larger than that: smaller
    tower = Printed(("some text", 10, 10))
    read_picture(tower, Image.new("RGB", (200, 100)), COLON)
    assert tower.seen == [(200, 104), (128, 64), (160, 80)]


@pytest.mark.parametrize(("ideal", "third"), [(12.0, (264, 136)), (10.0, (160, 80))])
def test_the_third_look_brings_the_text_nearer_to_its_best_size(monkeypatch, ideal, third):
    monkeypatch.setattr(reading, "IDEAL", ideal)  # the printed text is 10 pixels high
    tower = Printed(("some text", 10, 10))
    read_picture(tower, Image.new("RGB", (200, 100)), COLON)
    assert tower.seen == [(200, 104), (232, 120), third]


def test_small_text_is_shown_larger_at_the_second_look_only(monkeypatch):
    for lowest, ideal, sizes in ((11.0, 12.0, [(200, 104), (240, 120)]), (11.0, 18.0, [(200, 104), (256, 128)]), (11.0, 30.0, [(200, 104), (600, 304), (696, 352)])):
        monkeypatch.setattr(reading, "LOWEST", lowest)  # the printed text is 10 pixels high
        monkeypatch.setattr(reading, "IDEAL", ideal)
        tower = Printed(("some text", 10, 10))
        read_picture(tower, Image.new("RGB", (200, 100)), COLON)
        assert tower.seen[: len(sizes)] == sizes and len(tower.seen) == len(sizes) + 1  # tiny text is enlarged at once


def test_a_few_characters_do_not_set_the_scale(monkeypatch):
    monkeypatch.setattr(reading, "LOWEST", 11.0)
    tower = Printed(("abcd", 10, 10))
    read_picture(tower, Image.new("RGB", (200, 100)), COLON)
    assert len(tower.seen) == 1


def test_better_scale():
    boxes = np.array([[0, 0, 5, h] for h in (5, 6, 7)], np.float32)
    assert better_scale(boxes, 0.5) == pytest.approx(1.0)  # 6 high at half the size
    assert better_scale(boxes * 2, 0.5) == 0.5
    assert better_scale(boxes * 100, 1.0) == pytest.approx(0.2)
    assert better_scale(boxes / 100, 1.0) == pytest.approx(3.0)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (3, 9000), (7, 5)])
def test_odd_sizes(size):
    result = read_picture(small_tower(), Image.new("RGB", size, "white"), COLON)
    assert result.size == size and result.features.shape == (len(result.tokens), 8)


def test_large_pages_are_scaled_down_and_boxes_come_back(monkeypatch):
    monkeypatch.setattr(reading, "MAX_READ_PIXELS", 20_000)
    tower = Printed(("some text", 10, 10))
    result = read_picture(tower, Image.new("RGB", (400, 200)), COLON, pooled=False)
    assert tower.seen == [(200, 104)] and result.scale == pytest.approx(0.5)
    np.testing.assert_allclose(result.tokens.boxes[0], (20, 20, 30.8, 40), atol=1e-3)


def test_narrow_pages_keep_their_shape_when_scaled(monkeypatch):
    """Rounding the short side must not change the scale of the long one."""
    monkeypatch.setattr(reading, "MAX_READ_PIXELS", 10_000)
    tower = Printed()
    read_picture(tower, Image.new("RGB", (3, 9000)), COLON)
    assert tower.seen == [(8, 5480)]  # 9000 * (10000 / 27000) ** 0.5 = 5477


class Inked(Printed):
    """Reads its lines on pages that are not white, and nothing on others."""

    def forward(self, pixels):
        height, width = pixels.shape[-2:]
        self.seen.append((len(pixels), width, height))
        parts = [written(height // 8, width // 8, *(self.lines if float(page.mean()) < 0.9 else ())) for page in pixels]
        return ReaderOutput(*(torch.cat([getattr(part, name) for part in parts]) for name in ReaderOutput.__dataclass_fields__))


def test_small_pages_of_a_size_go_through_the_tower_together(monkeypatch):
    tower = Inked(("some text", 10, 10))
    pictures = [Image.new("RGB", size, color) for size, color in (
        ((200, 100), "gray"), ((96, 64), "gray"), ((198, 97), "white"), ((200, 100), "gray"), ((200, 100), "white"), ((400, 300), "gray"),
    )]  # fmt: skip
    monkeypatch.setattr(reading, "TOGETHER", 56_000)
    together = read_pictures(tower, pictures, COLON)
    assert tower.seen[:5] == [(2, 200, 104), (2, 200, 104), (1, 96, 64), (1, 400, 304), (2, 232, 120)]  # five of a size, at most two at once
    alone = [read_picture(tower, picture, COLON) for picture in pictures]
    assert [text_of(found.tokens, ALPHABET) for found in together] == [text_of(found.tokens, ALPHABET) for found in alone]
    assert [len(found) > 0 for found in together] == [True, True, False, True, False, True]
    assert [found.size for found in together] == [picture.size for picture in pictures]
    assert read_pictures(tower, [], COLON) == []
