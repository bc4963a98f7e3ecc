"""Drawn damage: whatever is broken in a checkpoint loads, or gives a typed error that names a file; little memory either way."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import tiny
from tests.families.tiny_vlm import configs, write_tokenizer, write_vlm
from vlm import CheckpointError, DiffusionVLM, VLMError
from vlm.checkpoints.load import load
from vlm.processor.tokenizer import Tokenizer

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 1.5, 1e308, float("nan"), 10**9, 10**18, 2**63, "", "x", "../..", "\x00", [], [1], [[1, 2]], [None], {}, {"a": 1},
]  # fmt: skip
Damage = Callable[[random.Random, Path], None]


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        found.append((*path, key))
        if isinstance(value, dict | list) and len(value) < 50:
            found += _places(value, (*path, key))
    return found


def wrong_value(rng: random.Random, file: Path) -> None:
    data = json.loads(file.read_text())
    *outer, last = rng.choice(_places(data))
    inner = data
    for key in outer:
        inner = inner[key]
    if isinstance(inner, dict) and rng.random() < 0.3:
        del inner[last]
    else:
        inner[last] = rng.choice(VALUES)
    file.write_text(json.dumps(data))


def flipped(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(content[:8], "little") if file.suffix == ".safetensors" else len(content)
    for _ in range(rng.choice([1, 1, 4])):
        content[rng.randrange(min(head, len(content)))] = rng.randrange(256)
    file.write_bytes(content)


def cut(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def wrong_header(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    key = rng.choice([k for k in header if k != "__metadata__"])
    entry, how = header[key], rng.randrange(4)
    if how == 0:
        entry[rng.choice(sorted(entry))] = rng.choice(VALUES)
    elif how == 1:
        entry["shape"][0:1] = [rng.choice([0, -1, 10**12, True, 1.0, "2"])]
    elif how == 2:
        entry["data_offsets"][rng.randrange(2)] = rng.choice([0, -5, 10**15, 3])
    else:
        header[rng.choice(["x", "", "a.b"])] = header.pop(key)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    found = {name: tiny.write(folder / name, name, shards=2) for name in tiny.CONFIGS}
    found.update({name: write_vlm(folder / name, name) for name in configs()})
    for name in tiny.CONFIGS:
        write_tokenizer(found[name], name)
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(8))
def test_drawn_damage_is_a_typed_error_or_harmless(seed: int, sources: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(seed)
    failed = 0
    for i in range(20):
        folder = tmp_path / str(i)
        shutil.copytree(sources[rng.choice(sorted(sources))], folder)
        weights = sorted(folder.glob("*.safetensors"))
        texts = [folder / "config.json"] * 3 + sorted(folder.glob("*.json"))
        damage, files = rng.choice([(wrong_value, texts)] * 4 + [(flipped, weights + texts), (cut, weights + texts), (wrong_header, weights)])
        file = rng.choice(files)
        damage(rng, file)
        try:
            Tokenizer.from_file(folder)
            load(folder)
        except VLMError as error:
            failed += 1
            assert error.source, f"{damage.__name__} of {file.name}: {error}"
        shutil.rmtree(folder)
    assert 2 < failed < 20


@pytest.mark.parametrize("name", ["llada", "lavida-dream"])
def test_pocket_and_published_say_the_same_of_a_truncated_file(name: str, sources: dict[str, Path], tiny: Path, tmp_path: Path) -> None:
    for i, source in enumerate((sources[name], tiny)):
        folder = tmp_path / str(i)
        shutil.copytree(source, folder)
        file = sorted(folder.glob("*.safetensors"))[0]
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(CheckpointError, match=rf"{file.name}: ends 3 bytes before .* does"):
            DiffusionVLM.from_pretrained(folder)


def test_nested_json_without_end(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, "llada")
    deep = b'{"a":' * 100_000
    (folder / "model.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors"):
        load(folder)
    (folder / "tokenizer.json").write_bytes(deep)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(folder)
    (folder / "config.json").write_bytes(deep)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DiffusionVLM.from_pretrained(folder)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, "llada")
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    head = f'{{"a":{entry},"a":{entry}}}'.encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    with pytest.raises(CheckpointError, match="stands there twice"):
        load(folder)


ABSURD: list[tuple[str, str, Any]] = [
    ("llada", "n_layers", 10**9), ("llada", "n_layers", 200), ("llada", "d_model", 10**12), ("dream", "num_attention_heads", 0),
    ("dream", "intermediate_size", 2**62), ("dream", "num_key_value_heads", 10**15),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), ABSURD)
def test_absurd_sizes_allocate_nothing(name: str, key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.write(tmp_path, name)
    (folder / "config.json").write_text(json.dumps({**tiny.CONFIGS[name], key: value}))
    empty, sizes = torch.empty, [0]

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*args, **options)
        sizes.append(0 if tensor.is_meta else tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(VLMError, match=str(folder)):
        load(folder)
    assert max(sizes) == 0


def test_tokenizers_with_impossible_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llada")
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    for change in ({"id": 10**9}, {"id": -1}, {"id": 1e308}, {"id": True}, {"content": 7}):
        added = [{**spec["added_tokens"][0], **change}, *spec["added_tokens"][1:]]
        with pytest.raises(CheckpointError, match="not a usable tokenizer.json"):
            Tokenizer({**spec, "added_tokens": added})
