"""The stage of other engines: columns in, columns out; on Ray for real, with two workers."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from app.stage import SPARK_SCHEMA, PageStage, extract_dataset
from tests.app.support import SCHEMA, encoded, tiff
from vlm.errors import OptionError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stage(tiny):
    return PageStage(SCHEMA, model=str(tiny), batch_size=2)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    tiff(tmp_path / "many.tiff", 3, 20)
    (tmp_path / "bad.png").write_bytes(b"no")
    return tmp_path


def test_columns(stage, folder):
    names = sorted(str(p) for p in folder.iterdir())
    batch = {"path": np.array(names, dtype=object), "bytes": np.array([Path(n).read_bytes() for n in names], dtype=object)}
    columns = stage(batch)
    assert list(columns["source"]) == [n for n in names for _ in range(3 if n.endswith("tiff") else 1)]
    assert list(columns["status"]).count("error") == 1 and len({*columns["id"]}) == 10
    assert columns["page"].dtype == np.int64 and list(columns["page"][-3:]) == [1, 2, 3]
    good = columns["status"] != "error"
    assert all(set(json.loads(data)) == {"who", "n"} for data in columns["data"][good])
    assert json.loads(columns["error"][~good][0])["type"] == "ImageFormatError" and columns["page"][~good][0] == 0
    by_path = stage({"path": batch["path"]})
    assert list(by_path["id"]) == list(columns["id"])
    with pytest.raises(OptionError, match="columns are image"):
        stage({"image": [1]})


class Frame(dict):
    """As much of a pandas data frame as the stage uses."""

    class Column(list):
        def tolist(self):
            return list(self)

    def __init__(self, columns):
        super().__init__({name: Frame.Column(values) for name, values in columns.items()})
        self.columns = list(columns)


def test_data_frames_for_spark(stage, folder):
    frames = list(stage.frames(iter([Frame({"path": [str(folder / "0.png")]}), Frame({"path": [str(folder / "1.png")]})])))
    assert [f["source"] for f in frames] == [[str(folder / "0.png")], [str(folder / "1.png")]]
    assert [part.split()[0] for part in SPARK_SCHEMA.split(", ")] == frames[0].columns


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(Exception, match=r"diffusion-vlm\[ray\]"):
        extract_dataset(None, SCHEMA)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra ray)")
def test_two_workers_of_ray(tiny, folder, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}})
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        files = ray.data.read_binary_files(str(folder), include_paths=True, override_num_blocks=4)
        with pytest.raises(OptionError, match="nothing is left for reading"):
            extract_dataset(files, SCHEMA, workers=4)
        rows = extract_dataset(files, SCHEMA, workers=2, batch_size=2, model=str(tiny)).take_all()
        alone = extract_dataset(files, SCHEMA, workers=1, batch_size=8, model=str(tiny)).take_all()
    finally:
        ray.shutdown()
    assert len(rows) == 10 and len({r["id"] for r in rows}) == 10
    assert sorted((r["source"], r["page"]) for r in rows) == sorted((r["source"], r["page"]) for r in alone)
    assert {r["id"] for r in rows} == {r["id"] for r in alone}
    assert sorted(r["status"] for r in rows).count("error") == 1
