"""Fixtures and cases as they lie on disk, and the record of what was compared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlm.checkpoints.load import Loaded, load
from vlm.processor.tokenizer import Tokenizer

#: Largest error of a tensor, relative to the largest value expected.
TOLERANCE = 1e-4


def root() -> Path:
    """Folder of the fixtures: PARITY_ROOT, else ../shared/parity beside the project."""
    return Path(os.environ.get("PARITY_ROOT") or Path(__file__).parents[2] / ".." / "shared" / "parity").resolve()


class Fixture:
    """A folder with cases.json, a tiny checkpoint, inputs and expected tensors (all read when first asked for)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document: dict[str, Any] = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
        self.meta: dict[str, Any] = self.document.get("meta", {})
        self.family = str(self.meta.get("family") or self.document.get("family") or folder.name)
        self._models: dict[str, Loaded] = {}

    @property
    def cases(self) -> list[Case]:
        """All cases in the order of the file."""
        return [Case(self, data) for data in self.document["cases"]]

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Tensors the reference was given."""
        path = self.folder / "inputs.safetensors"
        return load_file(path) if path.is_file() else {}

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """Tensors the reference computed."""
        return load_file(self.folder / "expected.safetensors")

    def model(self, name: str = "", **options: Any) -> Loaded:
        """The checkpoint of the fixture (or of a sub-folder), loaded by the library's own loader; kept."""
        key = f"{name}|{sorted(options.items())}"
        if key not in self._models:
            self._models[key] = load(self.folder / name, **options)
        return self._models[key]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the fixture."""
        return Tokenizer.from_file(self.folder)


@dataclass
class Case:
    """One case; `data` is its entry in cases.json."""

    fixture: Fixture
    data: dict[str, Any]

    @property
    def id(self) -> str:
        """Name inside the fixture."""
        return str(self.data.get("id") or self.data.get("name"))

    @property
    def kind(self) -> str:
        """Kind as the fixture says, '' when it does not."""
        return str(self.data.get("kind", ""))

    def __str__(self) -> str:
        return f"{self.fixture.folder.name}/{self.id}"

    def input(self, name: str) -> Tensor:
        """An input by the name the case gives it."""
        return self.fixture.inputs[self.data["inputs"][name]]

    def has_input(self, name: str) -> bool:
        """Whether the case names such an input."""
        return name in self.data.get("inputs", {})

    def tensor(self, name: str) -> Tensor:
        """An expected tensor by the name the case gives it."""
        return self.fixture.expected[self.data["tensors"][name]]

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the reference."""
        return dict(self.data.get("settings", {}))


@dataclass
class Checks:
    """What was compared in a case. Failures are collected, so that a case reports all of them."""

    errors: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def close(self, name: str, ours: Tensor, theirs: Tensor, *, where: Tensor | None = None, tolerance: float = TOLERANCE) -> None:
        """Floating-point tensors: largest absolute difference relative to the largest expected value.

        Args:
            where: bool, broadcastable to the leading axes: only these entries count.
        """
        if ours.shape != theirs.shape:
            self.failures.append(f"{name}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
            return
        ours, theirs = ours.double(), theirs.double()
        if where is not None:
            ours, theirs = ours[where], theirs[where]
        finite = theirs.isfinite()
        if not torch.equal(ours[~finite], theirs[~finite]):
            self.failures.append(f"{name}: infinite values differ")
        ours, theirs = ours[finite], theirs[finite]
        scale = max(float(theirs.abs().max()), 1e-12) if theirs.numel() else 1.0
        error = float((ours - theirs).abs().max()) / scale if theirs.numel() else 0.0
        self.errors[name] = error
        if not error <= tolerance:
            self.failures.append(f"{name}: relative error {error:.2e} exceeds {tolerance:.0e}")

    def top1(self, name: str, ours: Tensor, theirs: Tensor, *, margin: float = 0.1) -> None:
        """Logits in lower precision: the best id must be the expected one wherever that leads clearly.

        Args:
            margin: what counts as clearly, relative to the largest expected value. The error shown is the share of all
                cells whose best id differs.
        """
        best = theirs.double().topk(2, dim=-1)
        other = ours.argmax(dim=-1) != best.indices[..., 0]
        self.errors[name] = float(other.double().mean())
        clear = best.values[..., 0] - best.values[..., 1] > margin * theirs.abs().max()
        if bool((other & clear).any()):
            self.failures.append(f"{name}: {int((other & clear).sum())} clear best ids of {int(clear.sum())} differ")

    def equal(self, name: str, ours: Any, theirs: Any) -> None:
        """Ids, masks, counts and strings: exactly."""
        if isinstance(theirs, Tensor):
            ours, theirs = torch.as_tensor(ours).tolist(), theirs.tolist()
        same = ours == theirs
        self.errors[name] = 0.0 if same else float("inf")
        if not same:
            self.failures.append(f"{name}: {_difference(ours, theirs)}")

    def __str__(self) -> str:
        return "  ".join(f"{name} {'exact' if error == 0 else f'{error:.1e}'}" for name, error in self.errors.items())


def _difference(ours: Any, theirs: Any) -> str:
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return f"{len(ours)} entries, expected {len(theirs)}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if a != b:
                return f"[{i}] {_difference(a, b)}"
    return f"{ours!r}, expected {theirs!r}"


def fixtures(base: Path | None = None) -> list[Fixture]:
    """All fixtures below the root, by name; [] when there is no such folder."""
    base = base or root()
    return [Fixture(path.parent) for path in sorted(base.glob("*/cases.json"))] if base.is_dir() else []


def ids_of(settings: Mapping[str, Any], *names: str) -> list[int]:
    """The ids a case's meta gives under `names`, absent ones left out."""
    return [int(settings[name]) for name in names if settings.get(name) is not None]
