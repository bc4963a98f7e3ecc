"""The batch job as a stage of somebody else's engine: Ray Data, Spark, or whatever hands over columns.

Nothing of these engines is imported here but Ray, and that only by :func:`extract_dataset`. See docs/batch.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from app.batch import Job
from app.inputs import Input
from app.pages import PageOptions
from app.requests import Request
from vision.errors import DependencyError
from vlm.errors import OptionError

#: Columns that come out. Those of JSON are text, so that every block has the same types; page and n_pages are 0 where unknown.
NUMBERS, TEXTS, JSON = ("page", "n_pages"), ("id", "source", "status"), ("data", "fields", "error", "usage", "versions", "warnings")


class PageStage:
    """Columns of files in, columns of rows out: at least one row for each file, one for each of its pages.

    Columns in: ``path``, and ``bytes`` unless the paths can be opened where the stage runs.

    Args:
        schema: in any form that :func:`app.schemas.find_schema` knows.
        model: checkpoint folder or Hub id; None: pocket. device: for it.
        batch_size: pages computed together. threads: of torch; engines run several stages on a machine, so 1 unless told.
        options: how files are opened. decoding: preset, seed and options of the preset.
    """

    def __init__(
        self, schema: Any, *, model: str | None = None, device: str | None = None, batch_size: int = 8, threads: int = 1,
        options: PageOptions | None = None, **decoding: Any,
    ) -> None:  # fmt: skip
        import torch

        from vlm.model import DiffusionVLM

        torch.set_num_threads(threads)
        self.options = options or PageOptions(workers=1)
        self.request = Request.extract(schema, decoding, self.options.dpi)
        self.model = DiffusionVLM.from_pretrained(model, device=device)
        self.model.batch_size = batch_size

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """One batch of columns."""
        if "bytes" not in batch and "path" not in batch:
            raise OptionError(f"the columns are {', '.join(batch)}", source="stage", remedy="give a column path, a column bytes, or both")
        count = len(batch["bytes"] if "bytes" in batch else batch["path"])
        paths = [str(p) for p in batch["path"]] if "path" in batch else [f"file {i}" for i in range(count)]
        contents = [bytes(b) for b in batch["bytes"]] if "bytes" in batch else [None] * count
        files = [Input(path, image=content) for path, content in zip(paths, contents, strict=True)]
        rows = [outcome.row for outcome in Job(self.model, self.request, files, self.options).run()]
        columns: dict[str, Any] = {name: np.array([row[name] for row in rows], dtype=object) for name in TEXTS}
        columns |= {name: np.array([row[name] or 0 for row in rows], dtype=np.int64) for name in NUMBERS}
        columns |= {name: np.array([json.dumps(row.get(name)) for row in rows], dtype=object) for name in JSON}
        return columns

    def frames(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Data frames in, data frames out, for Spark's ``mapInPandas``; see SPARK_SCHEMA."""
        for frame in frames:
            columns = self({name: frame[name].tolist() for name in ("path", "bytes") if name in frame.columns})
            yield type(frame)(columns)


#: Types of the columns, as Spark spells them.
SPARK_SCHEMA = ", ".join([*(f"{n} string" for n in TEXTS), *(f"{n} long" for n in NUMBERS), *(f"{n} string" for n in JSON)])


def extract_dataset(
    dataset: Any, schema: Any, *, workers: int = 1, num_cpus: float = 1, num_gpus: float = 0, batch_size: int = 32, **stage: Any
) -> Any:
    """A Ray dataset of rows from one of files, for example ``ray.data.read_binary_files(folder, include_paths=True)``.

    Args:
        workers: actors, each with the model in it. num_cpus, num_gpus: of each. The cluster needs at least one CPU more than
            the actors take, or reading never begins. batch_size: files handed over at once. stage: arguments of PageStage.

    Raises:
        DependencyError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise DependencyError("Ray is not installed", remedy="pip install 'diffusion-vlm[ray]'") from error
    if workers * num_cpus >= ray.cluster_resources().get("CPU", 0):
        what = f"{workers} actors of {num_cpus:g} CPUs would take all of the cluster, and nothing is left for reading"
        raise OptionError(what, source="workers", remedy="use fewer, or a smaller num_cpus")
    return dataset.map_batches(
        PageStage, fn_constructor_args=(schema,), fn_constructor_kwargs=stage, batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=num_cpus, num_gpus=num_gpus,
    )  # fmt: skip
