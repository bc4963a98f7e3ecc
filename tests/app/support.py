"""What tests of batch jobs share."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from app.batch import Job
from app.inputs import expand
from app.journal import Journal, read_rows
from app.pages import PageOptions
from app.requests import Request
from vlm.model import DiffusionVLM

SCHEMA = {
    "type": "object",
    "properties": {"who": {"type": ["string", "null"], "maxLength": 4}, "n": {"type": ["integer", "null"], "minimum": 0, "maximum": 99}},
    "required": ["who", "n"],
}


def noise(seed=0, size=(40, 24)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(seed=0, kind="PNG", size=(40, 24)):
    data = io.BytesIO()
    noise(seed, size).save(data, kind)
    return data.getvalue()


def tiff(path, pages, first=0):
    pictures = [noise(first + i) for i in range(pages)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def pdf(path, pages, first=0):
    pictures = [noise(first + i, (120, 80)) for i in range(pages)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def load(folder, batch_size=2):
    model = DiffusionVLM.from_pretrained(folder)
    model.batch_size = batch_size
    return model


def job_of(model, inputs, schema=SCHEMA, shard=None, stop_at_error=False, **options):
    return Job(model, Request.extract(schema), expand([str(i) if hasattr(i, "parts") else i for i in inputs]).files, PageOptions(**options), shard=shard, stop_at_error=stop_at_error)


def rows_of(job, journal=None):
    return [outcome.row for outcome in job.run(journal)]


def write(job, path, **how):
    """Run a job into a journal; its rows."""
    with Journal(path, job.versions, **how) as journal:
        for _ in job.run(journal):
            pass
    return list(read_rows(path))
