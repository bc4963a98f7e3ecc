"""The check of a checkpoint, on tiny random ones: it runs everything, and says that random weights are not the real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import verify_checkpoint
from examples.verify_checkpoint import PUBLISHED, copy_loss, main
from tests.families.tiny_vlm import write_vlm
from tests.parity.cases import root
from vlm import DiffusionVLM
from vlm.families.registry import families


def states_of(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    report = json.loads((folder / "report.json").read_text())
    return {name: state for name, state, _ in report["checks"]}, report


def test_a_random_checkpoint_runs_and_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_vlm(tmp_path / "model", "lavida-dream", max_position_embeddings=4096)
    assert main([str(folder), "--cells", "4", "--out", str(tmp_path / "report")]) == 3
    states, report = states_of(tmp_path / "report")
    assert states["keys fit"] == states["parameters are finite"] == states["presets run"] == states["the end of an answer has an id"] == "ok"
    assert states["copies a sentence"] == states["layers as published"] == "differs"
    assert len(report["answers"]) == 3 * len(families()["lavida-dream"].presets) and all(a["forwards"] >= 1 for a in report["answers"])
    out = capsys.readouterr().out
    assert out.startswith("all keys fit\n") and "| copies a sentence | differs |" in out and (tmp_path / "report" / "report.md").read_text() in out


@pytest.mark.parametrize("name", ["llada", "dream", "sdar-vl", "bard-vl", "dimple"])
def test_other_families(name: str, tmp_path: Path) -> None:
    folder = root() / name
    if not (folder / "model.safetensors").is_file():
        pytest.skip("needs ../shared/parity")
    assert main([str(folder), "--cells", "4", "--presets", next(iter(families()[name].presets)), "--out", str(tmp_path)]) == 3
    states, _ = states_of(tmp_path)
    assert states["keys fit"] == "ok" and states["copies a sentence"] == "differs"


def test_the_loss_is_that_of_the_hidden_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About the logarithm of the vocabulary for even logits, nothing for a model that knows the sentence."""
    model = DiffusionVLM.from_pretrained(write_vlm(tmp_path / "model", "llada-v"))
    backbone = model.engine.model.backbone  # type: ignore[attr-defined]
    even = torch.zeros(backbone.config.logit_size)
    monkeypatch.setattr(backbone, "logits", lambda hidden: even.expand(*hidden.shape[:-1], -1))
    assert copy_loss(model) == pytest.approx(math.log(len(even)), rel=1e-5)
    ids = model.tokenizer.encode("a a a a a")
    monkeypatch.setattr(verify_checkpoint, "SENTENCE", "aaaaaaaaaaaaaaaaaaaa")
    even[ids[0]] = 50.0
    assert copy_loss(model) < 1e-6


def test_what_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "report")]) == 1
    assert "CheckpointError" in capsys.readouterr().err and not (tmp_path / "report").exists()


def test_facts_are_of_families_that_exist() -> None:
    assert set(PUBLISHED) <= set(families())
