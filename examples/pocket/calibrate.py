"""Calibrate field confidences on rendered documents, and measure how far off they are on documents held out.

``python -m examples.pocket.calibrate --documents 120 --held-out 120 --out vlm/pocket``

Fits on documents of one seed and reports the expected calibration error, before and after, on documents of another: other
pages, other words, other keys. Writes ``calibration.json`` beside the weights; it is used with these weights only.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from examples.pocket.held_out import Case, document_cases
from vision.loading import load_image
from vlm.calibration import Calibration, expected_calibration_error, weights_digest
from vlm.checkpoint import POCKET
from vlm.metrics import same_value
from vlm.model import DiffusionVLM
from vlm.results import FieldInfo

#: Seeds of the documents that are fitted on and those that are measured on.
FITTED, HELD_OUT = 7, 0


def labelled(case: Case, fields: dict[str, FieldInfo]) -> Iterator[tuple[FieldInfo, bool]]:
    """Fields with whether they are right; items beyond those on the page count as wrong, places left empty there do not count."""
    for pointer, info in fields.items():
        if pointer in case.truth:
            yield info, same_value(info.value, case.truth[pointer])
        elif pointer in case.absent or info.value is not None:
            yield info, info.value is None


def samples(model: DiffusionVLM, count: int, seed: int) -> list[tuple[FieldInfo, bool]]:
    """Labelled fields of `count` drawn documents."""
    out: list[tuple[FieldInfo, bool]] = []
    for index in tqdm(range(count), desc="documents", disable=None):
        for case in document_cases(index, seed):
            result = model.extract(load_image(case.image), case.schema, on_error="row")
            out += labelled(case, result.fields)
    return out


def error_of(rows: list[tuple[FieldInfo, bool]]) -> float:
    """Expected calibration error of labelled fields."""
    return expected_calibration_error([info.confidence for info, _ in rows], [right for _, right in rows])


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder; the shipped pocket by default")
    parser.add_argument("--documents", type=int, default=120, help="documents to fit on")
    parser.add_argument("--held-out", type=int, default=120, help="documents to measure on")
    parser.add_argument("--out", type=Path, help="folder for calibration.json; nothing is written without it")
    args = parser.parse_args(argv)
    model = DiffusionVLM.from_pretrained(args.model)
    model.calibration = None
    fitted = samples(model, args.documents, FITTED)
    command = shlex.join(["python", "-m", "examples.pocket.calibrate", *argv])
    raw, right, absent = ([f(info, ok) for info, ok in fitted] for f in (lambda i, _: i.confidence, lambda _, ok: ok, lambda i, _: i.value is None))
    calibration = Calibration.fit(raw, right, absent, weights=weights_digest(args.model or POCKET), about=command)
    held_out = samples(model, args.held_out, HELD_OUT)
    after = [(calibration(info), ok) for info, ok in held_out]
    print(f"{command}\nfields fitted on: {len(fitted)}, measured on: {len(held_out)}, of them right: {sum(ok for _, ok in held_out) / len(held_out):.3f}")
    print(f"expected calibration error, raw: {error_of(held_out):.3f}\nexpected calibration error, calibrated: {error_of(after):.3f}")
    for name, kind in (("values", False), ("absences", True)):
        before, part = ([row for row in rows if (row[0].value is None) == kind] for rows in (held_out, after))
        if part:
            print(f"{name}: {len(part)}, raw {error_of(before):.3f}, calibrated {error_of(part):.3f}")
    if args.out is not None:
        calibration.save(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
