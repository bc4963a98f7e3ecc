"""Batch jobs: one row for each page, in order, whatever happens to files, decoders and memory."""

import io
import json
import sys
import time
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from PIL import Image

from app import extract_batch, extract_iter
from app.batch import exit_code, page_range, shard_of
from app.decode_worker import Worker
from app.journal import read_rows
from app.pages import PageOptions
from tests.app.support import SCHEMA, encoded, job_of, load, noise, pdf, rows_of, tarred, tiff, zipped
from vlm.errors import OptionError, SchemaError


@pytest.fixture(scope="module")
def model(tiny, exact):
    return load(tiny)


@pytest.fixture
def mixed(tmp_path):
    """A folder of every kind of file: (folder, pages by source)."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(1))
    (folder / "deep" / "b.jpg").write_bytes(encoded(2, "JPEG"))
    tiff(folder / "c.tiff", 3, 10)
    zipped(folder / "d.zip", {"x/1.png": encoded(20), "notes.txt": b"no", "x/2.gif": encoded(21, "GIF"), "bad.png": b"no picture"})
    tarred(folder / "e.tgz", {"1.webp": encoded(30, "WEBP"), "__MACOSX/1.png": encoded(31), "in.zip": b"PK"})
    (folder / "f.jpg").touch()
    (folder / "g.txt").write_text("passed over")
    pages = {"a.png": 1, "c.tiff": 3, "d.zip!x/1.png": 1, "d.zip!x/2.gif": 1, "d.zip!bad.png": None, "deep/b.jpg": 1, "e.tgz!1.webp": 1, "e.tgz!in.zip": None, "f.jpg": None}
    return folder, {str(folder / name): count for name, count in pages.items()}


def test_one_row_for_each_page_of_every_kind_of_file(model, mixed):
    folder, pages = mixed
    job = job_of(model, [folder])
    rows = rows_of(job)
    assert [(r["source"], r["page"], r["n_pages"]) for r in rows] == [
        (source, page, count) for source, count in pages.items() for page in (range(1, count + 1) if count else [None])
    ]
    assert [r["status"] == "error" for r in rows] == [pages[r["source"]] is None for r in rows]
    assert len({r["id"] for r in rows}) == len(rows)
    for row in rows:
        if row["status"] != "error":
            jsonschema.validate(row["data"], SCHEMA)
            assert set(row["fields"]) == {"/who", "/n"}
    assert {r["error"]["type"] for r in rows if r["error"]} == {"ImageFormatError", "ImageTruncatedError"}
    assert sorted(p.split("/in/")[-1] for p in job.summary.passed_over) == ["d.zip!notes.txt", "e.tgz!__MACOSX/1.png"]
    assert job.summary.pages == job.summary.rows == len(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_do_not_depend_on_batches_and_threads(model, mixed, monkeypatch, batch_size, workers):
    expected = [(r["id"], r["data"]) for r in rows_of(job_of(model, [mixed[0]]))]
    monkeypatch.setattr(model, "batch_size", batch_size)
    assert [(r["id"], r["data"]) for r in rows_of(job_of(model, [mixed[0]], workers=workers, memory=1))] == expected


def test_ids_are_made_of_content_page_request_and_model(model, tmp_path, tiny):
    for name, seed in (("a.png", 1), ("same.png", 1), ("b.png", 2)):
        (tmp_path / name).write_bytes(encoded(seed))
    a, b, same = rows_of(job_of(model, [tmp_path]))
    assert a["id"] == same["id"] != b["id"] and a["source"] != same["source"]
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "moved" / "z.png")
    assert rows_of(job_of(model, [tmp_path / "moved"]))[0]["id"] == a["id"]
    assert rows_of(job_of(model, [tmp_path / "moved"], schema={"who": "string"}))[0]["id"] != a["id"]
    from tests.tiny import save_tiny

    other = load(save_tiny(tmp_path / "other", seed=5))
    assert rows_of(job_of(other, [tmp_path / "moved"]))[0]["id"] != a["id"]
    assert load(tiny).fingerprint == model.fingerprint != other.fingerprint


def test_pages_of_pdf(model, tmp_path):
    pytest.importorskip("pypdfium2")
    path = pdf(tmp_path / "a.pdf", 4)
    rows = rows_of(job_of(model, [path], pages=page_range("2,4-"), dpi=40.0))
    assert [(r["page"], r["n_pages"], r["status"]) for r in rows] == [(2, 4, "ok"), (4, 4, "ok")]
    (row,) = rows_of(job_of(model, [path], pages=page_range("7")))
    assert row["status"] == "skipped" and "none of them is among 7" in row["error"]["message"] and row["page"] is None


def test_what_has_no_pages_is_skipped_and_said(model, tmp_path):
    (row,) = rows_of(job_of(model, [zipped(tmp_path / "a.zip", {"a.txt": b"words"})]))
    assert row["status"] == "skipped" and "has no pages" in row["error"]["message"]


def test_pictures_in_memory_and_bytes(model):
    images = [noise(1), np.asarray(noise(2)), encoded(3), b"no picture", Image.new("I;16", (30, 20))]
    rows = list(extract_iter(images, SCHEMA, model=model))
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "error", "ok"] and [r["source"] for r in rows][:2] == ["image 0", "image 1"]
    assert len(list(extract_iter(noise(1), SCHEMA, model=model))) == 1


def test_wrong_requests_raise_at_once(model):
    with pytest.raises(SchemaError):
        extract_iter([noise()], "no such schema", model=model)
    with pytest.raises(OptionError):
        extract_iter([noise()], SCHEMA, model=model, pages="3-1")
    with pytest.raises(OptionError, match="gama"):
        list(extract_iter([noise()], SCHEMA, model=model, gama=1))


@pytest.mark.parametrize("text", ["0", "3-1", "a", "1,,2", "-3"])
def test_page_ranges_that_are_none(text):
    with pytest.raises(OptionError):
        page_range(text)


def test_page_ranges():
    wanted = page_range("1-3,7,10-")
    assert [p for p in range(1, 13) if p in wanted] == [1, 2, 3, 7, 10, 11, 12]
    assert page_range("all") is page_range(None) is None


HANG = """
import sys, time
from app import decode_worker
from vision.documents import PictureDocument

def page(self, index, plain=PictureDocument.page):
    width = plain(self, index).rgb.width
    if width == 41: time.sleep(1000)
    if width == 42:
        while True: pass
    if width == 43: import os; os.abort()
    if width == 44: raise MemoryError
    if width == 45: raise ZeroDivisionError('oh')
    print('noise on stdout')
    return plain(self, index)

PictureDocument.page = page
sys.exit(decode_worker.main())
"""


@pytest.fixture
def hanging(monkeypatch):
    """Decoders that hang on pictures 41 and 42 pixels wide, and fail on others."""
    import subprocess

    from app import decoders

    monkeypatch.setattr(decoders.Decoder, "_idle", [])
    real = subprocess.Popen
    monkeypatch.setattr(decoders.subprocess, "Popen", lambda command, **how: real([sys.executable, "-c", HANG], **how))
    yield
    for process in decoders.Decoder._idle:
        process.kill()


def test_a_page_that_hangs_or_crashes_is_an_error_row(model, tmp_path, hanging):
    widths = [40, 41, 40, 42, 43, 44, 45, 40]
    pictures = [noise(i, (width, 24)) for i, width in enumerate(widths)]
    pictures[0].save(tmp_path / "a.tiff", save_all=True, append_images=pictures[1:])
    for i, width in enumerate((43, 40)):
        (tmp_path / f"b{i}.png").write_bytes(encoded(i, size=(width, 24)))
    start = time.monotonic()
    rows = rows_of(job_of(model, [tmp_path], timeout=2.0, workers=2))
    assert time.monotonic() - start < 60
    kinds = [r["error"] and (r["error"]["type"], r["error"]["stage"]) for r in rows]
    hung, crashed = ("DecodeTimeoutError", "load"), ("ImageTruncatedError", "load")
    assert kinds == [None, hung, None, hung, crashed, ("ImageTooLargeError", "load"), ("RuntimeError", "internal"), None, crashed, None]
    assert [r["page"] for r in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 1, 1]
    assert "crashed its decoder" in rows[4]["error"]["message"]


def test_without_any_decoder_every_file_still_has_its_row(model, mixed, monkeypatch):
    from app import decoders

    def none(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(decoders.Decoder, "_idle", [])
    monkeypatch.setattr(decoders.subprocess, "Popen", none)
    rows = rows_of(job_of(model, [mixed[0]]))
    assert {r["error"]["type"] for r in rows} == {"DecodeError"} and {r["source"] for r in rows} == {str(p) for p in mixed[0].rglob("*.*") if p.suffix != ".txt"}
    assert len(rows) == 6 + 2  # an archive is tried twice: it may be its first file
    monkeypatch.setattr(decoders.subprocess, "Popen", lambda *_, **__: 1 / 0)
    rows = rows_of(job_of(model, [mixed[0]]))
    assert {(r["error"]["type"], r["error"]["stage"]) for r in rows} == {("ZeroDivisionError", "internal")} and len(rows) == 6


def test_the_worker_goes_on_behind_files_that_cannot_be_opened(tmp_path):
    path = zipped(tmp_path / "a.zip", {"1.png": b"bad", "2.png": encoded(1)})
    worker = Worker()
    options = PageOptions().opening
    assert "error" in worker.open(str(path), "a.zip", 0, options)
    assert worker.next()["n_pages"] == 1
    assert worker.next() == {"end": []}
    assert worker.open(str(path), "a.zip", 1, options)["source"] == "a.zip!2.png"
    assert "error" in worker.open(str(tmp_path / "none.zip"), "none.zip", 0, options)


def out_of_memory_above(model, monkeypatch, rows, error):
    """Make prompts of more than `rows` rows fail; the sizes of batches that were tried."""
    sizes, real = [], model.engine.denoiser

    def denoiser(prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > rows:
            raise error
        return real(prompts, *rest)

    monkeypatch.setattr(model.engine, "denoiser", denoiser)
    return sizes


def test_a_batch_that_does_not_fit_is_halved_and_later_ones_begin_small(model, monkeypatch):
    images = [noise(i) for i in range(40)]
    expected = [r["data"] for r in extract_iter(images, SCHEMA, model=model)]
    monkeypatch.setattr(model, "batch_size", 8)
    sizes = out_of_memory_above(model, monkeypatch, 2, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert [r["data"] for r in extract_iter(images, SCHEMA, model=model)] == expected
    assert sizes[:3] == [8, 4, 2] and sizes.count(8) == 1 and max(sizes[-10:]) <= 2


def test_a_page_that_never_fits_is_an_error_row(model, monkeypatch):
    out_of_memory_above(model, monkeypatch, 0, MemoryError())
    rows = list(extract_iter([noise(i) for i in range(3)], SCHEMA, model=model))
    assert [r["error"]["type"] for r in rows] == ["ImageTooLargeError"] * 3


def test_a_page_that_breaks_its_batch_does_not_take_the_others_along(model, monkeypatch):
    real = model.engine.denoiser

    def denoiser(prompts, pictures, *rest):
        if any(p[0].size == (41, 24) for p in pictures):
            raise ZeroDivisionError("oh")
        return real(prompts, pictures, *rest)

    monkeypatch.setattr(model.engine, "denoiser", denoiser)
    monkeypatch.setattr(model, "batch_size", 4)
    rows = list(extract_iter([noise(i, (41 if i == 2 else 40, 24)) for i in range(6)], SCHEMA, model=model))
    assert [r["status"] for r in rows] == ["ok", "ok", "error", "ok", "ok", "ok"]
    assert rows[2]["error"] == {"type": "ZeroDivisionError", "message": "image 2: oh", "stage": "internal"}


def test_stop_at_the_first_error(model, tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02d}.png").write_bytes(encoded(i) if i != 3 else b"bad")
    job = job_of(model, [tmp_path], stop_at_error=True)
    rows = rows_of(job)
    assert "error" in [r["status"] for r in rows] and len(rows) < 30 and job.summary.stopped
    assert job.summary.pages == len(rows)


def test_shards_divide_the_pages(model, mixed):
    whole = {(r["id"], r["source"]) for r in rows_of(job_of(model, [mixed[0]]))}
    parts = [{(r["id"], r["source"]) for r in rows_of(job_of(model, [mixed[0]], shard=(i, 3)))} for i in (1, 2, 3)]
    assert set.union(*parts) == whole and sum(map(len, parts)) == len(whole)


def test_shards_from_text_and_launchers(monkeypatch):
    assert shard_of("2/8") == (2, 8) and shard_of(None) is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert shard_of("auto") == (2, 4)
    monkeypatch.delenv("RANK")
    for text in ("auto", "0/4", "5/4", "2", "a/b"):
        with pytest.raises(OptionError):
            shard_of(text)


def test_all_bad_files_have_rows_before_the_last_is_seen(model, tmp_path):
    """A long stretch of errors is given as it comes, not kept until a good page follows."""
    for i in range(300):
        (tmp_path / f"{i:03d}.png").touch()
    job = job_of(model, [tmp_path])
    stream = job.run()
    assert next(stream).row["status"] == "error" and job.summary.pages < 200
    stream.close()


def test_extract_batch_goes_on_where_it_ended(model, tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    out = tmp_path / "rows.jsonl"
    first = extract_batch([tmp_path / "0.png", tmp_path / "1.png"], SCHEMA, out, model=model)
    second = extract_batch([tmp_path], SCHEMA, out, model=model)
    assert (first.rows, first.done) == (2, 0) and (second.rows, second.done, second.pages) == (3, 2, 5)
    assert [json.loads(line)["source"][-5:] for line in out.read_text().splitlines()] == [f"{i}.png" for i in range(5)]
    assert second.exit_code == 0 and len(list(read_rows(out))) == 5


def test_exit_codes():
    from collections import Counter

    assert exit_code(Counter(["ok", "forced", "partial", "skipped"])) == 0
    assert exit_code(Counter(["error", "error"])) == 1
    assert exit_code(Counter(["ok", "error"])) == 3


def test_p_valid_is_taken_over_where_the_decoder_tells_it():
    from app.rows import field_of

    info = SimpleNamespace(confidence=0.5, p_valid=0.25, forced=False, box=None)
    assert field_of(info) == {"confidence": 0.5, "p_valid": 0.25, "forced": False, "box": None}


def test_pictures_of_wide_and_odd_modes_by_file(model, tmp_path):
    noise(1).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(tmp_path / "deep.png")
    noise(2).convert("P").save(tmp_path / "palette.png", transparency=0)
    noise(3).convert("RGBA").save(tmp_path / "alpha.png")
    turned = noise(4).getexif()
    turned[0x0112] = 6
    data = io.BytesIO()
    noise(4).save(data, "JPEG", exif=turned)
    (tmp_path / "turned.jpg").write_bytes(data.getvalue())
    assert {r["status"] for r in rows_of(job_of(model, [tmp_path]))} == {"ok"}
