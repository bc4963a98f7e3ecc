"""A thousand damaged files through a batch job: has each its row, and does any of them stop the run?

``python -m benchmarks.batch_fuzz --files 1000``

Good pages (PNG, JPEG, GIF, WebP, BMP, TIFF, PDF, HEIC where the plugin is installed, zip, tar) are damaged by a seeded random: bits
flipped, bytes cut off, zeroed, doubled or thrown in, numbers in the header made huge, files glued together. Every file holds one
page, so that it must give one row; a file whose damage makes several pages of it counts by its pages.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from app.batch import Job
from app.inputs import Input
from app.pages import PageOptions
from app.requests import Request
from benchmarks.batch_pages import SCHEMA, encoded, page
from benchmarks.common import arguments, load, report


def seeds() -> dict[str, bytes]:
    """A good file of each kind, by its suffix."""
    found = {kind.lower(): encoded(i, kind) for i, kind in enumerate(("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PDF"))}
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        found["heic"] = encoded(7, "HEIF")
    except ImportError:
        pass
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("page.png", found["png"])
    found["zip"] = packed.getvalue()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("page.jpg")
        info.size = len(found["jpeg"])
        tar.addfile(info, io.BytesIO(found["jpeg"]))
    found["tgz"] = packed.getvalue()
    packed = io.BytesIO()
    page(9).convert("L").save(packed, "TIFF", compression="tiff_lzw")
    found["tif"] = packed.getvalue()
    return found


def damage(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to three kinds of damage."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, len(found)))
        kind = rng.randrange(8)
        if kind == 0:
            for _ in range(rng.randint(1, 20)):
                found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            found[at : at + 64] = bytes(len(found[at : at + 64]))
        elif kind == 3:
            found[at:at] = found[at : at + rng.randrange(1, 200)]
        elif kind == 4:
            found[at:at] = rng.randbytes(rng.randrange(1, 100))
        elif kind == 5:
            place = rng.randrange(max(1, min(64, len(found))))  # sizes stand in headers
            found[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00", b"\x00\x00\x00\x00"))
        elif kind == 6:
            found += rng.choice(others)[: rng.randrange(1, 2000)]
        else:
            found[:at] = rng.choice(others)[:at]
        if not found:
            found = bytearray(b"\0")
    return bytes(found)


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a page")
    args: argparse.Namespace = parser.parse_args()
    model = load(args)
    model.batch_size = 16
    rng = random.Random(args.seed)
    good = seeds()
    kinds = list(good)
    with TemporaryDirectory() as place:
        files = []
        for i in range(args.files):
            kind = kinds[i % len(kinds)]
            path = Path(place) / f"{i:04d}.{kind}"
            path.write_bytes(damage(good[kind], rng, list(good.values())))
            files.append(Input(str(path)))
        job = Job(model, Request.extract(SCHEMA), files, PageOptions(max_pixels=4_000_000, timeout=args.timeout))
        start = last = time.perf_counter()
        slowest, rows = 0.0, []
        for outcome in job.run():
            now = time.perf_counter()
            slowest, last = max(slowest, now - last), now
            rows.append(outcome.row)
            if len(rows) % 100 == 0:
                print(f"{len(rows)} rows, {now - start:.0f} s", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - start
    per_file = Counter(row["source"].partition("!")[0] for row in rows)
    pages = Counter((row["source"], row["page"]) for row in rows)
    errors = Counter(row["error"]["type"] for row in rows if row["error"])
    internal = [row["error"] for row in rows if row["error"] and row["error"]["stage"] == "internal"]
    report(args, model, {
        "files": args.files, "rows": len(rows), "files without a row": sum(per_file[f.path] == 0 for f in files),
        "pages with two rows": sum(n > 1 for n in pages.values()), "files of several rows": sum(n > 1 for n in per_file.values()),
        "statuses": dict(job.summary.statuses), "errors": dict(errors), "errors nobody foresaw": len(internal), "examples of those": internal[:3],
        "seconds": seconds, "longest silence between rows, seconds": slowest,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
