"""Where a checkpoint lies: a local folder, or the local copy of a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.checkpoints.shards import DTYPES, Shards, Stored
from vlm.errors import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: What is fetched of a repository: weights, configurations, tokenizers; never code or pickles.
TEXTS = ("*.json", "merges.txt", "*.jinja", "tokenizer.model")
WANTED = ("*.safetensors", *TEXTS)
#: Fetched where somebody asks for a conversion and there is nothing else.
PICKLED = ("*.bin", "*.pt", "*.pth")


def find_folder(name: str | Path, what: str = "the checkpoint", *, patterns: Sequence[str] = WANTED, **options: Any) -> Path:
    """The folder of a checkpoint: `name` itself, else the Hub repository of that id, fetched unless it is there already.

    ``HF_HUB_OFFLINE=1`` and the Hub's other settings count.

    Args:
        patterns: of the names of the files that are fetched. options: of the Hub's ``snapshot_download`` (revision, token, ...).

    Raises:
        CheckpointError: no such folder and no such repository, or it cannot be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not _ID.fullmatch(str(name)):
        raise CheckpointError("there is no such folder", source=str(name), remedy="name a local checkpoint folder, or the id of a Hub repository (OWNER/NAME)")
    hub = _client(name, what)
    with _explained(name, what):
        return Path(hub.snapshot_download(str(name), allow_patterns=list(patterns), **options))


def find_weights(name: str | Path) -> Path:
    """Like :func:`find_folder`, for a conversion: pickled weights are fetched where the repository has no others."""
    folder = find_folder(name)
    if Path(name).is_dir() or any(folder.glob("*.safetensors")):
        return folder
    return find_folder(name, patterns=(*TEXTS, *PICKLED))


def find_headers(name: str | Path) -> tuple[Path, Shards]:
    """A checkpoint without its weights: (folder of its configuration, headers). Of a repository that was not fetched, only
    configurations and the first bytes of the weight files come over the network; the tensors can then not be read.

    Raises:
        CheckpointError: as :func:`find_folder` and ``Shards.open``.
    """
    if Path(name).is_dir() or not _ID.fullmatch(str(name)):
        folder = find_folder(name)
        return folder, Shards.open(folder)
    hub = _client(name, "the checkpoint")
    folder = find_folder(name, patterns=TEXTS)
    try:
        return folder, Shards.open(folder)  # fetched before
    except CheckpointError:
        pass  # not, or not all of it
    with _explained(name, "the checkpoint"):
        files = hub.get_safetensors_metadata(str(name)).files_metadata
    found = {}
    for file, metadata in files.items():
        for key, info in metadata.tensors.items():
            if info.dtype not in DTYPES:
                raise CheckpointError(f"{key} is of type {info.dtype}, which is not supported", source=f"{name}/{file}")
            found[key] = Stored(Path(name) / file, key, DTYPES[info.dtype], tuple(info.shape), info.data_offsets[0])
    return folder, Shards(folder, found)


def _client(name: str | Path, what: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise CheckpointError(
            f"{what} is not a local folder, and huggingface_hub is not installed", source=str(name), remedy="pip install 'diffusion-vlm[hub]', or name a folder"
        ) from error
    return huggingface_hub


@contextmanager
def _explained(name: str | Path, what: str) -> Iterator[None]:
    """Errors of the client, which has a dozen kinds of its own besides those of its transport, as ours."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{what} is neither a local folder nor to be had from the Hub ({reason})", source=str(name),
            remedy="check the id and the connection, or name a folder",
        ) from error
