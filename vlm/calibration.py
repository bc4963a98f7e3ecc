"""Confidences that mean what they say: isotonic calibration of field confidences, and its expected error.

The confidence of a field is the probability the model gave to its value. Whether that is how often such values are right is
another question; :meth:`Calibration.fit` answers it from labelled results by isotonic regression (pool adjacent violators), for
values and for absences apart. A calibration is a small JSON file beside the weights it was measured on, and is not used with
others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm.errors import CheckpointError, ConfigError
from vlm.results import FieldInfo

NAME = "calibration.json"
KINDS = ("value", "absent")


def pool_adjacent_violators(values: Sequence[float], weights: Sequence[float]) -> NDArray[np.float64]:
    """The non-decreasing sequence nearest to `values` in weighted squares (Barlow et al., 1972)."""
    blocks: list[list[float]] = []  # mean, weight, count
    for value, weight in zip(values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            b, a = blocks.pop(), blocks.pop()
            total = a[1] + b[1]
            blocks.append([(a[0] * a[1] + b[0] * b[1]) / total, total, a[2] + b[2]])
    return np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])


@dataclass(frozen=True)
class Curve:
    """A piecewise linear map of confidences; without points, the identity."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    @classmethod
    def fit(cls, confidence: Sequence[float], right: Sequence[bool], least: int = 20) -> Curve:
        """Isotonic regression of `right` on `confidence`.

        Equal shares of at least `least` samples are pooled first, and each pool counts half a right and half a wrong sample
        more, so that no step claims certainty.
        """
        order = np.argsort(np.asarray(confidence, float), kind="stable")
        x, y = np.asarray(confidence, float)[order], np.asarray(right, float)[order]
        if not len(x):
            return cls()
        parts = np.array_split(np.arange(len(x)), max(len(x) // least, 1))
        centre = [float(x[part].mean()) for part in parts]
        share = [(float(y[part].sum()) + 0.5) / (len(part) + 1) for part in parts]
        fitted = pool_adjacent_violators(share, [len(part) for part in parts])
        points = {round(c, 6): round(float(v), 6) for c, v in zip(centre, fitted, strict=True)}
        return cls(tuple(points), tuple(points.values()))

    def __call__(self, confidence: float) -> float:
        """The calibrated confidence; flat beyond the first and last point."""
        return float(np.interp(confidence, self.x, self.y)) if self.x else confidence


@dataclass(frozen=True)
class Calibration:
    """Curves for values that were written and for values that were said to be absent.

    Attributes:
        weights: sha256 of the weights file it was measured on. samples: how many fields. about: the command that made it.
    """

    value: Curve = Curve()
    absent: Curve = Curve()
    weights: str = ""
    samples: int = 0
    about: str = ""

    @classmethod
    def fit(cls, confidence: Sequence[float], right: Sequence[bool], absent: Sequence[bool], *, weights: str = "", about: str = "") -> Calibration:
        """From labelled fields: raw confidence, whether the field was right, whether it was said to be absent."""
        rows = list(zip(confidence, right, absent, strict=True))
        value, gone = (Curve.fit([c for c, _, a in rows if a == kind], [r for _, r, a in rows if a == kind]) for kind in (False, True))
        return cls(value, gone, weights, len(rows), about)

    def __call__(self, info: FieldInfo) -> FieldInfo:
        """A field with its confidence calibrated and the raw one kept; forced values stay as they are."""
        if info.forced:
            return replace(info, raw_confidence=info.confidence)
        curve = self.absent if info.value is None else self.value
        return replace(info, confidence=curve(info.confidence), raw_confidence=info.confidence)

    def save(self, folder: Path) -> None:
        """Write it beside the weights."""
        data = {kind: {"x": getattr(self, kind).x, "y": getattr(self, kind).y} for kind in KINDS}
        text = json.dumps({**data, "weights": self.weights, "samples": self.samples, "about": self.about}, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """The calibration beside some weights; None when there is none, or it was measured on other weights.

        Raises:
            CheckpointError: the file cannot be used.
        """
        file = folder / NAME
        if not file.is_file():
            return None
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            value, absent = (_curve(data[kind]) for kind in KINDS)
            found = cls(value, absent, str(data["weights"]), int(data["samples"]), str(data.get("about", "")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"is no calibration ({error})", source=str(file), remedy="make it anew, or delete it") from error
        return found if found.weights == weights_digest(folder) else None


def _curve(data: Mapping[str, Sequence[float]]) -> Curve:
    curve = Curve(tuple(map(float, data["x"])), tuple(map(float, data["y"])))
    if len(curve.x) != len(curve.y) or list(curve.x) != sorted(curve.x) or list(curve.y) != sorted(curve.y):
        raise ValueError("a curve that does not rise")
    if any(not 0 <= v <= 1 for v in (*curve.x, *curve.y)):
        raise ValueError("a confidence outside 0..1")
    return curve


def weights_digest(folder: Path) -> str:
    """sha256 of the weights file of a folder, '' without one."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return ""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Mean distance of confidence and accuracy over `bins` equal ranges of confidence, weighted by their samples.

    Naeini, Cooper and Hauskrecht, AAAI 2015 (with Guo et al., ICML 2017). ConfigError without samples.
    """
    if not len(confidence):
        raise ConfigError("no samples to measure calibration on")
    x, y = np.asarray(confidence, float), np.asarray(right, float)
    place = np.minimum((x * bins).astype(int), bins - 1)
    parts = [place == b for b in range(bins)]
    return float(sum(abs(x[part].mean() - y[part].mean()) * part.sum() for part in parts if part.any()) / len(x))
