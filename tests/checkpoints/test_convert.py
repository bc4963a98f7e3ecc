"""Conversion: there and back bit for bit for every family, pickles, refusals, runs that were stopped."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints import tiny
from tests.families.tiny_vlm import configs, write_vlm
from tests.parity.cases import root
from vlm import CheckpointError, DiffusionVLM, OptionError
from vlm.checkpoints import unpickle_process
from vlm.checkpoints.convert import convert
from vlm.checkpoints.layout import KEPT
from vlm.checkpoints.load import inspect, load
from vlm.checkpoints.shards import Shards, read_tensor
from vlm.checkpoints.write import save_published

SHARED = ("dream-vl", "dimple", "diffusionvl", "sdar-vl", "bard-vl")


def same(first: Path, second: Path) -> bool:
    one, other = Shards.open(first).tensors, Shards.open(second).tensors
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and one[k].shape == other[k].shape and torch.equal(_bits(read_tensor(one[k])), _bits(read_tensor(other[k]))) for k in one
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def source_of(name: str, folder: Path) -> Path:
    if name in tiny.CONFIGS:
        return tiny.write(folder, name, shards=3)
    if name in configs():
        return write_vlm(folder, name)
    found = root() / name
    if not (found / "model.safetensors").is_file():
        pytest.skip("needs ../shared/parity")
    return found


@pytest.mark.parametrize("name", [*sorted(tiny.CONFIGS), *sorted(configs()), *SHARED])
def test_there_and_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    source = source_of(name, tmp_path / "source")
    there = convert(source, tmp_path / "native", shard_bytes=8_000)
    back = convert(tmp_path / "native", tmp_path / "back", to="published")
    assert (there.family, there.source, there.target) == (name, "published", "native") and len(there.files) > 1
    assert (back.source, back.target, len(back.files)) == ("native", "published", 1)
    assert same(source, tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    before, after = load(source), load(tmp_path / "native")
    ours = after.model.state_dict()
    assert all(torch.equal(_bits(ours[key]), _bits(tensor)) for key, tensor in before.model.state_dict().items())
    assert {key for key in Shards.open(tmp_path / "native").tensors if not key.startswith(KEPT)} == set(ours)
    assert not list(tmp_path.glob("*/*partial*"))


def test_a_native_checkpoint_answers_the_same(tmp_path: Path) -> None:
    from tests.model.test_published import picture, said

    folder = write_vlm(tmp_path / "model", "lavida-llada")
    convert(folder, tmp_path / "native")
    before, after = DiffusionVLM.from_pretrained(folder), DiffusionVLM.from_pretrained(tmp_path / "native")
    assert said(before.ask(picture(), "who?", max_new_tokens=6)) == said(after.ask(picture(), "who?", max_new_tokens=6))
    model = after.engine.loaded  # type: ignore[attr-defined]
    save_published(model.model, model.family, model.config, tmp_path / "again", source=tmp_path / "native")
    assert same(folder, tmp_path / "again")


def test_what_the_module_has_no_use_for_is_kept(tmp_path: Path) -> None:
    config = {**tiny.CONFIGS["dream"], "tie_word_embeddings": True}
    state = tiny.tensors("dream", config)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    source = tiny.write(tmp_path / "source", "dream", config=config, state=state)
    convert(source, tmp_path / "native")
    assert f"{KEPT}lm_head.weight" in Shards.open(tmp_path / "native").tensors and load(tmp_path / "native").diff.fits
    convert(tmp_path / "native", tmp_path / "back", to="published")
    assert same(source, tmp_path / "back")


def test_resized_vocabularies_and_lacking_towers_survive(tmp_path: Path) -> None:
    state = tiny.tensors("dream")
    state["model.embed_tokens.weight"], state["lm_head.weight"] = torch.randn(23, 16).bfloat16(), torch.randn(26, 16).bfloat16()
    resized = tiny.write(tmp_path / "resized", "dream", state=state)
    bare = write_vlm(tmp_path / "bare", "llada-v", tower=False)
    for source in (resized, bare):
        convert(source, tmp_path / source.name / "native")
        convert(tmp_path / source.name / "native", tmp_path / source.name / "back", to="published")
        assert same(source, tmp_path / source.name / "back")
    assert load(tmp_path / "resized" / "native").config.backbone.logit_size == 26
    with pytest.warns(UserWarning, match="holds no vision tower"):
        load(tmp_path / "bare" / "native")


def test_dtype_on_the_way(tmp_path: Path) -> None:
    state = tiny.tensors("llada", dtype=torch.float32)
    source = tiny.write(tmp_path / "source", "llada", state=state)
    convert(source, tmp_path / "half", to="published", dtype=torch.bfloat16)
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[key], tensor.bfloat16()) for key, tensor in state.items())


def test_parts_in_several_types(tmp_path: Path) -> None:
    state = tiny.tensors("llada")
    key = "model.transformer.blocks.0.q_proj.weight"
    state[key] = state[key].float() + 1e-4
    source = tiny.write(tmp_path / "source", "llada", state=state)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight in float32.*in bfloat16"):
        convert(source, tmp_path / "native")
    convert(source, tmp_path / "wide", dtype=torch.float32)
    qkv = load_file(tmp_path / "wide" / "model.safetensors")["backbone.blocks.0.attention.qkv.weight"]
    assert torch.equal(qkv[:16], state[key])
    assert torch.equal(load(source).model.backbone.blocks[0].attention.qkv.weight[:16], state[key])  # loading widens, it never rounds


# ---------------------------------------------------------------------- pickles


def pickled(folder: Path, state: Any, name: str = "llada", file: str = "pytorch_model.bin") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny.CONFIGS[name]))
    torch.save(state, folder / file)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The unpickling program in this process: the same code without the seconds that starting torch takes."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1] == "-I" and "HOME" not in options["env"]
        code = unpickle_process.main(command[3], command[4])
        return subprocess.CompletedProcess(command, code, capsys.readouterr().out, "")

    monkeypatch.setattr("vlm.checkpoints.pickles.subprocess.run", run)


def test_one_pickle_by_a_process_of_its_own(tmp_path: Path) -> None:
    state = tiny.tensors("llada")
    done = convert(pickled(tmp_path / "bin", state), tmp_path / "out")
    assert done.pickles == ("pytorch_model.bin",)
    convert(tmp_path / "out", tmp_path / "back", to="published")
    assert same(tiny.write(tmp_path / "plain", "llada", state=state), tmp_path / "back")
    assert not list((tmp_path / "out").glob("*.bin")) and not (tmp_path / "out" / "convert.unpacked").exists()


@pytest.mark.usefixtures("here")
def test_pickled_shards_tied_and_nested(tmp_path: Path) -> None:
    config = {**tiny.CONFIGS["dream"], "tie_word_embeddings": True}
    state = tiny.tensors("dream", config)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]  # one memory, two keys
    source = tmp_path / "bin"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    keys, names = list(state), [f"pytorch_model-{i + 1:05d}-of-00002.bin" for i in range(2)]
    for i, name in enumerate(names):
        part = {key: state[key] for j, key in enumerate(keys) if j % 2 == i}
        torch.save(part if i else {"epoch": 3, "state_dict": part}, source / name, _use_new_zipfile_serialization=bool(i))
    index = {"weight_map": {key: names[j % 2] for j, key in enumerate(keys)}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (source / "training_args.bin").write_bytes(b"never opened")
    convert(source, tmp_path / "out", to="published")
    assert same(tiny.write(tmp_path / "plain", "dream", config=config, state=state | {"lm_head.weight": state["lm_head.weight"].clone()}), tmp_path / "out")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "base_model.model."])
def test_wrappers_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    state = tiny.tensors("llada")
    source = pickled(tmp_path / "bin", {wrapper + key: torch.nn.Parameter(tensor) for key, tensor in state.items()}, file="consolidated.pth")
    done = convert(source, tmp_path / "out", to="published")
    assert done.stripped == wrapper
    assert same(tiny.write(tmp_path / "plain", "llada", state=state), tmp_path / "out")


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    source = pickled(tmp_path / "evil", {**tiny.tensors("llada"), "x": Evil(trace)})
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: holds more than tensors.*system"):
        convert(source, tmp_path / "out")
    assert not trace.exists() and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_ways_to_hide_code(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    source = pickled(tmp_path / "evil", {"state_dict": tiny.tensors("llada"), "y": Evil(trace)})
    for content in (None, pickle.dumps(Evil(trace)), pickle.dumps({"a": Evil(trace)}, protocol=0)):
        if content is not None:
            (source / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            convert(source, tmp_path / "out")
    assert not trace.exists()


def test_a_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "killer.py"
    killer.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr("vlm.checkpoints.pickles.unpickle_process.__file__", str(killer))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: the process that read it died \(signal 9"):
        convert(pickled(tmp_path / "bin", {}), tmp_path / "out")


REFUSED: list[tuple[Any, str]] = [
    ([torch.zeros(2)], "holds a list, not a state dict"),
    ({}, "holds no tensors"),
    ({"a": torch.zeros(2), "b": 3}, "b is a int, not a tensor"),
    ({"a": torch.zeros(2), 7: torch.zeros(2)}, "key that is no text"),
    ({"a": torch.zeros(2).to_sparse()}, "a is no plain tensor"),
    ({"a": torch.zeros(2, dtype=torch.complex64)}, "a is no plain tensor"),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("content", "said"), REFUSED)
def test_pickles_that_are_no_state_dict(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin: .*{said}"):
        convert(pickled(tmp_path / "bin", content), tmp_path / "out")


@pytest.mark.usefixtures("here")
def test_damaged_and_missing_pickles(tmp_path: Path) -> None:
    source = pickled(tmp_path / "bin", tiny.tensors("llada"))
    path = source / "pytorch_model.bin"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"<html>", whole[:100]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            convert(source, tmp_path / "out")
    index = source / "pytorch_model.bin.index.json"
    for text, said in (
        ("{", "no index of weights"), ('{"weight_map": {"a": "../x.bin"}}', "no pickle file of this folder"),
        ('{"weight_map": {"a": "b.bin"}}', "shard b.bin is missing"), ('{"weight_map": {}}', "names no shard"),
    ):  # fmt: skip
        index.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            convert(source, tmp_path / "other")
    index.unlink()
    path.unlink()
    with pytest.raises(CheckpointError, match="neither safetensors nor pickled weights"):
        convert(source, tmp_path / "other")
    for name in ("a.pt", "b.pt"):
        torch.save({}, source / name)
    with pytest.raises(CheckpointError, match=r"several pickled files.*a\.pt, b\.pt"):
        convert(source, tmp_path / "other")


# ----------------------------------------------------------------------- targets


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.write(tmp_path / "source", "llada")
    count = 0

    def stopping(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        save_file(tensors, path, **options)

    monkeypatch.setattr("vlm.checkpoints.convert.save_file", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", shard_bytes=1000)
    with pytest.raises(CheckpointError):
        load(tmp_path / "out")  # a half is no checkpoint
    with pytest.raises(OptionError, match="no unfinished run of this conversion"):
        convert(source, tmp_path / "out", shard_bytes=2000)
    done = convert(source, tmp_path / "out", shard_bytes=1000)
    assert len(done.kept) == 2 and count == len(done.files) + 1
    convert(tmp_path / "out", tmp_path / "back", to="published")
    assert same(source, tmp_path / "back")
    with pytest.raises(OptionError, match="is not empty"):
        convert(source, tmp_path / "out", shard_bytes=1000)


def test_a_family_that_brings_its_own_module_keeps_its_layout(tmp_path: Path) -> None:
    source = source_of("diffusion-gemma", tmp_path / "source")
    with pytest.raises(OptionError, match="published layout only"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    convert(source, tmp_path / "again", to="published")
    assert same(source, tmp_path / "again")


def test_wrong_requests(tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "source", "llada")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is a file"):
        convert(source, tmp_path / "file")
    with pytest.raises(OptionError, match="'ours'"):
        convert(source, tmp_path / "out", to="ours")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="shard_bytes"):
        convert(source, tmp_path / "out", shard_bytes=0)
    with pytest.raises(CheckpointError, match="no such folder"):
        convert(tmp_path / "none", tmp_path / "out")
    broken = tiny.write(tmp_path / "broken", "llada", state={**tiny.tensors("llada"), "stray": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="1 unexpected keys: stray"):
        convert(broken, tmp_path / "out2")
    assert not list((tmp_path / "out2").glob("*.safetensors"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_memory_of_a_conversion_is_one_file(tmp_path: Path) -> None:
    config = {**tiny.CONFIGS["dream"], "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 20000}
    state = {part.key: torch.zeros(part.shape, dtype=torch.bfloat16) for weight in tiny.key_map("dream", config) for part in weight.parts}
    source = tiny.write(tmp_path / "source", "dream", config=config, state=state)
    code = (
        "import sys; from pathlib import Path; from vlm.checkpoints.convert import convert; from vlm.checkpoints.load import inspect, on_meta\n"
        "def peak(): return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "found = inspect(sys.argv[1]); on_meta(lambda: found.family.build(found.config)); before = peak()\n"
        "convert(sys.argv[1], sys.argv[2], shard_bytes=24 << 20); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert inspect(source).shards.nbytes > 80e6
    assert int(done.stdout) < 2 * (24 << 20) + 16e6
