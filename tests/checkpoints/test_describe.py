"""``vlm info`` and ``vlm convert``: what the headers tell, readable differences, sizes that hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import main
from tests.checkpoints import tiny
from tests.families.tiny_vlm import configs, write_vlm
from vlm import DiffusionVLM
from vlm.checkpoints.convert import convert
from vlm.checkpoints.describe import describe, diff_lines, folded
from vlm.checkpoints.load import inspect, load


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", [*sorted(tiny.CONFIGS), *sorted(configs())])
def test_sizes_are_those_of_the_loaded_model(name: str, native: bool, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "model", name, shards=2) if name in tiny.CONFIGS else write_vlm(tmp_path / "model", name)
    if native:
        folder = convert(folder, tmp_path / "native").files[0].parent
    said = describe(folder)
    json.dumps(said)
    loaded = load(folder)
    counts = {part: sum(p.numel() for p in child.parameters()) for part, child in loaded.model.named_children()}
    assert {part: said["parameters"][part] for part in counts} == counts
    assert said["parameters"]["total"] == sum(p.numel() for p in loaded.model.parameters())
    assert said["memory"]["weights"]["bfloat16"] == 2 * said["parameters"]["total"] and said["fits"] and not diff_lines(loaded.diff)
    assert said["layout"] == ("native" if native else "published") and said["family"] == name
    config, backbone = loaded.config.backbone, loaded.model.backbone
    with torch.no_grad():
        cache = backbone.prefill(backbone.embed(torch.tensor([[1, 2, 3]])), torch.arange(3).unsqueeze(0), torch.ones(1, 3, dtype=torch.bool))
    measured = sum(t.numel() for t in (*cache.keys, *cache.values)) // 3
    assert said["memory"]["kv_cache_per_token"]["float32"] == 4 * measured
    assert said["memory"]["kv_cache_full_context"]["bfloat16"] == 2 * measured * config.max_position_embeddings


def test_a_lacking_tower_counts(tmp_path: Path) -> None:
    whole, bare = write_vlm(tmp_path / "whole", "llada-v"), write_vlm(tmp_path / "bare", "llada-v", tower=False)
    assert describe(whole)["parameters"] == describe(bare)["parameters"]
    assert describe(bare)["fits"] and len(describe(bare)["lacking"]) > 10


def test_keys_are_folded() -> None:
    keys = [f"model.layers.{i}.mlp.{part}.weight" for i in (0, 1, 2, 5) for part in ("up", "down")]
    assert folded(keys) == ["model.layers.{0-2,5}.mlp.up.weight", "model.layers.{0-2,5}.mlp.down.weight"]
    assert folded(["a.0.b.1.c", "a.1.b.0.c"]) == ["a.0.b.1.c", "a.1.b.0.c"]  # no grid
    assert folded([f"a.{i}.b.{j}.c" for i in range(2) for j in range(3)]) == ["a.{0-1}.b.{0-2}.c"]
    assert folded(["x.weight", "x.3.bias"]) == ["x.weight", "x.3.bias"]


def test_differences_in_lines(tmp_path: Path) -> None:
    state = tiny.tensors("llada")
    for i in range(2):
        del state[f"model.transformer.blocks.{i}.up_proj.weight"]
        state[f"model.transformer.blocks.{i}.q_proj.weight"] = torch.zeros(16, 15)
        state[f"model.transformer.blocks.{i}.q_proj.bias"] = torch.zeros(16)
    folder = tiny.write(tmp_path, "llada", state=state)
    assert diff_lines(inspect(folder).diff) == [
        "- model.transformer.blocks.{0-1}.up_proj.weight",
        "+ model.transformer.blocks.{0-1}.q_proj.bias",
        "~ model.transformer.blocks.{0-1}.q_proj.weight: stored 16 x 15, wanted 16 x 16",
    ]
    assert not describe(folder)["fits"]


@pytest.fixture
def vlm(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: Any) -> tuple[int, str, str]:
        code = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_info_for_people_and_programs(vlm: Any, tmp_path: Path) -> None:
    folder = write_vlm(tmp_path / "model", "lavida-llada")
    code, out, err = vlm("info", folder)
    page = {line[:18].strip(): line[19:] for line in out.splitlines()}
    assert code == 0 and not err
    assert page["family"] == "lavida-llada, in its published layout" and page["keys"] == "all fit"
    assert page["presets"].startswith("lavida-coco (default), ") and page["context"].startswith("1024 positions") and page["stored"].startswith("1 file, ")
    assert json.loads(vlm("info", folder, "--json")[1])["model"]["family"] == "lavida-llada"
    assert vlm("info", "--model", folder)[1] == out
    assert vlm("info", folder, "--model", folder)[0] == 2


def test_info_of_what_does_not_fit(vlm: Any, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "odd", "dream", state={**tiny.tensors("dream"), "model.layers.0.extra": torch.zeros(1)})
    code, out, _ = vlm("info", folder)
    assert code == 1 and out.splitlines()[-2:] == ["keys               do not fit:", "  + model.layers.0.extra"]
    code, out, err = vlm("info", tmp_path / "none")
    assert code == 1 and not out and err.startswith("vlm: CheckpointError:") and len(err.splitlines()) == 1


def test_options_of_loading_from_the_command_line(vlm: Any, tmp_path: Path) -> None:
    from tests.model.test_published import picture

    pytest.importorskip("accelerate")
    folder = write_vlm(tmp_path / "model", "llada-v")
    picture().save(tmp_path / "a.png")
    command = ("caption", tmp_path / "a.png", "--model", folder, "--max-new-tokens", 2, "--json", "--dtype", "bfloat16")
    code, out, _ = vlm(*command, "--device", "cpu")
    assert code == 0 and json.loads(out)["status"] == "ok"
    again = vlm(*command, "--device-map", "auto")[1]
    assert json.loads(again)["text"] == json.loads(out)["text"]
    code, _, err = vlm(*command, "--device", "tpu9")
    assert code == 2 and "tpu9" in err


def test_convert_from_the_command_line(vlm: Any, tmp_path: Path, tiny: Path) -> None:
    folder = write_vlm(tmp_path / "model", "llada-v")
    code, out, err = vlm("convert", folder, tmp_path / "native", "--json", "--dtype", "bfloat16")
    done = json.loads(out)
    assert code == 0 and not err and done["target"] == "native" and done["family"] == "llada-v" and Path(done["files"][0]).is_file()
    code, out, err = vlm("convert", tmp_path / "native", tmp_path / "back", "--to", "published", "--shard-gb", 1e-5)
    assert code == 0 and not out and "native layout -> published layout" in err
    model = DiffusionVLM.from_pretrained(tmp_path / "back")
    assert model.info()["dtype"] == "bfloat16"
    for wrong, word in ((("convert", folder, tmp_path / "native"), "is not empty"), (("convert", tiny, tmp_path / "p"), "one layout only"), (("convert", folder, tmp_path / "x", "--shard-gb", 0), "positive")):
        code, _, err = vlm(*wrong)
        assert code == 2 and word in err
