"""Train adapter, backbone and copy head of pocket on rendered pages.

``python -m examples.pocket.train_backbone --out runs/backbone.pt --minutes 60``

Two sources of visual tokens: ``--reader none`` simulates the reader from known glyphs (nothing is drawn), a checkpoint
path draws and degrades every page, but for a share of them, and reads it with the frozen tower. Resumes from ``--out`` when it exists.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Full
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.pocket.curriculum import STAGES, draw
from examples.pocket.lessons import Lesson, LessonMaker, see
from examples.pocket.options import add_training_options, trainer_config
from examples.pocket.reading import Reader
from vision.adapter import VisualBatch
from vision.tokens import VisualTokens
from vlm.backbone.slots import join
from vlm.families.pocket import PackedPocket, PocketModel, Slots, Words
from vlm.processor.tokenizer import Tokenizer
from vlm.processor.words import prompt_words
from vlm.training.losses import NOWHERE, UNKNOWN, masked_cross_entropy, pointer_loss
from vlm.training.masking import from_the_end, views
from vlm.training.trainer import Trainer

TOKENIZER = Tokenizer.pocket()
#: Control tokens before the picture and after the text, as the pocket template sets them.
FRAME = ([TOKENIZER.special[n] for n in ("<|bos|>", "<|user|>")], [TOKENIZER.special[n] for n in ("<|end|>", "<|assistant|>")])
#: What a cell of a free answer counts.
FREE_WEIGHT = 4.0
#: How many free answers are hidden from their end.
ORDERED = 0.75
#: A page with its lessons: visual tokens, features [F, n] of their cells (or None), canvases.
Item = tuple[VisualTokens, np.ndarray | None, list[Lesson]]


@dataclass(frozen=True)
class Settings:
    """What a data worker needs to know."""

    reader: str
    seed: int
    error: float
    stage: str = "full"
    features: bool = False
    simulated: float = 0.0
    max_tokens: int = 800
    max_canvas: int = 700


class ItemMaker:
    """Draws samples, reads them and makes lessons; item `n` depends on the seed and `n` only."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lessons = LessonMaker(TOKENIZER)
        self.reader = Reader.from_checkpoint(Path(settings.reader)) if settings.reader != "none" else None

    def __call__(self, n: int) -> Item:
        rng = np.random.default_rng((self.settings.seed, n))
        while True:
            sample = draw(rng, self.settings.stage)
            if self.reader is None or (sample.page is not None and rng.random() < self.settings.simulated):
                tokens, features = see(sample, rng, float(rng.beta(1, 12)) * self.settings.error), None
            else:
                tokens, features = self.reader.see(sample, rng)
                features = features if self.settings.features else None
            if not len(tokens) or len(tokens) > self.settings.max_tokens:
                continue
            lessons = [self.lessons.make(q, tokens, sample.page, rng) for q in sample.queries]
            lessons = [x for x in lessons if len(x.ids) <= self.settings.max_canvas]
            if lessons:
                return tokens, features, lessons


def produce(settings: Settings, queue: Any, first: int, stride: int) -> None:
    """Worker: items first, first + stride, ... until the trainer is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and this is how it tells us
    queue.cancel_join_thread()  # what nobody will read any more need not be flushed
    torch.set_num_threads(1)
    os.nice(5)
    make, parent, n = ItemMaker(settings), os.getppid(), first
    while os.getppid() == parent:
        item = make(n)
        while os.getppid() == parent:
            try:
                queue.put(item, timeout=5)
                break
            except Full:
                continue
        n += stride


class Items:
    """Items by number, made ahead by background workers; without workers, when asked for.

    Args:
        start: number of the first item; then they come in order.
    """

    def __init__(self, settings: Settings, workers: int, start: int, method: str = "fork") -> None:
        self.next, self.start = start, start
        self.make = ItemMaker(settings) if not workers else None
        context = multiprocessing.get_context(method)
        self.queues = [context.Queue(maxsize=max(2, 128 // workers)) for _ in range(workers)]
        self.workers = [
            context.Process(target=produce, args=(settings, queue, start + i, workers), daemon=True)  # type: ignore[attr-defined]
            for i, queue in enumerate(self.queues)
        ]
        for worker in self.workers:
            worker.start()

    def __next__(self) -> Item:
        n, self.next = self.next, self.next + 1
        if self.make is not None:
            return self.make(n)
        which = (n - self.start) % len(self.queues)
        while True:
            try:
                item: Item = self.queues[which].get(timeout=30)
                return item
            except Empty:
                if not self.workers[which].is_alive():
                    raise RuntimeError("a data worker died; its traceback is above") from None


@dataclass
class Batch:
    """Pages and their canvases; ``row[i]`` is the page of canvas i, ``masks[i]`` [V, L] its views."""

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
    masks: Tensor
    tasks: list[str]


def collate(pages: list[Item], width: int) -> Batch:
    """Pad and mask; pages whose lessons have no instruction share one prefix, others get a prefix for each lesson."""
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
    answer = padded("answer", 0, torch.bool)
    slots = Slots.of(padded("slot_index", 0, torch.long), join([x.slots for x in lessons], length))
    rows, word = prompt_words(written, TOKENIZER, prompt.shape[1])
    return Batch(
        visual_batch, prompt, prompt_valid, media, torch.tensor(row), padded("ids", 0, torch.long), valid, answer, slots,
        Words(torch.from_numpy(rows), torch.from_numpy(word)), padded("pointer", NOWHERE, torch.long),
        views(answer, noise=_noise(lessons, length)), [x.task for x in lessons],
    )  # fmt: skip


def _noise(lessons: list[Lesson], width: int) -> Tensor:
    """What is hidden first: anything in scaffolds; in most free texts the end, since they are written from the beginning."""
    noise = torch.rand(len(lessons), width)
    free = torch.tensor([bool(x.answer.all()) for x in lessons]) & (torch.rand(len(lessons)) < ORDERED)
    lengths = torch.tensor([int((x.ids != TOKENIZER.special["<|pad|>"]).sum()) for x in lessons])
    return torch.where(free.unsqueeze(1), from_the_end(lengths, width), noise)


class LessonObjective:
    """Cross-entropy at masked cells plus the copy head's pointer loss.

    Args:
        model: the model's packed forward. pad_weight: what a cell of filler counts.
    """

    def __init__(self, model: PackedPocket, pad_weight: float = 0.3) -> None:
        self.model, self.pad_weight = model, pad_weight
        self.pad, self.mask = model.model.config.backbone.pad_token_id, model.model.config.backbone.mask_token_id

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token and pointer of each masked cell [R]."""
        target, pointer = (t.unsqueeze(1).expand_as(batch.masks)[batch.masks] for t in (batch.ids, batch.pointer))
        return target, pointer

    def weights(self, batch: Batch) -> Tensor:
        """[R] what each masked cell counts: filler little, but the first behind a value, which says where it ends, in full;
        free answers, which are short beside documents, more."""
        filler = batch.ids == self.pad
        ends = filler & ~torch.nn.functional.pad(filler[:, :-1], (1, 0))
        free = ~(batch.slots.slot > 0).any(dim=1, keepdim=True)
        weight = torch.where(filler & ~ends, self.pad_weight, torch.where(free, FREE_WEIGHT, 1.0))
        return weight.unsqueeze(1).expand_as(batch.masks)[batch.masks]

    def totals(self, batch: Batch) -> dict[str, float]:
        """Weights of the masked cells, how many have a known source, and how many slots a known start."""
        _, pointer = self.targets(batch)
        first = batch.slots.index.unsqueeze(1).expand_as(batch.masks)[batch.masks] == 1
        return {
            "text": float(self.weights(batch).sum()), "points": float((pointer != UNKNOWN).sum()),
            "starts": float((pointer[first] != UNKNOWN).sum()),
        }  # fmt: skip

    def __call__(self, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies of a batch."""
        masks, count = batch.masks, batch.masks.shape[1]
        here = batch.valid.unsqueeze(1).expand_as(masks)  # [N, V, L]
        asked = masks[here]  # [T] every view of every canvas, end to end
        ids, index, slot = (t.unsqueeze(1).expand_as(masks)[here] for t in (batch.ids, batch.slots.index, batch.slots.slot))
        slots = replace(batch.slots, index=index, slot=slot)
        lengths, rows = batch.valid.sum(1).repeat_interleave(count).tolist(), batch.row.repeat_interleave(count).tolist()
        behind = self.model.prefix(batch.prompt, batch.prompt_valid, batch.media, batch.words, batch.visual)
        found = self.model.cells(ids.masked_fill(asked, self.mask), slots, asked, lengths, rows, behind)
        target, pointer = self.targets(batch)
        text = masked_cross_entropy(found.logits, target, self.weights(batch), totals["text"])
        points = pointer_loss(found.scores, pointer, total=max(totals["points"], 1.0))
        begins = pointer[(slots.index == 1)[asked]]
        starts = pointer_loss(found.start, begins, 1.0, total=max(totals["starts"], 1.0))
        stats = {"text": float(text.detach()), "points": float(points.detach()), "starts": float(starts.detach()), "canvases": float(len(batch.tasks) * count)}
        known = begins != UNKNOWN
        aim = begins.masked_fill(begins == NOWHERE, found.start.shape[-1] - 1)
        for name, which in (("begins", begins >= 0), ("absent", begins == NOWHERE)):
            if which.any():
                stats[name] = float((found.start.argmax(-1) == aim)[which & known].float().mean())
        return text + points + 0.5 * starts, {**stats, **self._accuracy(batch, found.logits, found.scores, target, pointer)}

    @torch.no_grad()
    def _accuracy(self, batch: Batch, logits: Tensor, scores: Tensor, target: Tensor, pointer: Tensor) -> dict[str, float]:
        masks = batch.masks
        right, solid, copies = logits.argmax(-1) == target, target != self.pad, pointer >= 0
        whole = (masks | ~batch.answer.unsqueeze(1)).all(-1, keepdim=True).expand_as(masks)[masks]  # all the answer hidden
        task = torch.tensor([_TASKS.index(t) for t in batch.tasks], device=masks.device)[:, None, None].expand_as(masks)[masks]
        chosen = {"right": (right, solid), "right_all_masked": (right, solid & whole), "hit": (scores.argmax(-1) == pointer, copies)}
        chosen |= {f"all_masked/{name}": (right, (task == _TASKS.index(name)) & solid & whole) for name in sorted(set(batch.tasks))}
        return {name: float(hits[cells].float().mean()) for name, (hits, cells) in chosen.items() if cells.any()}


_TASKS = ("extract", "ask", "caption", "read", "ground", "scene")


class LessonBatches:
    """Endless batches: groups of pages of like size whose padded prefix and canvas cells stay under `budget`.

    Args:
        width: of the tower's features. workers: background processes that make items. pool: items to choose from.
        method: how workers are started; 'spawn' beside a GPU.
    """

    def __init__(self, settings: Settings, width: int, *, workers: int, budget: int, pool: int = 48, method: str = "fork") -> None:
        self.settings, self.width, self.workers, self.budget, self.pool, self.method = settings, width, workers, budget, pool, method
        self.rng = np.random.default_rng(settings.seed)
        self.waiting: list[tuple[int, Item]] = []
        self.next = 0
        self._items: Items | None = None

    def __next__(self) -> Batch:
        return collate(self.group(), self.width)

    def group(self) -> list[Item]:
        """The pages of the next batch."""
        if self._items is None:
            self._items = Items(self.settings, self.workers, self.next, self.method)
        while len(self.waiting) < self.pool:
            self.waiting.append((self.next, next(self._items)))
            self.next += 1
        self.waiting.sort(key=lambda entry: (len(entry[1][0]), entry[0]))
        start = stop = int(self.rng.integers(len(self.waiting)))
        longest = canvas = rows = 0
        for _, (tokens, _, lessons) in self.waiting[start:]:
            longest, canvas = max(longest, len(tokens)), max(canvas, max(len(x.ids) for x in lessons))
            rows += len(lessons)
            if stop > start and (stop - start + 1) * longest + 2 * rows * canvas > self.budget:
                break
            stop += 1
        chosen = [item for _, item in self.waiting[start:stop]]
        del self.waiting[start:stop]
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Numbers of the items at hand and to come, and the choice's random state."""
        return {"next": self.next, "waiting": [n for n, _ in self.waiting], "random": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there; items at hand are made again from their numbers."""
        make = ItemMaker(self.settings)
        self.next, self.waiting, self._items = state["next"], [(n, make(n)) for n in state["waiting"]], None
        self.rng.bit_generator.state = state["random"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_options(parser, minutes=30, adam_lr=2e-3, threads=1)
    parser.add_argument("--reader", default="none")
    parser.add_argument("--simulated", type=float, default=0.0, help="share of pages that are not read although there is a reader: reading takes as long as learning")
    parser.add_argument("--features", action="store_true", help="hand on the tower's features; only for a tower that is not trained further")
    parser.add_argument("--stage", default="full", choices=list(STAGES))
    parser.add_argument("--cells", type=int, default=6000, help="prefix and canvas cells a batch")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--error", type=float, default=1.0)
    parser.add_argument("--no-compile", action="store_true", help="starts a minute earlier, slower by a tenth")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = PocketModel()
    model.tower.requires_grad_(False)
    data = LessonBatches(
        Settings(args.reader, args.seed, args.error, args.stage, args.features, args.simulated), model.config.reader.width, workers=args.workers, budget=args.cells,
        method="fork" if args.device == "cpu" else "spawn",
    )  # fmt: skip
    trainer = Trainer(
        model, LessonObjective(PackedPocket(model, compile=not args.no_compile)), data, trainer_config(args, log_every=25), args.out,
        averaged=torch.nn.ModuleDict({name: part for name, part in model.named_children() if name != "tower"}), fresh=args.fresh, new_schedule=args.new_schedule,
    )  # fmt: skip
    trainer.run()


if __name__ == "__main__":
    main()
