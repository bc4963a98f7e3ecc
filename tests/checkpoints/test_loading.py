"""Loading published checkpoints: what is read, what is refused, and that nothing large is allocated before the check."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import tiny
from vlm.checkpoints.keymap import from_published, to_published
from vlm.checkpoints.load import inspect, load
from vlm.checkpoints.shards import Shards, map_tensor, read_tensor
from vlm.checkpoints.write import save_published
from vlm.errors import CheckpointError

NAMES = sorted(tiny.CONFIGS)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_bit_for_bit(tmp_path: Path, name: str, shards: int) -> None:
    folder = tiny.write(tmp_path / "in", name, shards=shards)
    loaded = load(folder)
    assert loaded.family.name == name
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert not any(p.is_meta for p in loaded.model.parameters())
    files = save_published(loaded.model, loaded.family, loaded.config, tmp_path / "out", source=folder, shard_bytes=2000 if shards > 1 else 1 << 30)
    assert (len(files) > 1) == (shards > 1)
    original, written = tiny.tensors(name), Shards.open(tmp_path / "out")
    assert set(written.tensors) == set(original)
    for key, tensor in original.items():
        assert torch.equal(read_tensor(written.tensors[key]).view(torch.int16), tensor.view(torch.int16)), key
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == tiny.CONFIGS[name]


@pytest.mark.parametrize("name", NAMES)
def test_shards_and_dtype_change_nothing_else(tmp_path: Path, name: str) -> None:
    one, many = load(tiny.write(tmp_path / "one", name)), load(tiny.write(tmp_path / "many", name, shards=4), dtype=torch.float32)
    for (key, a), (other, b) in zip(one.model.state_dict().items(), many.model.state_dict().items(), strict=True):
        assert key == other
        assert b.dtype == torch.float32
        assert torch.equal(a.float(), b)
    ids = torch.tensor([[3, 4, 19]])
    with torch.no_grad():
        hidden = many.model.backbone(many.model.backbone.embed(ids), torch.arange(3).unsqueeze(0), torch.ones(1, 3, dtype=torch.bool))
    assert bool(hidden.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_key_maps_are_inverse_in_memory(name: str) -> None:
    weights, state = tiny.key_map(name), tiny.tensors(name, dtype=torch.float32)
    shapes = {w.name: (sum(p.shape[0] for p in w.parts), *w.parts[0].shape[1:]) for w in weights}
    ours = from_published(weights, state, shapes)
    back = to_published(weights, ours)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_queries_keys_values_and_gate_up_lie_in_order(tmp_path: Path) -> None:
    state = tiny.tensors("dream")
    model = load(tiny.write(tmp_path, "dream", state=state)).model
    attention, layer = model.backbone.blocks[1].attention, "model.layers.1."
    joined = torch.cat([state[f"{layer}self_attn.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(attention.qkv.weight, joined)
    assert torch.equal(attention.qkv.bias, torch.cat([state[f"{layer}self_attn.{x}_proj.bias"] for x in "qkv"]))
    assert torch.equal(model.backbone.blocks[1].gate_up.weight, torch.cat([state[f"{layer}mlp.gate_proj.weight"], state[f"{layer}mlp.up_proj.weight"]]))


EMBED, HEAD = {"llada": ("model.transformer.wte.weight", "model.transformer.ff_out.weight"), "dream": ("model.embed_tokens.weight", "lm_head.weight")}["dream"]


def test_resized_embeddings_are_taken_as_they_are(tmp_path: Path) -> None:
    state = tiny.tensors("dream")
    state[EMBED], state[HEAD] = torch.randn(23, 16).bfloat16(), torch.randn(26, 16).bfloat16()
    loaded = load(tiny.write(tmp_path / "resized", "dream", state=state))
    assert (loaded.config.backbone.vocab_size, loaded.config.backbone.logit_size) == (23, 26)
    assert torch.equal(loaded.model.backbone.head.weight, state[HEAD])
    save_published(loaded.model, loaded.family, loaded.config, tmp_path / "out")
    assert Shards.open(tmp_path / "out").shapes[HEAD] == (26, 16)
    cut = load(tmp_path / "resized", vocab_rows=21, head_rows=21)
    assert torch.equal(cut.model.backbone.token_embed.weight, state[EMBED][:21])
    assert torch.equal(cut.model.backbone.head.weight, state[HEAD][:21])
    assert cut.config.backbone.head_size is None


@pytest.mark.parametrize("stored", [True, False])
def test_tied_embeddings_with_and_without_a_stored_head(tmp_path: Path, stored: bool) -> None:
    config = {**tiny.CONFIGS["dream"], "tie_word_embeddings": True}
    state = tiny.tensors("dream", config)
    assert HEAD not in state
    if stored:
        state[HEAD] = state[EMBED].clone()
    loaded = load(tiny.write(tmp_path, "dream", config=config, state=state))
    assert loaded.model.backbone.head is None
    hidden = torch.randn(2, 16).bfloat16()
    assert torch.equal(loaded.model.backbone.logits(hidden), hidden @ state[EMBED].T)


def _drop(folder: Path) -> None:
    next(folder.glob("model-00002*")).unlink()


def _truncate(folder: Path) -> None:
    path = next(folder.glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:-10])


def _cut_header(folder: Path) -> None:
    path = next(folder.glob("model-00001*"))
    path.write_bytes(path.read_bytes()[:40])


def _as_pickle(folder: Path) -> None:
    next(folder.glob("model-00001*")).write_bytes(pickle.dumps({"a": 1}))


def _as_pointer(folder: Path) -> None:
    next(folder.glob("model-00001*")).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def _as_text(folder: Path) -> None:
    next(folder.glob("model-00001*")).write_text("<html>not found</html>")


def _edit_index(change: Callable[[dict[str, str]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


def _bad_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[1, 2")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (_drop, "shard model-00002-of-00003.safetensors is missing"),
    "truncated data": (_truncate, "model-00002.*ends 10 bytes before .* does: the file is truncated"),
    "truncated header": (_cut_header, "model-00001.*ends inside its header"),
    "pickle": (_as_pickle, "model-00001.*is a pickle file"),
    "pointer": (_as_pointer, "model-00001.*pointer of git-lfs"),
    "text": (_as_text, "model-00001.*is no safetensors file"),
    "index no json": (_bad_index, "is no index of safetensors"),
    "index leaves the folder": (_edit_index(lambda m: m.update({next(iter(m)): "../elsewhere.safetensors"})), "which is no safetensors file of this folder"),
    "index names a key in vain": (_edit_index(lambda m: m.update({"ghost.weight": next(iter(m.values()))})), "does not hold ghost.weight"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_named(tmp_path: Path, what: str) -> None:
    damage, said = BROKEN[what]
    folder = tiny.write(tmp_path, "llada", shards=3)
    damage(folder)
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_only_pickles(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, "llada")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps([]))
    with pytest.raises(CheckpointError, match=r"only pickle files \(pytorch_model.bin\).*Fetch the safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"there is neither model\.safetensors nor"):
        load(folder)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load(tmp_path / "nowhere")


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = tiny.tensors("llada")
    q = "model.transformer.blocks.1.q_proj.weight"
    missing = {k: v for k, v in state.items() if k != q}
    with pytest.raises(CheckpointError, match=f"1 missing keys: {q}"):
        load(tiny.write(tmp_path / "a", "llada", state=missing))
    extra = {**state, "model.transformer.wpe.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=r"1 unexpected keys: model\.transformer\.wpe\.weight"):
        load(tiny.write(tmp_path / "b", "llada", state=extra))
    wrong = {**state, q: torch.zeros(16, 15)}
    said = r"model\.safetensors: .*blocks\.1\.q_proj\.weight has shape \(16, 15\), the llada of config\.json wants \(16, 16\)"
    with pytest.raises(CheckpointError, match=said):
        load(tiny.write(tmp_path / "c", "llada", state=wrong))
    diff = inspect(tmp_path / "b").diff
    assert str(diff) == "+ model.transformer.wpe.weight (unexpected)"
    assert str(inspect(tmp_path / "a").diff) == f"- {q} (missing)"
    assert not diff.fits


CONFIG_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("llada", {"model_type": "gpt2", "architectures": ["GPT2"]}, "'gpt2' and architectures .*'GPT2'.* belong to no family we know.*Known families: pocket, "),
    ("llada", {"alibi": True}, "alibi is True, and only False is supported"),
    ("llada", {"block_type": "sequential"}, "block_type is 'sequential'"),
    ("llada", {"d_model": None}, "has no d_model"),
    ("llada", {"n_layers": "two"}, "n_layers is 'two', not a whole number"),
    ("llada", {"rope_theta": "big"}, "rope_theta is 'big', not a number"),
    ("dream", {"mask_token_id": None}, "has no mask_token_id"),
    ("dream", {"rope_scaling": {"type": "yarn"}}, "rope_scaling is"),
    ("dream", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("dream", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
]


@pytest.mark.parametrize(("name", "change", "said"), CONFIG_ERRORS)
def test_configurations_we_cannot_run_are_refused(tmp_path: Path, name: str, change: dict[str, Any], said: str) -> None:
    folder = tiny.write(tmp_path, name)
    (folder / "config.json").write_text(json.dumps({**tiny.CONFIGS[name], **change}))
    with pytest.raises(CheckpointError, match=said):
        inspect(folder)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_config_json_that_is_none(tmp_path: Path, text: str) -> None:
    folder = tiny.write(tmp_path, "dream")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(folder)


def test_a_huge_wrong_checkpoint_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    """Headers that promise 8B parameters over an empty file: the error must come from the header."""
    sizes = {"d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464}
    config = {**tiny.CONFIGS["llada"], **sizes}
    header, offset = {}, 0
    for weight in tiny.key_map("llada", config):
        for part in weight.parts:
            size = 2 * torch.Size(part.shape).numel()
            header[part.key] = {"dtype": "BF16", "shape": list(part.shape), "data_offsets": [offset, offset + size]}
            offset += size
    head = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(CheckpointError, match="the file is truncated"):
        load(tmp_path)
    assert offset == 16_031_162_368  # the size the published index states, so the shapes are those of LLaDA-8B


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_peak_memory_is_the_model_and_one_tensor(tmp_path: Path) -> None:
    """Measured in a process of its own: what loading adds to the peak is the checkpoint and little more."""
    config = {**tiny.CONFIGS["dream"], "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 20000}
    state = {part.key: torch.zeros(part.shape, dtype=torch.bfloat16) for weight in tiny.key_map("dream", config) for part in weight.parts}
    folder = tiny.write(tmp_path, "dream", config=config, state=state, shards=2)
    size = Shards.open(folder).nbytes
    code = (
        "import sys; from vlm.checkpoints.load import inspect, load, on_meta\n"
        "def peak(): return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "found = inspect(sys.argv[1]); on_meta(lambda: found.family.build(found.config)); before = peak()\n"
        "model = load(sys.argv[1], mapped=sys.argv[2] == 'mapped').model; returned = peak() - before\n"
        "total = sum(float(p.sum()) for p in model.parameters()); print(returned, peak() - before)"
    )
    largest = max(s.nbytes for s in Shards.open(folder).tensors.values())
    for how in ("mapped", "read"):
        done = subprocess.run([sys.executable, "-c", code, str(folder), how], capture_output=True, text=True, check=True)
        returned, used = map(int, done.stdout.split())
        assert size - 16e6 < used < size + largest + 16e6
        assert (returned < 0.7 * size) == (how == "mapped")


def test_parts_that_lie_one_after_the_other_are_one_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates and ups of Qwen's layout do; queries, keys and values do not."""
    seen: list[str] = []
    monkeypatch.setattr("vlm.checkpoints.load.map_tensor", lambda stored, rows=None: (seen.append(stored.key), map_tensor(stored, rows=rows))[1])
    folder = tiny.write(tmp_path, "dream")
    model = load(folder).model
    assert any("gate_proj" in key for key in seen) and not any("up_proj" in key or "q_proj.weight" in key for key in seen), seen
    layer, state = model.backbone.blocks[0], tiny.tensors("dream")
    parts = [state[key] for key in sorted(state) if "layers.0.mlp.gate" in key or "layers.0.mlp.up" in key]
    assert len(parts) == 2 and torch.equal(layer.gate_up.weight, torch.cat(parts))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_may_be_views_of_their_file(tmp_path: Path, name: str) -> None:
    folder = tiny.write(tmp_path / "model", name, shards=3)
    views, copies = load(folder).model, load(folder, mapped=False).model
    assert all(torch.equal(a, b) for a, b in zip(views.state_dict().values(), copies.state_dict().values(), strict=True))
    before = [p.read_bytes() for p in sorted(folder.glob("*.safetensors"))]
    with torch.no_grad():
        for parameter in views.parameters():
            parameter.add_(1)  # to memory of this process alone
    assert [p.read_bytes() for p in sorted(folder.glob("*.safetensors"))] == before


def test_written_over_its_own_files(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "model", "llada")
    loaded = load(folder)
    wanted = {key: tensor.clone() + 1 for key, tensor in loaded.model.state_dict().items()}
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(1)
    save_published(loaded.model, loaded.family, loaded.config, folder)
    for model in (loaded.model, load(folder).model):
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.state_dict().items())


def test_rows_cut_off_a_view(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, "dream")
    state = tiny.tensors("dream")
    cut = load(folder, vocab_rows=13, head_rows=11).model.backbone
    assert torch.equal(cut.token_embed.weight, state[EMBED][:13]) and torch.equal(cut.head.weight, state[HEAD][:11])
