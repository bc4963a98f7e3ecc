"""Is a published checkpoint loaded right? For the first person who has the weights:

``python -m examples.verify_checkpoint PATH|ID --device cuda --out report``

Describes the checkpoint from its headers, loads it, compares what is published of it with what is there (sizes, ids), sees
whether it copies a sentence (a wrongly mapped model cannot), runs three pictures of examples/inputs (text models: three
questions) through all presets of the family, and writes report.md and report.json. Published benchmark scores are not
computed. Exit code 0: nothing differs; 1: it could not be loaded; 3: something differs.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm import DiffusionVLM, VLMError, user

INPUTS = Path(__file__).parent / "inputs"
#: Picture, question, what a right answer holds.
PICTURES = (
    ("scene.png", "What colour is the star? Answer with one word.", "blue"),
    ("receipt.png", "What is the total amount? Answer with the number.", "6.12"),
    ("invoice.png", "What is the e-mail address? Answer with the address.", "crilzaifapbi@ceafouybrea.com"),
)
QUESTIONS = (
    ("What is the capital of France? Answer with one word.", "paris"),
    ("How many legs does a spider have? Answer with one number.", "8"),
    ("What is 7 times 6? Answer with the number.", "42"),
)
SENTENCE = "The quick brown fox jumps over the lazy dog while the old farmer is mending his fence near the river."
#: Mean loss (nats) below which the sentence counts as copied; random weights have about the logarithm of the vocabulary.
COPIED = 1.0

_LLADA = {"layers": 32, "hidden_size": 4096, "heads": 32, "kv_heads": 32, "vocab_size": 126464, "mask_token_id": 126336}
_DREAM = {"layers": 28, "hidden_size": 3584, "heads": 28, "kv_heads": 4, "vocab_size": 152064, "mask_token_id": 151666}
#: What the authors publish of their checkpoints (config.json, index, code), by family. Families of several sizes: what these share.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llada": {**_LLADA, "context": 4096, "bytes": 16_031_162_368},
    "lavida-llada": {**_LLADA, "context": 4096},
    "llada-v": {**_LLADA, "context": 16384},
    "dream": _DREAM,
    "lavida-dream": _DREAM,
    "dream-vl": _DREAM,
    "dimple": _DREAM,
    "diffusionvl": {"mask_token_id": 151671, "block_length": 8},
    "sdar-vl": {"mask_token_id": 151669, "block_length": 4},
    "bard-vl": {"mask_token_id": 151671},
}


@dataclass
class Report:
    """What was found. `checks`: (name, 'ok' or 'differs', detail)."""

    checkpoint: str
    about: dict[str, Any] = field(default_factory=dict)
    checks: list[tuple[str, str, str]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def check(self, name: str, good: bool, detail: str) -> None:
        """Note a comparison."""
        self.checks.append((name, "ok" if good else "differs", detail))

    @property
    def differs(self) -> bool:
        """Whether anything is not as it should be."""
        return any(state == "differs" for _, state, _ in self.checks)

    def markdown(self) -> str:
        """For people, and for an issue that confirms or reports."""
        lines = [f"# {self.checkpoint}", ""] + [f"- {key}: {value}" for key, value in self.about.items()]
        lines += ["", "| check | | |", "|---|---|---|"] + [f"| {name} | {state} | {_cell(detail)} |" for name, state, detail in self.checks]
        lines += ["", "| preset | input | answer | right | forwards | s |", "|---|---|---|---|---|---|"]
        for a in self.answers:
            lines.append(f"| {a['preset']} | {a['input']} | {_cell(a['text'])} | {'yes' if a['right'] else 'no'} | {a['forwards']} | {a['seconds']:.2f} |")
        right = sum(a["right"] for a in self.answers)
        return "\n".join([*lines, "", f"{right} of {len(self.answers)} answers hold what they should."]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " / ")[:200]


def compare_published(report: Report, described: dict[str, Any]) -> None:
    """Sizes and ids against what is published."""
    here = {**described["limits"], **{key: described[key] for key in ("mask_token_id", "block_length", "bytes")}}
    for key, wanted in PUBLISHED.get(described["family"], {}).items():
        report.check(f"{key} as published", here[key] == wanted, f"{here[key]}, published {wanted}")


def copy_loss(model: DiffusionVLM) -> float:
    """Mean loss (nats) of single cells of a sentence that the prompt asks to repeat, all other cells given."""
    import torch

    from vlm.decoding.canvas import Canvas

    engine = model.engine
    plan, symbols = engine.plan({}), engine.symbols
    ids = engine.tokenizer.encode(SENTENCE)
    hidden = list(range(1, len(ids), max(1, len(ids) // 8)))
    rows = [[None if i == place else token for i, token in enumerate(ids)] for place in hidden]
    prompts = [engine.prompt(user(f"Repeat this sentence: {SENTENCE}"), plan) for _ in rows]
    canvas = Canvas.from_rows(rows, mask_id=symbols.mask, pad_id=symbols.pad)
    with torch.inference_mode():
        logits = engine.denoiser(prompts, [[] for _ in rows], len(ids), plan)(canvas, canvas.masked).logits
    return float(torch.nn.functional.cross_entropy(logits.float(), torch.tensor([ids[place] for place in hidden])))


def run_presets(report: Report, model: DiffusionVLM, presets: list[str], cells: int) -> None:
    """Every preset over three pictures, or three questions where the model takes none."""
    sees = hasattr(model.engine.model, "see")  # type: ignore[attr-defined]
    calls: list[tuple[str, str, Callable[[str], Any]]] = [
        (name, truth, lambda preset, name=name, question=question: model.ask(INPUTS / name, question, max_new_tokens=cells, preset=preset))
        for name, question, truth in PICTURES
    ] if sees else [  # fmt: skip
        (question, truth, lambda preset, question=question: model.generate(question, max_new_tokens=cells, preset=preset)) for question, truth in QUESTIONS
    ]
    failed = []
    for preset in tqdm(presets, desc="presets", file=sys.stderr, disable=not sys.stderr.isatty()):
        for name, truth, call in calls:
            start = time.perf_counter()
            try:
                result = call(preset)
            except VLMError as error:
                failed.append(f"{preset} on {name}: {type(error).__name__}: {error}")
                continue
            right = truth in result.text.lower()
            seconds = time.perf_counter() - start
            report.answers.append(
                {"preset": preset, "input": name, "text": result.text, "right": right, "forwards": result.usage.forwards, "seconds": seconds}
            )
    report.check("presets run", not failed, "; ".join(failed) or f"{len(presets)} presets, {len(report.answers)} answers")


def verify(args: argparse.Namespace) -> Report:
    """The whole report.

    Raises:
        VLMError: the checkpoint cannot be loaded.
    """
    import torch

    from vlm.checkpoints.describe import diff_lines, summary
    from vlm.checkpoints.hub import find_folder
    from vlm.checkpoints.load import inspect
    from vlm.published import variant_overrides

    report = Report(args.checkpoint)
    folder = find_folder(args.checkpoint)
    found = inspect(folder, overrides=variant_overrides(folder, args.checkpoint, args.variant))
    described = summary(found)
    for line in diff_lines(found.diff) or ["all keys fit"]:
        print(line)
    report.check("keys fit", found.diff.fits, "; ".join(diff_lines(found.diff)[:20]) or "all")
    start = time.perf_counter()
    model = DiffusionVLM.from_pretrained(
        args.checkpoint, device=args.device, dtype=args.dtype, device_map=args.device_map, variant=args.variant, tower=args.tower
    )
    info = model.info()
    report.about = {
        "family": info["family"], "parameters": info["parameters"]["total"], "dtype": info["dtype"], "device": info["device"],
        "seconds to load": round(time.perf_counter() - start, 1), "torch": torch.__version__, "python": platform.python_version(),
        "notes": "; ".join(info["notes"]) or "none", "proven before": info["proven"],
    }  # fmt: skip
    compare_published(report, described)
    engine: Any = model.engine
    bad = [name for name, p in engine.model.named_parameters() if not p.is_meta and not bool(torch.isfinite(p).all())]
    report.check("parameters are finite", not bad, ", ".join(bad[:3]) or "all that are in memory")
    report.check("the end of an answer has an id", bool(engine.stop_ids), f"{len(engine.stop_ids)} of {len(engine.family.stop)} spellings in the tokenizer")
    loss = copy_loss(model)
    report.check("copies a sentence", loss < COPIED, f"loss {loss:.3f} nats a cell, below {COPIED} when loaded right")
    run_presets(report, model, args.presets.split(",") if args.presets else sorted(engine.family.presets), args.cells)
    return report


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="PATH|ID")
    parser.add_argument("--device", help="'cuda' or 'cpu' (default)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    parser.add_argument("--device-map", choices=("auto",), help="spread the layers (accelerate)")
    parser.add_argument("--variant", help="of the family; default: read off the name")
    parser.add_argument("--tower", metavar="FOLDER", help="base vision tower, for checkpoints without one")
    parser.add_argument("--presets", help="comma-separated; default: all of the family")
    parser.add_argument("--cells", type=int, default=32, help="length of an answer's canvas (default 32)")
    parser.add_argument("--out", type=Path, default=Path("out/verify"), help="folder of the report (default out/verify)")
    args = parser.parse_args(argv)
    try:
        report = verify(args)
    except VLMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.md").write_text(report.markdown(), encoding="utf-8")
    (args.out / "report.json").write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(report.markdown())
    print(f"written: {args.out / 'report.md'}", file=sys.stderr)
    return 3 if report.differs else 0


if __name__ == "__main__":
    sys.exit(main())
