"""Evaluation on packs of real data: easy-VQA, NLVR, receipts, screenshots. Metrics as the packs define them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from examples.pocket.evaluate_rendered import GROUNDED
from examples.pocket.evaluation import Bench, Clock, Figure, share
from vision.loading import LoadedImage, load_image
from vlm.metrics import Counts, anls, as_number, box_iou, centre_inside, field_counts, match_counts, normalised, reading_accuracy
from vlm.results import Item

#: Templates of the ``gui`` pack that training never sees.
GUI_TEMPLATES = ("bootswatch", "uikit", "sb-admin-2", "todomvc")


def easy_vqa(bench: Bench) -> list[Figure]:
    """Answers equal to the truth, lower case and trimmed; each question asked alone."""
    clock = Clock()
    rows = bench.some(bench.rows("easy_vqa"))
    images = [bench.image("easy_vqa", row) for row in rows]
    asked: dict[str, list[tuple[LoadedImage, str, str]]] = defaultdict(list)
    for row, image in zip(rows, images, strict=True):
        for qa in row["qa"]:
            asked[qa["question"]].append((image, qa["answer"], qa["kind"]))
    right: dict[str, list[bool]] = defaultdict(list)
    for question in bench.follow(sorted(asked), "easy_vqa"):
        answers = bench.model.ask([image for image, _, _ in asked[question]], question)
        for (_, truth, kind), answer in zip(asked[question], answers, strict=True):
            right[kind].append(answer.text.strip().lower() == truth)
    every = [r for kind in right.values() for r in kind]
    return [
        share("easy_vqa", "answer accuracy", sum(every), len(every), floor=0.95, aim=0.995, seconds=clock()),
        *(share("easy_vqa", f"answer accuracy, {k}", sum(r), len(r)) for k, r in sorted(right.items())),
    ]


def nlvr(bench: Bench) -> list[Figure]:
    """Sentences by people, true or false; rows without a label are left out."""
    clock = Clock()
    rows = bench.some([row for row in bench.rows("nlvr") if row["sentence"] and row["label"] is not None])
    right, other = [], 0
    groups: dict[Any, list[bool]] = defaultdict(list)
    unseen: list[bool] = []
    for row in bench.follow(rows, "nlvr"):
        said = bench.model.ask(bench.image("nlvr", row), f"true or false: {row['sentence']}").text.strip().lower()
        hit = said == ("true" if row["label"] else "false")
        other += said not in ("true", "false")
        right.append(hit)
        groups[row["group"]].append(hit)
        if not row.get("scene_seen"):
            unseen.append(hit)
    yes = sum(bool(row["label"]) for row in rows)
    return [
        share("nlvr", "true/false accuracy", sum(right), len(right), aim=0.70, seconds=clock(), note="human sentences; asked as 'true or false: ...'"),
        share("nlvr", "true/false accuracy, scenes not in train", sum(unseen), len(unseen)),
        share("nlvr", "groups all right", sum(all(g) for g in groups.values()), len(groups)),
        share("nlvr", "answers that are neither", other, len(right), smaller=True),
        share("nlvr", "accuracy of always 'true'", yes, len(rows)),
    ]


#: Object lists as JSON: what ``extract`` is asked for on a scene.
SCENE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "objects": {
            "type": "array", "maxItems": 20,
            "items": {"type": "object", "properties": {"shape": {"enum": ["circle", "square", "triangle", None]}, "color": {"enum": ["black", "blue", "yellow", None]}}, "required": ["shape", "color"]},
        }
    },
    "required": ["objects"],
}  # fmt: skip
#: Scenes that are asked by ``extract``, which takes a canvas of some 900 cells each.
SCENE_ANSWERS = 100


def _overlaps(item: Item, true: dict[str, Any]) -> bool:
    return item.kind == true["type"] and item.color == true["color"] and box_iou(item.box, true["bbox"]) >= 0.5


def _strict(item: Item, true: dict[str, Any]) -> bool:
    """Equal type, colour and size (nearest of the pack's three), left and top within 2 px: the pack's own rule."""
    size = min((10, 20, 30), key=lambda s: abs(s - (item.box[2] - item.box[0])))
    near = max(abs(item.box[0] - true["bbox"][0]), abs(item.box[1] - true["bbox"][1])) <= 2
    return item.kind == true["type"] and item.color == true["color"] and size == true["size"] and near


def _named(said: Any, true: dict[str, Any]) -> bool:
    return bool(said["shape"] == true["type"] and said["color"] == true["color"])


def nlvr_scene(bench: Bench) -> list[Figure]:
    """Scene to object list, by the tower (``objects``) and by the whole model (``extract``)."""
    clock = Clock()
    rows = bench.some(bench.rows("nlvr"))
    boxed, strict, named = Counts(), Counts(), Counts()
    whole = asked = 0
    for index, row in enumerate(bench.follow(rows, "nlvr_scene")):
        image, true = bench.image("nlvr", row), [o for box in row["boxes"] for o in box]
        items = bench.model.objects(image).items
        here = match_counts(items, true, _overlaps)
        boxed, strict = boxed + here, strict + match_counts(items, true, _strict)
        whole += here.fp == here.fn == 0
        if index < SCENE_ANSWERS:
            asked += 1
            data = bench.extract(image, SCENE_SCHEMA).data or {"objects": []}
            named += match_counts(data["objects"], true, _named)
    n = sum(len(box) for row in rows for box in row["boxes"])
    return [
        Figure("nlvr_scene", "object F1, tower", boxed.f1, n, 0.85, 0.99, seconds=clock(), note=f"`objects` on {len(rows)} scenes: shape and colour equal and IoU >= 0.5, one to one"),
        Figure("nlvr_scene", "object F1, JSON", named.f1, named.tp + named.fn, 0.85, 0.99, note=f"`extract` of an array of {{shape, color}} on the first {asked} scenes: equal pairs, one to one, without places"),
        Figure("nlvr_scene", "object F1, tower, the pack's rule", strict.f1, n, note="size equal too, left and top within 2 px"),
        share("nlvr_scene", "scenes all right, tower", whole, len(rows)),
    ]  # fmt: skip


def tesseract_version() -> str | None:
    """First line of ``tesseract --version``, None where it is not installed."""
    if shutil.which("tesseract") is None:
        return None
    done = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0]


def tesseract(image: Image.Image) -> str:
    """Text by Tesseract in page mode 6, the picture enlarged twice; as many threads as torch uses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS).save(path, compress_level=1)
        threads = {**os.environ, "OMP_THREAD_LIMIT": str(torch.get_num_threads())}
        done = subprocess.run(["tesseract", str(path), "stdout", "--psm", "6", "-l", "eng"], capture_output=True, text=True, check=True, env=threads)
        return done.stdout


def sroie_read(bench: Bench) -> list[Figure]:
    """Whole receipts read by ``read`` and by Tesseract: each labelled line against its best window in the reading."""
    rows = bench.some(bench.rows("sroie"))
    ours, theirs = [0, 0, 0], [0, 0, 0]
    own_seconds = other_seconds = 0.0
    other = tesseract_version()
    count = 0
    for row in bench.follow(rows, "sroie_read"):
        true = [line[4] for line in row["lines"]]
        image = bench.image("sroie", row)
        clock = Clock()
        reading = bench.model.read(image).text
        own_seconds += clock()
        ours = [a + b for a, b in zip(ours, reading_accuracy(true, reading), strict=True)]
        count += len(true)
        if other:
            clock = Clock()
            reading = tesseract(image.rgb)
            other_seconds += clock()
            theirs = [a + b for a, b in zip(theirs, reading_accuracy(true, reading), strict=True)]
    aim = 1 - theirs[0] / theirs[1] if theirs[1] else None
    note = "case and spaces ignored; the aim is Tesseract's own figure here" if other else "case and spaces ignored; Tesseract is not installed"
    out = [
        share("sroie_read", "character accuracy", ours[1] - ours[0], ours[1], floor=0.88, aim=aim, seconds=own_seconds, note=note),
        share("sroie_read", "lines exact", ours[2], count),
        Figure("sroie_read", "seconds a page", own_seconds / max(len(rows), 1), len(rows), unit="s"),
    ]
    if other:
        out += [
            share("sroie_read", "character accuracy, Tesseract", theirs[1] - theirs[0], theirs[1], seconds=other_seconds, note=f"{other}, --psm 6, enlarged twice"),
            share("sroie_read", "lines exact, Tesseract", theirs[2], count),
            Figure("sroie_read", "seconds a page, Tesseract", other_seconds / max(len(rows), 1), len(rows), unit="s"),
        ]
    return out


#: The four fields of a receipt as a user would ask for them.
RECEIPT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "company": {"type": ["string", "null"], "maxLength": 48},
        "date": {"type": ["string", "null"], "maxLength": 16},
        "address": {"type": ["string", "null"], "maxLength": 96},
        "total": {"type": ["string", "null"], "maxLength": 12},
    },
    "required": ["company", "date", "address", "total"],
}


def sroie_fields(bench: Bench) -> list[Figure]:
    """Company, date, address and total of receipts: micro F1 as the pack defines it."""
    clock = Clock()
    rows = bench.some(bench.rows("sroie"))
    scores: dict[str, Counts] = defaultdict(Counts)
    every, clean, similar, amounts = Counts(), Counts(), [], [0, 0]
    placed: list[bool] = []
    for row in bench.follow(rows, "sroie_fields"):
        result = bench.extract(bench.image("sroie", row), RECEIPT_SCHEMA)
        for name in RECEIPT_SCHEMA["properties"]:
            mark = row.get("marks", {}).get(name)
            if mark == "empty_label":
                continue
            truth, said = row["fields"].get(name), (result.data or {}).get(name)
            here = field_counts(said, truth)
            every, scores[name] = every + here, scores[name] + here
            clean = clean if mark == "not_in_lines" else clean + here
            if normalised(truth):
                similar.append(anls(said, truth))
                if name == "total":
                    amounts = [amounts[0] + (as_number(said) is not None and as_number(said) == as_number(truth)), amounts[1] + 1]
            evidence = [row["lines"][i][:4] for i in row["evidence"].get(name) or []]
            if evidence:
                found = result.fields.get(f"/{name}")
                placed.append(found is not None and _in_evidence(found.box, evidence, name))
    n = every.tp + every.fn
    return [
        Figure("sroie_fields", "field F1", every.f1, n, 0.25, 0.65, seconds=clock(), note="micro over four fields; NFKC, upper case, blanks squeezed"),
        Figure("sroie_fields", "field F1, labels that stand in the lines", clean.f1, clean.tp + clean.fn),
        *(share("sroie_fields", f"exact, {name}", s.tp, s.tp + s.fn) for name, s in scores.items()),
        Figure("sroie_fields", "ANLS", sum(similar) / max(len(similar), 1), len(similar)),
        share("sroie_fields", "total equal as a number", amounts[0], amounts[1]),
        share("sroie_fields", "centre of the box in the evidence", sum(placed), len(placed)),
    ]


def _in_evidence(box: tuple[float, ...] | None, lines: list[list[float]], name: str) -> bool:
    """Dates and totals: inside one of the lines; companies and addresses: inside their union."""
    if name in ("company", "address"):
        lines = [[min(b[0] for b in lines), min(b[1] for b in lines), max(b[2] for b in lines), max(b[3] for b in lines)]]
    return any(centre_inside(box, line) for line in lines)


def gui(bench: Bench) -> list[Figure]:
    """Instructions on screenshots of web templates that training never saw, per kind of instruction."""
    clock = Clock()
    rows = bench.rows("gui")
    if not any("split" in row for row in rows):
        kept = [row for row in rows if row["template"] in GUI_TEMPLATES]
        rows = kept if kept and bench.split != "all" else rows
    hits: dict[str, list[bool]] = defaultdict(list)
    overlaps = actions = nowhere = 0
    for row in bench.follow(bench.some(rows), "gui"):
        image = load_image(bench.image("gui", row).rgb)
        for element in row["elements"]:
            for wish in element["instructions"]:
                result = bench.model.ground(image, wish["text"])
                bench.validity.check(result, GROUNDED)
                hit = centre_inside(result.box, element["bbox_px"])
                for group in ("", wish["kind"], f"template {row['template']}", f"type {element['type']}"):
                    hits[group].append(hit)
                overlaps += result.box is not None and box_iou(result.box, element["bbox_px"]) >= 0.5
                nowhere += result.box is None
                actions += result.data["action"] == wish["action"]["action"]
    every = hits.pop("", [])
    templates = [sum(h) / len(h) for k, h in hits.items() if k.startswith("template ")]
    return [
        share("gui", "centre in target", sum(every), len(every), aim=0.50, seconds=clock(), note="1 of 8 by chance among the listed elements"),
        *(share("gui", f"centre in target, {k}", sum(h), len(h)) for k, h in sorted(hits.items())),
        Figure("gui", "centre in target, mean over templates", sum(templates) / max(len(templates), 1), len(templates)),
        share("gui", "IoU >= 0.5", overlaps, len(every)),
        share("gui", "action right", actions, len(every)),
        share("gui", "pointed nowhere", nowhere, len(every), smaller=True),
    ]
