"""Safe loading: each format and mode comes out as upright RGB, and everything bad is a typed error."""

import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from tests.vision.pictures import ROBUSTNESS, corners, encoded, near, noise, quarters, robustness_rows
from vision import loading
from vision.errors import ImageError, ImageFormatError, ImageNotFoundError, ImageTooLargeError, ImageTruncatedError, VLMError
from vision.loading import FORMATS, LoadedImage, load_image, to_rgb

RED, GREEN, BLUE, YELLOW = QUARTERS = [(200, 60, 60), (60, 160, 80), (60, 80, 190), (230, 200, 60)]
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {}, "WEBP": {"lossless": True}, "GIF": {}}


def png_of(width, height, depth, colour, rows, **chunks):
    """A PNG written by hand: Pillow does not write 16-bit colour. `rows` are the raw bytes of each row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_listed_format(kind):
    loaded = load_image(encoded(quarters(), kind, **LOSSLESS.get(kind, {"quality": 95})))
    assert loaded.rgb.mode == "RGB" and loaded.rgb.size == (60, 44) and loaded.n_frames == 1 and loaded.warnings == ()
    assert near(corners(loaded.rgb), QUARTERS, 0 if kind in LOSSLESS else 12)


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "EPS", "SGI", "JPEG2000", "IM", "DDS", "ICNS", "MSP"])
def test_other_formats_are_refused(kind):
    picture = quarters(64, 64).convert("1") if kind == "MSP" else quarters(64, 64)
    with pytest.raises(ImageFormatError) as caught:
        load_image(encoded(picture, kind), name="odd")
    assert caught.value.source == "odd" and caught.value.remedy


def test_source_kinds_agree(tmp_path):
    path = tmp_path / "a picture ü.dat"
    path.write_bytes(encoded(quarters(), "PNG"))
    wanted = np.asarray(quarters())
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes()), quarters(), wanted):
        assert np.array_equal(np.asarray(load_image(source).rgb), wanted)
    loaded = load_image(path)
    assert loaded.source == str(path) and load_image(path, name="it").source == "it"
    assert load_image(loaded) is loaded


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind, orientation):
    """The picture is stored so that its tag turns it upright."""
    undo = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")
    stored = quarters() if orientation == 1 else quarters().transpose(Image.Transpose[undo[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    data = encoded(stored, kind, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        loaded = load_image(source)
        assert loaded.rgb.size == (60, 44)
        assert near(corners(loaded.rgb), QUARTERS, 14)
        assert 0x0112 not in loaded.rgb.getexif() or loaded.rgb.getexif()[0x0112] == 1  # nobody turns it again


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(quarters(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\x01")
    loaded = load_image(data)
    assert near(corners(loaded.rgb), QUARTERS, 14)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "La", "RGBa"])
def test_every_mode_becomes_rgb(mode):
    source = quarters()
    if mode == "LAB":
        picture = ImageCms.applyTransform(source, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"))
    elif mode in ("La", "RGBa"):
        picture = source.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode == "PA":
        picture = source.convert("P").convert("PA")
    else:
        picture = source.convert(mode)
    loaded = load_image(picture)
    assert loaded.rgb.mode == "RGB" and loaded.rgb.size == source.size
    if mode == "1":
        assert set(np.unique(np.asarray(loaded.rgb))) <= {0, 255}
    elif mode in ("L", "LA", "La"):
        assert near(corners(loaded.rgb), corners(source.convert("L").convert("RGB")), 1)
    elif mode in ("P", "PA"):
        assert near(corners(loaded.rgb), QUARTERS, 48)  # the web palette
    else:
        assert near(corners(loaded.rgb), QUARTERS, 6)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_on_white(kind):
    picture = quarters().convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 22, 30, 44))
    picture.paste((0, 0, 0, 128), (30, 22, 60, 44))
    loaded = load_image(encoded(picture, kind, **LOSSLESS[kind]))
    assert near(corners(loaded.rgb), [RED, GREEN, (255, 255, 255), (127, 127, 127)], 1)


def test_transparent_palette_entry_and_grey_level():
    palette = quarters().quantize(4)
    hole = palette.getpixel((5, 40))
    table = bytes(0 if i == hole else 255 for i in range(4))
    for kind, transparency in (("PNG", hole), ("GIF", hole), ("PNG", table)):
        loaded = load_image(encoded(palette, kind, transparency=transparency))
        assert near(corners(loaded.rgb), [RED, GREEN, (255, 255, 255), YELLOW], 4)
    grey = quarters().convert("L")
    level = grey.getpixel((5, 40))
    wanted = [(grey.getpixel(xy),) * 3 for xy in ((7, 5), (52, 5))] + [(255,) * 3, (grey.getpixel((52, 38)),) * 3]
    assert near(corners(load_image(encoded(grey, "PNG", transparency=level)).rgb), wanted, 0)


def test_sixteen_bit_grey_keeps_its_brightness():
    levels = np.repeat(np.array([[0, 200, 8000, 32768, 65535]], np.uint16), 4, axis=0)
    wanted = [v // 256 for v in (0, 200, 8000, 32768, 65535)]
    for kind in ("PNG", "TIFF", "PPM"):
        data = encoded(Image.fromarray(levels), kind)
        assert np.abs(np.asarray(load_image(data).rgb)[0, :, 0].astype(int) - wanted).max() <= 1, kind
    dark = encoded(Image.fromarray((levels // 300).astype(np.uint16)), "PPM")  # no level above 255, still of 65535
    assert np.asarray(load_image(dark).rgb).max() <= 1
    assert np.array_equal(np.asarray(load_image(levels).rgb)[0, :, 0], wanted)
    hole = png_of(2, 1, 16, 0, [struct.pack(">2H", 1000, 40000)], tRNS=struct.pack(">H", 1000))
    assert np.abs(np.asarray(load_image(hole).rgb)[0, :, 0].astype(int) - [255, 156]).max() <= 1


def test_sixteen_bit_colour_and_its_transparent_colour():
    pixels = struct.pack(">6H", 65535, 128, 0, 1000, 40000, 30000)
    plain = np.asarray(load_image(png_of(2, 1, 16, 2, [pixels])).rgb)[0].astype(int)
    assert np.abs(plain - [[255, 0, 0], [3, 156, 117]]).max() <= 1
    holed = np.asarray(load_image(png_of(2, 1, 16, 2, [pixels], tRNS=struct.pack(">3H", 1000, 40000, 30000))).rgb)[0].astype(int)
    assert np.abs(holed - [[255, 0, 0], [255, 255, 255]]).max() <= 1
    alpha = struct.pack(">8H", 65535, 0, 0, 65535, 0, 0, 0, 0)
    assert np.array_equal(np.asarray(load_image(png_of(2, 1, 16, 6, [alpha])).rgb)[0], [[255, 0, 0], [255, 255, 255]])


def test_numbers_of_other_widths():
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(np.array([[0, 100, 255]], np.int32))))[0, :, 1], [0, 100, 255])
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(np.array([[0, 2**30, 2**31 - 1]], np.int32))))[0, :, 1], [0, 127, 255])
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(np.array([[0, 0.5, 1]], np.float32))))[0, :, 1], [0, 128, 255])
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(np.array([[0, 100, np.nan, 255]], np.float32))))[0, :, 1], [0, 100, 0, 255])


def test_cmyk_jpeg_is_not_inverted():
    assert near(corners(load_image(encoded(quarters().convert("CMYK"), "JPEG", quality=95)).rgb), QUARTERS, 14)


@pytest.mark.parametrize(
    "array",
    [
        np.full((3, 4), 128, np.uint8), np.full((3, 4, 1), 128, np.uint8), np.full((3, 4, 3), 128, np.uint8),
        np.full((3, 4), 128 * 256, np.uint16), np.full((3, 4, 3), 128 / 255, np.float32), np.full((3, 4), 128 / 255, np.float16),
    ],
)  # fmt: skip
def test_arrays(array):
    assert np.array_equal(np.asarray(load_image(array).rgb), np.full((3, 4, 3), 128))


def test_bool_and_alpha_arrays():
    assert np.array_equal(np.asarray(load_image(np.eye(2, dtype=bool)).rgb)[..., 0], [[255, 0], [0, 255]])
    assert np.array_equal(np.asarray(load_image(np.zeros((2, 2, 4), np.uint8)).rgb), np.full((2, 2, 3), 255))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4, 3), np.uint8), np.zeros((4,), np.uint8), np.zeros((3, 8, 8), np.uint8), np.zeros((4, 4), np.int64),
        np.full((2, 2), 2.0), np.full((2, 2), -0.5), np.full((2, 2), np.nan), np.zeros((2, 2), complex), np.zeros((2, 2), object),
    ],
)  # fmt: skip
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(ImageFormatError):
        load_image(array)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], object()])
def test_things_that_are_no_pictures(source):
    with pytest.raises(ImageFormatError, match=type(source).__name__):
        load_image(source)


def test_the_callers_picture_is_left_alone():
    picture = quarters().convert("RGBA")
    exif = picture.getexif()
    exif[0x0112] = 6
    before = picture.tobytes()
    load_image(picture)
    assert picture.size == (60, 44) and picture.tobytes() == before and picture.getexif()[0x0112] == 6


def test_the_limit_is_checked_before_decoding(monkeypatch):
    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    for kind in FORMATS:
        if kind in ("GIF", "WEBP"):  # their plugins replace load; the next test covers all kinds by size
            continue
        with pytest.raises(ImageTooLargeError, match="60 x 44 = 2640 pixels, the limit is 2639"):
            load_image(encoded(quarters(), kind), max_pixels=2639)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_limit(kind):
    data = encoded(quarters(), kind)
    with pytest.raises(ImageTooLargeError):
        load_image(data, max_pixels=2639)
    assert load_image(data, max_pixels=2640).rgb.size == (60, 44)
    with pytest.raises(ImageTooLargeError):
        load_image(quarters(), max_pixels=2639)
    with pytest.raises(ImageTooLargeError):
        load_image(np.asarray(quarters()), max_pixels=2639)


def test_decompression_bombs_are_refused_by_their_header():
    """A header that promises 10^8, 2.5 * 10^9 or 4 * 10^18 pixels, and next to no data."""
    for side in (12_000, 50_000, 2**31 - 1):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageTooLargeError):
                load_image(png_of(side, side, 8, 2, [b"\0" * 10]))


def test_a_bomb_of_text_in_the_header():
    """Compressed text chunks that unfold to hundreds of megabytes."""
    data = png_of(2, 2, 8, 0, [b"\0\0", b"\0\0"], zTXt=b"a\0\0" + zlib.compress(b"\0" * (1 << 28)))
    with pytest.raises(ImageError):
        load_image(data)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (1, 3000)])
def test_odd_sizes(size):
    assert load_image(encoded(Image.new("RGB", size, RED), "PNG")).rgb.size == size


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_several_frames_warn(kind):
    pages = [quarters(), Image.new("RGB", (60, 44)), Image.new("RGB", (60, 44), "white")]
    loaded = load_image(encoded(pages[0], kind, save_all=True, append_images=pages[1:], **({"lossless": True} if kind == "WEBP" else {})))
    assert loaded.n_frames == 3
    assert len(loaded.warnings) == 1 and "3 frames or pages" in loaded.warnings[0] and "first" in loaded.warnings[0]
    assert near(corners(loaded.rgb), QUARTERS, 4)


def test_forty_pages():
    pages = [Image.new("L", (30 + i, 20), i) for i in range(40)]
    loaded = load_image(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert loaded.n_frames == 40 and loaded.rgb.size == (30, 20)


def test_a_picture_object_counts_at_its_current_frame(tmp_path):
    path = tmp_path / "pages.tiff"
    path.write_bytes(encoded(Image.new("RGB", (30, 20)), "TIFF", save_all=True, append_images=[quarters()]))
    with Image.open(path) as picture:
        picture.seek(1)
        loaded = load_image(picture)
        assert picture.tell() == 1
    assert loaded.rgb.size == (60, 44) and near(corners(loaded.rgb), QUARTERS, 0)
    assert "the current one" in loaded.warnings[0] and loaded.source == str(path)


def test_camera_jpegs_with_a_preview_are_one_picture():
    loaded = load_image(encoded(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95))
    assert loaded.n_frames == 1 and loaded.warnings == () and near(corners(loaded.rgb), QUARTERS, 14)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.97])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"quality": 90, "progressive": True}), ("WEBP", {"quality": 80}),
        ("WEBP", {"lossless": True}), ("GIF", {}), ("GIF", {"interlace": 0}), ("BMP", {}), ("PPM", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"}), ("TIFF", {"compression": "jpeg"}),
    ],
)  # fmt: skip
def test_cut_off_files_are_refused(kind, options, share):
    data = encoded(noise(96, 80), kind, **options)
    with pytest.raises((ImageTruncatedError, ImageFormatError)) as caught:
        load_image(data[: int(len(data) * share)], name="cut")
    assert str(caught.value).startswith("cut: ") and caught.value.remedy


def test_a_lenient_process_is_told(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "cut off would go unnoticed" in load_image(encoded(quarters(), "PNG")).warnings[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_a_typed_error_or_a_picture(kind):
    """Whatever bytes change, nothing but a picture or a typed error comes out."""
    data = encoded(quarters(), kind)
    rng = np.random.default_rng(0)
    failed = []
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.integers(0, min(len(broken), 400), rng.integers(1, 6)):
            broken[place] = int(rng.integers(0, 256))
        try:
            assert load_image(bytes(broken), max_pixels=1_000_000).rgb.mode == "RGB"
        except ImageError as error:
            failed.append(error)
    assert failed and all(error.remedy and error.source == "bytes" for error in failed)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"%PDF-1.7 ...", "PDF"), (b"PK\x03\x04 ...", "zip"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"), (b"\n <SVG>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "SVG"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"), (b"\0\0\0\x18ftypisom....", "video"),
        (b"plain text", "not an image"), (b"version https://git-lfs.github.com/spec/v1\n", "LFS"), (b"\x89PNG\r\n", "not an image"),
    ],
)  # fmt: skip
def test_other_files_are_named(data, word, monkeypatch):
    monkeypatch.setattr(loading, "_heif_plugin", lambda: False)
    with pytest.raises(ImageFormatError, match=word) as caught:
        load_image(data)
    assert caught.value.remedy


def test_paths_that_are_no_pictures(tmp_path):
    with pytest.raises(ImageNotFoundError, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ImageFormatError, match="folder"):
        load_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageTruncatedError, match="empty"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(ImageTruncatedError, match="empty"):
        load_image(b"")
    for odd in ("a\0b", "x" * 5000, ""):
        with pytest.raises(ImageError) as caught:
            load_image(odd)
        assert len(str(caught.value)) < 700
    with pytest.raises(ImageNotFoundError, match="network"):
        load_image("https://example.org/a.png")
    assert issubclass(ImageError, VLMError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    done = []

    def load():
        try:
            load_image(tmp_path / "pipe.png")
        except ImageFormatError as error:
            done.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(20)
    assert done and "regular file" in str(done[0])


def test_files_are_closed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(quarters(), "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        loaded = load_image(path)
        path.unlink()
        assert loaded.rgb.copy().size == (60, 44)


ABSENT = pytest.param(None, marks=pytest.mark.skip(reason=f"no data pack at {ROBUSTNESS}"), id="pack")


@pytest.mark.parametrize("row", [pytest.param(row, id=row["id"]) for row in robustness_rows()] or [ABSENT])
def test_robustness_pack(row, monkeypatch):
    monkeypatch.setattr(loading, "_heif_plugin", lambda: False)
    source = ROBUSTNESS / row["file"]
    if row.get("needs"):  # the optional decoders are not part of loading: one error that names the kind
        with pytest.raises(ImageFormatError, match={"pdf": "PDF", "heif": "HEIF"}[row["needs"]]):
            load_image(source)
        return
    if "ok" not in row["expect"]["status"]:
        with pytest.raises(ImageError) as caught:
            load_image(source)
        assert caught.value.source == str(source) and caught.value.remedy
        return
    if "decoded" not in row:  # allowed to be drawn, or refused
        with pytest.raises(ImageFormatError, match="SVG"):
            load_image(source)
        return
    loaded = load_image(source)
    assert isinstance(loaded, LoadedImage)
    assert loaded.n_frames == row["decoded"]["frames"] and list(loaded.rgb.size) == row["decoded"]["size"]
    assert bool(loaded.warnings) == (loaded.n_frames > 1)
    for probe in row["decoded"]["probes"]:
        if probe["frame"] == 0:
            pixel = loaded.rgb.getpixel(tuple(probe["xy"]))
            assert max(abs(a - b) for a, b in zip(pixel, probe["rgb"], strict=True)) <= probe["tol"]
