"""Where a checkpoint lies: a local folder, or the local copy of a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from vlm.errors import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: What is fetched of a repository: weights, configurations, tokenizers; never code or pickles.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "merges.txt", "*.jinja", "tokenizer.model")


def find_folder(name: str | Path, what: str = "the checkpoint") -> Path:
    """The folder of a checkpoint: `name` itself, else the Hub repository of that id, fetched unless it is there already.

    ``HF_HUB_OFFLINE=1`` and the Hub's other settings count.

    Raises:
        CheckpointError: no such folder and no such repository, or it cannot be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not _ID.fullmatch(str(name)):
        raise CheckpointError("there is no such folder", source=str(name), remedy="name a local checkpoint folder, or the id of a Hub repository (OWNER/NAME)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{what} is not a local folder, and huggingface_hub is not installed", source=str(name), remedy="pip install 'diffusion-vlm[hub]', or name a folder"
        ) from error
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(WANTED)))
    except Exception as error:  # the client raises a dozen kinds of its own, and those of its transport
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{what} is neither a local folder nor to be had from the Hub ({reason})", source=str(name),
            remedy="check the id and the connection, or name a folder",
        ) from error
