"""Pages, models and the taking of pairs for the benchmarks."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.pocket import documents
from examples.pocket.evaluation import Remembering, processor
from examples.pocket.held_out import DOCUMENT_KINDS, Case, ask_all, case_of, random
from examples.pocket.lessons import see
from examples.pocket.sample import render
from vision.loading import LoadedImage, load_image
from vision.reading import Reading
from vlm.checkpoint import load_pocket
from vlm.engine import PocketEngine
from vlm.families.pocket import PocketModel
from vlm.model import DiffusionVLM
from vlm.processor.tokenizer import Tokenizer


@dataclass
class DocumentPage:
    """A document to extract: what is asked, and its reading."""

    case: Case
    image: LoadedImage
    reading: Reading
    read_ms: float


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder; the shipped pocket by default")
    parser.add_argument("--random", action="store_true", help="random weights of pocket's sizes, pages as a good reader would see them")
    parser.add_argument("--pages", type=int, default=6, help="documents to run")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


def load(args: argparse.Namespace) -> DiffusionVLM:
    """The model of the command line."""
    torch.set_num_threads(args.threads)
    if args.random:
        torch.manual_seed(0)
        return DiffusionVLM(PocketEngine(PocketModel().eval(), Tokenizer.pocket()), "random pocket")
    model, tokenizer, name = load_pocket(args.model)
    return DiffusionVLM(PocketEngine(model, tokenizer), name)


def pages(model: DiffusionVLM, count: int, simulated: bool) -> list[DocumentPage]:
    """Held-out documents, each asked for all it says and one to three things more.

    Args:
        simulated: take the visual tokens from what was drawn, with the errors of a good reader; for random weights,
            whose tower would see characters everywhere. The tower runs all the same, for its time.
    """
    engine = model.engine = Remembering(model.engine)
    kinds = [k for k in DOCUMENT_KINDS if k in documents.KINDS and k != "table"]
    out = []
    for index in range(count):
        rng = random(4, index)
        sample = documents.make(rng, True, kinds[index % len(kinds)])
        query = ask_all(sample.facts, rng)
        image = render(sample, rng, 0.0)
        loaded = load_image(image)
        start = time.perf_counter()
        if simulated:
            tokens = see(sample, rng, 0.02)
            reading = Reading(tokens, torch.zeros(len(tokens), model.engine.model.config.reader.width), (image.shape[1], image.shape[0]), 1.0)
            run_tower(model, image)
        else:
            reading = engine.see(loaded.rgb)
        read_ms = (time.perf_counter() - start) * 1000
        engine.remember(loaded.rgb, reading)
        out.append(DocumentPage(case_of(sample.kind, image, query), loaded, reading, read_ms))
    return out


@torch.inference_mode()
def run_tower(model: DiffusionVLM, image: Any) -> None:
    """One pass of the tower over a picture whose sides are multiples of 8."""
    model.engine.model.tower(torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float().div_(255))


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """(what `run` gives, milliseconds)."""
    start = time.perf_counter()
    value = run()
    return value, (time.perf_counter() - start) * 1000


def median(values: list[float]) -> float:
    """Median, 0 of nothing."""
    return statistics.median(values) if values else 0.0


def report(args: argparse.Namespace, model: DiffusionVLM | None, figures: dict[str, Any]) -> None:
    """Print the figures, and write them if wanted."""
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "processor": processor(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "torch": torch.__version__, "model": model.name if model else None,
    }  # fmt: skip
    for name, value in {**about, **figures}.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    if args.json is not None:
        args.json.write_text(json.dumps({**about, **figures}, indent=1) + "\n", encoding="utf-8")
