"""How much of a folder of JSON Schemas compiles, what is refused by name, and whether random fillings are valid.

``python -m benchmarks.schemas FOLDER --limit 400``

FOLDER holds bare schemas, one a file, such as the `data` folder of JSONSchemaBench (github.com/guidance-ai/jsonschemabench).
Each schema that compiles for pocket's vocabulary is filled once from random logits and checked with `jsonschema`
(`multipleOf` in decimal, formats that it knows). A schema that fails otherwise than by a SchemaError counts as crashed.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import torch
from torch import Tensor
from tqdm import tqdm

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Prediction
from vlm.decoding.presets import preset
from vlm.errors import SchemaError
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.fill import fill
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema

#: Longest canvas that is filled; longer ones only compile.
LONGEST = 6000


class RandomModel:
    """Random logits."""

    def __init__(self, vocabulary: int) -> None:
        self.vocab_size = vocabulary
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, canvas: Canvas, cells: Tensor) -> Prediction:
        """Logits of the asked cells."""
        return Prediction(torch.randn(int(cells.sum()), self.vocab_size, generator=self.generator) * 3)


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Any:
    if validator.is_type(instance, "number") and Decimal(repr(instance)) % Decimal(repr(divisor)) != 0:
        yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {divisor}")


def outcome(schema: Any, tokenizer: Tokenizer) -> tuple[str, str]:
    """(what became of a schema, details)."""
    try:
        scaffold = compile_scaffold(parse_schema(schema), tokenizer, budget=8, max_items=2)
        if len(scaffold) > LONGEST:
            return "compiled", "too long to fill"
        done = fill(RandomModel(tokenizer.vocab_size), [scaffold], preset("threshold", threshold=0.02, block_length=256))
        if len(done.scaffolds[0]) > LONGEST:
            return "compiled", "too long to fill"
        data, _ = done.scaffolds[0].read(done.canvas.ids[0].tolist())
    except SchemaError as error:
        return "refused", error.message.split(" is ")[0][:60] if "unsupported" not in error.message else error.message[:60]
    except RecursionError:
        return "crashed", "RecursionError"
    except Exception:
        return "crashed", traceback.format_exc(limit=-2)
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    checker = jsonschema.validators.extend(kind, {"multipleOf": _multiple_of})
    try:
        error = next(iter(checker(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(data)), None)
    except Exception as failure:  # the reference may choke on a pattern, or a reference, of its own
        return "compiled", f"the reference fails: {type(failure).__name__}"
    return ("valid", "") if error is None else ("invalid", f"{error.message[:160]} at {error.json_path}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=400, help="schemas, spread evenly over the folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(args.folder.rglob("*.json"))
    files = [files[i * len(files) // args.limit] for i in range(args.limit)] if len(files) > args.limit else files
    tokenizer = Tokenizer.pocket()
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for file in tqdm(files, disable=None):
        what, why = outcome(json.loads(file.read_text(encoding="utf-8")), tokenizer)
        counts[what] += 1
        reasons[f"{what}: {why}"] += 1
        if what in ("crashed", "invalid"):
            print(f"{file}: {what}: {why}", file=sys.stderr)
    total = sum(counts.values())
    for what, count in counts.most_common():
        print(f"{what}: {count} ({count / max(total, 1):.1%})")
    for why, count in reasons.most_common(25):
        print(f"  {count:4d} {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
