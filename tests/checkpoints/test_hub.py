"""Hub ids against a small server of this process that speaks the Hub's protocol: what is fetched, and what is not."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import tiny
from tests.families.tiny_vlm import write_tokenizer
from vlm import CheckpointError, DiffusionVLM
from vlm.checkpoints.convert import convert
from vlm.checkpoints.hub import find_folder, find_headers, find_weights
from vlm.checkpoints.load import inspect_shards
from vlm.checkpoints.shards import read_tensor

pytest.importorskip("huggingface_hub")
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves the folders of `repositories` by id."""

    repositories: dict[str, Path]
    sent: dict[str, int]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", path):
            folder = self.repositories.get(match[1])
            if folder is None:
                self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                return
            files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            data = {"_id": "0", "id": match[1], "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0, "siblings": files}
            self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"}, body)
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in sorted(self.repositories[match[1]].iterdir())]
            self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"}, body)
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        file = match and self.repositories.get(match[1], Path("/nowhere")) / match[2]
        if not match or not file or not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return
        content, status, headers = file.read_bytes(), 200, {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            status, whole = 206, len(content)
            start, end = int(wanted[1]), min(int(wanted[2] or whole - 1), whole - 1)
            content = content[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{whole}"
        if body:
            self.sent[match[2]] = self.sent.get(match[2], 0) + len(content)
        self._send(status, content, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    handler = type("Handler", (Hub,), {"repositories": {}, "sent": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield handler
    server.shutdown()
    server.server_close()


def repository(folder: Path, shards: int = 1) -> Path:
    """A checkpoint with weights that are much longer than their headers, and files that nobody needs."""
    config = {**tiny.CONFIGS["llada"], "vocab_size": 12000, "embedding_size": 12000}
    tiny.write(folder, "llada", config=config, shards=shards)
    write_tokenizer(folder, "llada")
    (folder / "modeling_llada.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_headers_come_alone(hub: type[Hub], tmp_path: Path, shards: int) -> None:
    hub.repositories["someone/model"] = repository(tmp_path / "repo", shards)
    folder, headers = find_headers("someone/model")
    found = inspect_shards(folder, headers)
    assert found.family.name == "llada" and found.diff.fits and found.config.backbone.vocab_size == 12000
    weights = {name: size for name, size in hub.sent.items() if name.endswith(".safetensors")}
    whole = sum(f.stat().st_size for f in (tmp_path / "repo").glob("*.safetensors"))
    assert len(weights) == shards and sum(weights.values()) < whole / 2  # the client asks for 100 kB of each
    assert "modeling_llada.py" not in hub.sent and "pytorch_model.bin" not in hub.sent
    with pytest.raises(CheckpointError, match=r"someone/model/model.*cannot be read"):
        read_tensor(next(iter(headers.tensors.values())))


def test_an_id_is_fetched_once_and_answers(hub: type[Hub], tmp_path: Path) -> None:
    hub.repositories["someone/model"] = repository(tmp_path / "repo")
    model = DiffusionVLM.from_pretrained("someone/model")
    assert model.name == "model" and model.info()["family"] == "llada"
    assert {name for name in hub.sent if name.endswith((".py", ".bin"))} == set()
    before = dict(hub.sent)
    _, headers = find_headers("someone/model")
    assert torch.equal(model.engine.model.backbone.norm.weight, _norm(headers))  # type: ignore[attr-defined]
    assert {n: s for n, s in hub.sent.items() if n.endswith(".safetensors")} == {n: s for n, s in before.items() if n.endswith(".safetensors")}


def _norm(headers: Any) -> torch.Tensor:
    return read_tensor(headers.tensors["model.transformer.ln_f.weight"])


def test_pickles_are_fetched_for_a_conversion_alone(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = repository(tmp_path / "repo")
    (repo / "model.safetensors").unlink()
    config = json.loads((repo / "config.json").read_text())
    torch.save(tiny.tensors("llada", config), repo / "pytorch_model.bin")
    hub.repositories["someone/pickled"] = repo
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        DiffusionVLM.from_pretrained("someone/pickled")
    assert "pytorch_model.bin" not in hub.sent
    folder = find_weights("someone/pickled")
    assert (folder / "pytorch_model.bin").is_file() and "modeling_llada.py" not in hub.sent
    monkeypatch.setattr("vlm.checkpoints.pickles._run", lambda path, target: __import__("vlm.checkpoints.unpickle_process").checkpoints.unpickle_process.main(str(path), str(target)))
    assert convert(folder, tmp_path / "out").pickles == ("pytorch_model.bin",)


def test_what_is_not_there(hub: type[Hub]) -> None:
    for call in (find_folder, find_headers, find_weights):
        with pytest.raises(CheckpointError, match=r"nobody/nothing: the checkpoint is neither a local folder nor to be had from the Hub"):
            call("nobody/nothing")
