"""Draw the pictures of ``examples/inputs``: held-out fonts and words, fixed seeds, with what is on them.

``python -m examples.make_inputs`` needs the fonts that training used (``fc-list``); with others the pages look different.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.pocket import documents, scenes, screens
from examples.pocket.sample import Sample, render

INPUTS = Path(__file__).parent / "inputs"
#: file: (kind, seed, hardness of the degradation)
PAGES = {
    "receipt.png": ("receipt", 7022, 0.15),
    "invoice.png": ("invoice", 7007, 0.15),
    "form.png": ("form", 7026, 0.15),
    "card.jpg": ("card", 7005, 0.15),
    "scene.png": ("scene", 7001, 0.15),
    "screen.png": ("screen", 7003, 0.15),
}


def draw(kind: str, seed: int, hardness: float) -> Sample:
    """A held-out sample with its picture."""
    rng = np.random.default_rng(seed)
    if kind == "scene":
        sample = scenes.make(rng, True, "several")
    elif kind == "screen":
        sample = screens.make(rng, True, (480, 320))
    else:
        sample = documents.make(rng, True, kind)
    render(sample, rng, hardness)
    return sample


def requests_of(name: str, sample: Sample) -> list[dict[str, Any]]:
    """What the demo asks about a picture, with the truth; the fullest schema of a document is kept as a file."""
    out: list[dict[str, Any]] = []
    if sample.kind in ("scene", "screen"):
        for query in sample.queries:
            if query.task == "caption":
                out.insert(0, {"image": name, "task": "caption", "truth": query.answer})
            elif query.task == "ask":
                out.append({"image": name, "task": "ask", "question": query.instruction, "truth": query.answer})
            else:
                box = [round(v, 1) for v in query.box or []]
                out.append({"image": name, "task": "ground", "instruction": query.instruction, "truth": {"action": query.answer["action"], "box": box}})
        return out
    query = max(sample.queries, key=lambda q: len(q.values))
    return [{"image": name, "task": "extract", "schema": f"{Path(name).stem}.json", "truth": query.answer}]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=INPUTS)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    requests: list[dict[str, Any]] = []
    for name, (kind, seed, hardness) in PAGES.items():
        sample = draw(kind, seed, hardness)
        assert sample.image is not None
        Image.fromarray(sample.image).save(out / name, **({"quality": 90} if name.endswith(".jpg") else {"optimize": True}))
        requests += requests_of(name, sample)
        if requests[-1]["task"] == "extract":
            schema = max(sample.queries, key=lambda q: len(q.values)).schema
            (out / requests[-1]["schema"]).write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
        if kind == "receipt":
            requests.append({"image": name, "task": "read"})
    lines = ",\n".join(f"  {json.dumps(request, ensure_ascii=False)}" for request in requests)
    (out / "requests.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
