"""Blocks spread over host memory and disk by accelerate. Splits over GPUs are not run here."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tests.checkpoints import tiny
from tests.families.tiny_vlm import write_vlm
from tests.model.test_published import picture, said
from vlm import DiffusionVLM, OptionError
from vlm.checkpoints.convert import convert
from vlm.checkpoints.load import load, on_meta
from vlm.checkpoints.placement import BLOCKS, place
from vlm.families.family import Settings, TextModel
from vlm.families.registry import families

pytest.importorskip("accelerate")
DISK = {"": "cpu", f"{BLOCKS}1": "disk"}


def states(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[3, 4, 19, 7]])
    with torch.no_grad():
        backbone = model.backbone
        assert isinstance(backbone, torch.nn.Module)
        hidden = backbone(backbone.embed(ids), torch.arange(4).unsqueeze(0), torch.ones(1, 4, dtype=torch.bool))
        return backbone.logits(hidden)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_a_block_on_disk_computes_the_same(tmp_path: Path, name: str, dtype: torch.dtype | None, native: bool) -> None:
    folder = tiny.write(tmp_path / "model", name, shards=3)
    if native:
        convert(folder, tmp_path / "native")
        folder = tmp_path / "native"
    whole = load(folder, dtype=dtype)
    split = load(folder, dtype=dtype, device_map=DISK, offload_folder=tmp_path / "off")
    for _ in range(2):
        assert torch.equal(states(split.model), states(whole.model))
        assert {p.is_meta for p in split.model.backbone.blocks[1].parameters()} == {True}  # let go after its turn
    assert not any(p.is_meta for p in split.model.backbone.blocks[0].parameters())
    written = list((tmp_path / "off").glob("*.dat"))
    assert bool(written) == (not native or dtype is not None)  # what lies in one piece and in its type stays in the checkpoint
    assert all(file.name.startswith(f"{BLOCKS}1.") for file in written)
    assert split.notes == ("the 2 blocks are spread: 1 on cpu, 1 on disk; all else is on cpu",)


@pytest.mark.parametrize("name", ["lavida-dream", "llada-v"])
def test_public_api_with_blocks_on_disk(tmp_path: Path, name: str) -> None:
    folder = write_vlm(tmp_path / "model", name)
    whole, split = DiffusionVLM.from_pretrained(folder), DiffusionVLM.from_pretrained(folder, device_map={"": "cpu", "backbone.blocks": "disk"})
    images = [picture(0), picture(1, (20, 64))]
    assert [said(r) for r in split.ask(images, "who?", max_new_tokens=5)] == [said(r) for r in whole.ask(images, "who?", max_new_tokens=5)]
    assert "2 on disk" in split.info()["notes"][0] and split.info()["parameters"] == whole.info()["parameters"]


def test_the_temporary_folder_goes_with_the_model(tmp_path: Path) -> None:
    loaded = load(tiny.write(tmp_path, "llada"), device_map=DISK)
    folder = Path(loaded.model._offload_folder.name)  # type: ignore[union-attr, arg-type]
    assert folder.is_dir()
    del loaded
    gc.collect()
    assert not folder.exists()


def wide() -> TextModel:
    config = families()["dream"].configure(Settings({**tiny.CONFIGS["dream"], "num_hidden_layers": 6, "vocab_size": 40}))
    return on_meta(lambda: TextModel(config))


def test_auto_fills_memory_and_then_the_disk() -> None:
    model = wide()
    block = 4 * sum(p.numel() for p in model.backbone.blocks[0].parameters())
    core = 4 * (sum(p.numel() for p in model.parameters()) - 6 * block // 4)
    placement = place(model, "auto", dtype=torch.float32, max_memory={"cpu": core + 4 * block + 8})
    assert placement.main == torch.device("cpu")
    assert [b is None for b in placement.blocks] == [False] * 3 + [True] * 3  # room is kept for a block that is fetched
    assert place(model, "auto", dtype=torch.float32).summary() == ""
    with pytest.raises(OptionError, match="has no room"):
        place(model, "auto", dtype=torch.float32, max_memory={"cpu": core // 2})


def test_maps_by_name() -> None:
    model = wide()
    placement = place(model, {"": 1, "backbone.blocks.3": "cpu", "backbone.blocks.4": 0, "backbone.blocks.5": "disk"}, dtype=torch.float32)
    cards = [torch.device("cuda", 1)] * 3 + [torch.device("cpu"), torch.device("cuda", 0), None]
    assert placement.main == torch.device("cuda", 1) and list(placement.blocks) == cards
    assert placement.home("backbone.blocks.4.down.weight") == torch.device("cuda", 0) and placement.home("backbone.norm.weight") == torch.device("cuda", 1)
    assert placement.summary().startswith("the 6 blocks are spread: 3 on cuda:1, 1 on cpu, 1 on cuda:0, 1 on disk;")
    assert place(model, {"backbone.blocks": "cpu", "backbone.head": 0}, dtype=torch.float32).main == torch.device("cuda", 0)
    assert place(model, {"": "disk"}, dtype=torch.float32).main == torch.device("cpu")


WRONG = [
    ({"": "cpu", "backbone.blocks.9": "disk"}, "backbone.blocks.9"),
    ({"": "cpu", "backbone.head": "disk"}, "puts backbone.head on disk"),
    ({"": "tpu9"}, "tpu9"),
    ({"backbone.blocks.0": "cpu"}, "says nothing of backbone.blocks.1"),
    ("balanced", "'balanced'"),
]


@pytest.mark.parametrize(("device_map", "said_of_it"), WRONG)
def test_maps_that_are_wrong(device_map: object, said_of_it: str) -> None:
    with pytest.raises(OptionError, match=said_of_it):
        place(wide(), device_map, dtype=torch.float32)  # type: ignore[arg-type]


def test_options_of_a_map_without_one(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, "llada")
    with pytest.raises(OptionError, match="device_map"):
        load(folder, offload_folder=tmp_path / "off")
    with pytest.raises(OptionError, match="max_memory"):
        load(folder, device_map="auto", max_memory={"moon": 1})
    with pytest.raises(OptionError, match="fits on one device"):
        DiffusionVLM.from_pretrained(device_map="auto")


def test_accelerate_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    folder = tiny.write(tmp_path, "llada")
    assert load(folder).notes == ()
    with pytest.raises(OptionError, match=r"diffusion-vlm\[accelerate\]"):
        load(folder, device_map="auto")
