"""Train adapter, backbone and copy head of pocket on rendered pages.

``python -m examples.pocket.train_backbone --out runs/backbone.pt --minutes 60``

Two sources of visual tokens: ``--reader none`` simulates the reader from known glyphs (nothing is drawn), a checkpoint
path draws and degrades every page and reads it with the frozen tower. Resumes from ``--out`` when it exists.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.pocket.curriculum import STAGES, draw
from examples.pocket.lessons import NOWHERE, UNKNOWN, Lesson, LessonMaker, see
from examples.pocket.reading import Reader
from vision.adapter import VisualBatch
from vision.tokens import VisualTokens
from vlm.backbone.slots import join
from vlm.families.pocket import PackedPocket, PocketModel, Slots, Words
from vlm.processor.tokenizer import Tokenizer
from vlm.processor.words import prompt_words
from vlm.training.masking import views
from vlm.training.optim import EMA, Optimisers, warmup_stable_decay

TOKENIZER = Tokenizer.pocket()
#: Control tokens before the picture and after the text, as the pocket template sets them.
FRAME = ([TOKENIZER.special[n] for n in ("<|bos|>", "<|user|>")], [TOKENIZER.special[n] for n in ("<|end|>", "<|assistant|>")])
#: A page with its lessons: visual tokens, features [F, n] of their cells (or None), canvases.
Item = tuple[VisualTokens, np.ndarray | None, list[Lesson]]


@dataclass(frozen=True)
class Settings:
    """What a data worker needs to know."""

    reader: str
    seed: int
    error: float
    stage: str = "full"
    max_tokens: int = 640
    max_canvas: int = 288


def produce(settings: Settings, queue: Any, number: int) -> None:
    """Worker: draw samples, read them, make lessons, for ever."""
    torch.set_num_threads(1)
    os.nice(5)
    rng = np.random.default_rng((settings.seed, number))
    maker = LessonMaker(TOKENIZER)
    reader = Reader.from_checkpoint(Path(settings.reader)) if settings.reader != "none" else None
    while True:
        sample = draw(rng, settings.stage)
        if reader is None:
            tokens, features = see(sample, rng, float(rng.beta(1, 12)) * settings.error), None
        else:
            tokens, features = reader.see(sample, rng)
        if not len(tokens) or len(tokens) > settings.max_tokens:
            continue
        lessons = [maker.make(q, tokens, sample.page, rng) for q in sample.queries]
        lessons = [x for x in lessons if len(x.ids) <= settings.max_canvas]
        if lessons:
            queue.put((tokens, features, lessons))


def items(settings: Settings, workers: int) -> Iterator[Item]:
    """Endless items from background workers."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue(maxsize=128)
    started = [context.Process(target=produce, args=(settings, queue, number), daemon=True) for number in range(workers)]
    for process in started:
        process.start()
    while True:
        try:
            yield queue.get(timeout=30)
        except Empty:
            if not all(process.is_alive() for process in started):
                raise RuntimeError("a data worker died; its traceback is above") from None


@dataclass
class Batch:
    """Pages and their canvases; ``row[i]`` is the page of canvas i."""

    visual: VisualBatch
    prompt: Tensor
    prompt_valid: Tensor
    media: Tensor
    row: Tensor
    ids: Tensor
    valid: Tensor
    answer: Tensor
    slots: Slots
    words: Words
    pointer: Tensor
    tasks: list[str]


def collate(pages: list[Item], width: int) -> Batch:
    """Pad; pages whose lessons have no instruction share one prefix, others get a prefix for each lesson."""
    tokens, features, texts, lessons, row = [], [], [], [], []
    for visual, feature, given in pages:
        groups: dict[tuple[int, ...], list[Lesson]] = {}
        for lesson in given:
            groups.setdefault(tuple(lesson.instruction), []).append(lesson)
        for text, members in groups.items():
            tokens.append(visual)
            features.append(feature)
            texts.append(list(text))
            row += [len(tokens) - 1] * len(members)
            lessons += members
    visual_batch = VisualBatch.collate(tokens, [None] * len(tokens), width)
    for i, feature in enumerate(features):
        if feature is not None:
            visual_batch.features[i, : feature.shape[0]] = torch.from_numpy(feature).float()
    width_of = [len(FRAME[0]) + len(t) + len(x) + len(FRAME[1]) for t, x in zip(tokens, texts, strict=True)]
    prompt = torch.zeros(len(texts), max(width_of), dtype=torch.long)
    prompt_valid = torch.zeros_like(prompt, dtype=torch.bool)
    media = torch.zeros_like(prompt_valid)
    written = []
    for i, (t, x) in enumerate(zip(tokens, texts, strict=True)):
        ids = [*FRAME[0], *[0] * len(t), *x, *FRAME[1]]
        prompt[i, : len(ids)] = torch.tensor(ids)
        prompt_valid[i, : len(ids)] = True
        written.append(ids)
        media[i, len(FRAME[0]) : len(FRAME[0]) + len(t)] = True
    length = max(len(x.ids) for x in lessons)

    def padded(name: str, fill: int, dtype: torch.dtype) -> Tensor:
        out = torch.full((len(lessons), length), fill, dtype=dtype)
        for i, lesson in enumerate(lessons):
            out[i, : len(lesson.ids)] = torch.from_numpy(getattr(lesson, name))
        return out

    valid = torch.zeros(len(lessons), length, dtype=torch.bool)
    for i, lesson in enumerate(lessons):
        valid[i, : len(lesson.ids)] = True
    rows, word = prompt_words(written, TOKENIZER, prompt.shape[1])
    return Batch(
        visual_batch, prompt, prompt_valid, media, torch.tensor(row), padded("ids", 0, torch.long), valid,
        padded("answer", 0, torch.bool), Slots.of(padded("slot_index", 0, torch.long), join([x.slots for x in lessons], length)),
        Words(torch.from_numpy(rows), torch.from_numpy(word)), padded("pointer", NOWHERE, torch.long),
        [x.task for x in lessons],
    )  # fmt: skip


def lesson_loss(model: PackedPocket, batch: Batch, masks: Tensor, pad_weight: float = 0.3) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy at masked cells plus the copy head's pointer loss.

    Args:
        masks: [N, V, L] views of each canvas.
    """
    config = model.model.config.backbone
    count = masks.shape[1]
    here = batch.valid.unsqueeze(1).expand_as(masks)  # [N, V, L]
    asked = masks[here]  # [T]
    ids = batch.ids.unsqueeze(1).expand_as(masks)[here]
    behind = model.prefix(batch.prompt, batch.prompt_valid, batch.media, batch.words, batch.visual)
    lengths = batch.valid.sum(1).repeat_interleave(count).tolist()
    rows = batch.row.repeat_interleave(count).tolist()
    index, slot = (t.unsqueeze(1).expand_as(masks)[here] for t in (batch.slots.index, batch.slots.slot))
    slots = Slots(index, slot, batch.slots.keys, batch.slots.kind, batch.slots.item)
    logits, scores = model.cells(ids.masked_fill(asked, config.mask_token_id), slots, asked, lengths, rows, behind)
    target, pointer = ids[asked], batch.pointer.unsqueeze(1).expand_as(masks)[masks]
    each = F.cross_entropy(logits, target, reduction="none")
    filler = target == config.pad_token_id
    weight = torch.where(filler, pad_weight, 1.0)
    text = (each * weight).sum() / weight.sum()
    known = (pointer != UNKNOWN) & ~filler
    aim = torch.where(pointer == NOWHERE, scores.shape[-1] - 1, pointer)
    misses = F.cross_entropy(scores[known], aim[known], reduction="none")
    copies = pointer[known] >= 0
    points = (misses * torch.where(copies, 1.0, 0.3)).mean()
    with torch.no_grad():
        right = logits.argmax(-1) == target
        hit = scores[known].argmax(-1) == aim[known]
        whole = (masks | ~batch.answer.unsqueeze(1)).all(-1, keepdim=True).expand_as(masks)[masks]
        task = torch.tensor([_TASKS.index(t) for t in batch.tasks])[:, None, None].expand_as(masks)[masks]
        stats = {"text": float(text), "points": float(points), "canvases": float(len(batch.tasks) * count)}
        for name, chosen in (("right", ~filler), ("right_all_masked", ~filler & whole)):
            if chosen.any():
                stats[name] = float(right[chosen].float().mean())
        if copies.any():
            stats["hit"] = float(hit[copies].float().mean())
        for name in set(batch.tasks):
            chosen = (task == _TASKS.index(name)) & ~filler & whole
            if chosen.any():
                stats[f"all_masked/{name}"] = float(right[chosen].float().mean())
    return text + points, stats


_TASKS = ("extract", "ask", "caption", "read", "ground", "scene")


def bucketed(source: Iterator[Item], budget: int, pool: int, rng: np.random.Generator) -> Iterator[list[Item]]:
    """Groups of pages of like size whose padded prefix and canvas cells stay under `budget`."""
    waiting: list[Item] = []
    while True:
        while len(waiting) < pool:
            waiting.append(next(source))
        waiting.sort(key=lambda item: len(item[0]))
        start = int(rng.integers(len(waiting)))
        group: list[Item] = []
        cost = longest = canvas = rows = 0
        for item in waiting[start:]:
            longest, canvas = max(longest, len(item[0])), max(canvas, max(len(x.ids) for x in item[2]))
            rows += len(item[2])
            cost = (len(group) + 1) * longest + 2 * rows * canvas
            if group and cost > budget:
                break
            group.append(item)
        chosen = {id(g) for g in group}
        waiting = [w for w in waiting if id(w) not in chosen]
        yield group


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint whole or not at all."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    partial.rename(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reader", default="none")
    parser.add_argument("--stage", default="full", choices=list(STAGES))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--cells", type=int, default=6000, help="prefix and canvas cells a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--error", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="slower by a third to a half, starts at once")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = PocketModel()
    model.tower.requires_grad_(False)
    step = 0
    saved: dict[str, Any] = {}
    if args.out.exists() and not args.fresh:
        saved = torch.load(args.out, weights_only=True)
        model.load_state_dict(saved["model"])
        step = saved["step"]
    packed = PackedPocket(model, compile=not args.no_compile)
    optim = Optimisers(model, args.muon_lr, args.adam_lr)
    trained = torch.nn.ModuleDict({name: part for name, part in model.named_children() if name != "tower"})
    ema = EMA(trained, args.ema)
    if saved:
        optim.load_state_dict(saved["optim"])
        ema.average = saved["ema"]
    settings = Settings(args.reader, args.seed + step, args.error, args.stage)
    log = args.out.with_suffix(".jsonl").open("a")
    rng = np.random.default_rng(args.seed + step)
    start = last_save = time.monotonic()
    seen: dict[str, list[float]] = {}
    pages = 0
    bar = tqdm(disable=None)
    for group in bucketed(items(settings, args.workers), args.cells, 48, rng):
        done = (time.monotonic() - start) / (args.minutes * 60)
        if done >= 1:
            break
        batch = collate(group, model.config.reader.width)
        pages += len(group)
        masks = views(batch.answer)
        with torch.autocast("cpu", torch.bfloat16):
            loss, stats = lesson_loss(packed, batch, masks)
        loss.backward()  # type: ignore[no-untyped-call]
        stats["norm"] = optim.step(warmup_stable_decay(done, decay=args.decay))
        ema.update(trained)
        step += 1
        bar.update()
        for k, v in stats.items():
            seen.setdefault(k, []).append(v)
        if step % 25 == 0:
            row = {"step": step, "minutes": round(done * args.minutes, 2), "pages": pages, **{k: round(float(np.mean(v)), 4) for k, v in sorted(seen.items())}}
            log.write(json.dumps(row) + "\n")
            log.flush()
            seen = {}
        if time.monotonic() - last_save > 180:
            save(args.out, {"model": model.state_dict(), "ema": ema.state_dict(), "optim": optim.state_dict(), "step": step})
            last_save = time.monotonic()
    save(args.out, {"model": model.state_dict(), "ema": ema.state_dict(), "optim": optim.state_dict(), "step": step})


if __name__ == "__main__":
    main()
