"""Train the reader tower on rendered pages: every cell names the characters and things whose centres it holds.

``python -m examples.pocket.train_reader --data runs/reader --out runs/reader.pt --minutes 20``
Resumes from ``--out`` when it exists (``--fresh`` starts anew). Logs loss and accuracy on held-out fonts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vision.reader import ReaderConfig, ReaderOutput, ReaderTower
from vlm.training.optim import EMA, Optimisers, warmup_stable_decay

Batch = dict[str, Tensor]


def load_shards(folder: Path) -> list[dict[str, np.ndarray]]:
    """Every finished shard of the folder, whole in memory."""
    return [dict(np.load(p)) for p in sorted(folder.glob("shard-*[0-9].npz"))]


def batches(folder: Path, size: int, seed: int) -> Iterator[Batch]:
    """Endless batches, each from one shard drawn at random, so that kinds of pages alternate; all shards stay in memory.

    Shards that appear while training runs are taken up.
    """
    rng = np.random.default_rng(seed)
    shards: dict[Path, dict[str, np.ndarray]] = {}
    for step in itertools.count():
        if step % 50 == 0:
            for name in sorted(set(folder.glob("shard-*[0-9].npz")) - set(shards)):
                shards[name] = dict(np.load(name))
        names = list(shards)
        pages = np.array([len(shards[n]["pixels"]) for n in names])
        shard = shards[names[int(rng.choice(len(names), p=pages / pages.sum()))]]
        rows = np.sort(rng.choice(len(shard["pixels"]), size, replace=False))
        yield augment({k: torch.from_numpy(v[rows]) for k, v in shard.items()}, rng)


def augment(batch: Batch, rng: np.random.Generator) -> Batch:
    """Cheap variety at load time: inverted pages, shuffled colour channels, contrast."""
    pixels = batch["pixels"].permute(0, 3, 1, 2).float().div_(255)
    if rng.random() < 0.12:
        pixels = 1 - pixels
    if rng.random() < 0.3:
        pixels = pixels[:, torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.5:
        pixels = (pixels - 0.5) * float(rng.uniform(0.6, 1.2)) + 0.5 + float(rng.uniform(-0.15, 0.15))
    return {**batch, "pixels": pixels.clamp_(0, 1).contiguous(memory_format=torch.channels_last)}


def reader_loss(out: ReaderOutput, batch: Batch, empty_weight: float = 0.1) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of characters (ink cells weight 1, empty ones `empty_weight`) and of things, L1 of boxes."""
    classes = batch["classes"].long()  # [B,2,h,w]
    logits = out.chars.float().movedim(2, -1)  # [B,2,h,w,C]
    ink = classes > 0
    loss_all = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), classes.reshape(-1), reduction="none").view_as(ink)
    weight = torch.where(ink, 1.0, empty_weight)
    chars = (loss_all * weight).sum() / weight.sum()
    boxes = out.char_boxes.float().movedim(2, -1)[ink]
    target = batch["boxes"].float().movedim(2, -1)[ink]
    place = F.smooth_l1_loss(boxes, target, beta=0.1) if len(boxes) else chars * 0
    follows = batch["blanks"]
    told = ink & (follows < 2)
    gaps = F.binary_cross_entropy_with_logits(out.blanks.float()[told], follows[told].float()) if told.any() else chars * 0
    loss = chars + place + 0.3 * gaps
    with torch.no_grad():
        named = logits.argmax(-1)
        stats = {
            "chars": float(chars), "place": float(place),
            "false_ink": float((named > 0)[~ink].float().mean()),
        }  # fmt: skip
        if ink.any():
            stats["right"] = float((named == classes)[ink].float().mean())
        if told.any():
            stats["gaps"] = float(((out.blanks > 0)[told] == (follows[told] == 1)).float().mean())
    if "things" not in batch:  # a page of text: no things at all
        batch = {**batch, "things": torch.zeros_like(classes[:, 0]), "colors": torch.zeros_like(classes[:, 0])}
    return loss + thing_loss(out, batch, stats), stats


def thing_loss(out: ReaderOutput, batch: Batch, stats: dict[str, float]) -> Tensor:
    """Class, colour and box of objects and widgets at the cell of their centre; 255 marks what is not labelled."""
    things, colors = batch["things"].long(), batch["colors"].long()
    logits = out.things.float().movedim(1, -1)
    present = (things > 0) & (things < 255)
    known = things < 255
    each = F.cross_entropy(logits[known], things[known], reduction="none")
    weight = torch.where(present[known], 1.0, 0.02)
    loss = (each * weight).sum() / weight.sum().clamp_min(1)
    tinted = colors > 0
    if tinted.any():
        loss = loss + F.cross_entropy(out.colors.float().movedim(1, -1)[tinted], colors[tinted])
    if present.any():
        boxes = out.thing_boxes.float().movedim(1, -1)[present]
        loss = loss + 0.5 * F.smooth_l1_loss(boxes, batch["thing_boxes"].float().movedim(1, -1)[present], beta=0.1)
        stats["things"] = float((logits.argmax(-1) == things)[present].float().mean())
    return loss


@torch.no_grad()
def evaluate(model: ReaderTower, shards: list[dict[str, np.ndarray]], size: int = 8) -> dict[str, float]:
    """Mean statistics over held-out shards, weights as they are in `model`, eval mode."""
    model.eval()
    rows: list[dict[str, float]] = []
    for shard in shards:
        for i in range(0, len(shard["pixels"]), size):
            batch = {k: torch.from_numpy(v[i : i + size]) for k, v in shard.items()}
            batch["pixels"] = batch["pixels"].permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                out = model(batch["pixels"])
            rows.append(reader_loss(out, batch)[1])
    model.train()
    return {k: float(np.mean([r[k] for r in rows if k in r])) for k in sorted(set().union(*rows))}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=1.5e-3)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--decay", type=float, default=0.3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = ReaderTower(ReaderConfig()).to(memory_format=torch.channels_last)
    optim = Optimisers(model, args.muon_lr, args.adam_lr)
    ema = EMA(model, args.ema)
    step = 0
    if args.out.exists() and not args.fresh:
        saved = torch.load(args.out, weights_only=True)
        model.load_state_dict(saved["model"])
        ema.average = saved["ema"]
        optim.load_state_dict(saved["optim"])
        step = saved["step"]
    held = load_shards(args.held) if args.held else []
    shadow = ReaderTower(ReaderConfig()).to(memory_format=torch.channels_last)
    log = args.out.with_suffix(".jsonl").open("a")
    start = last_save = time.monotonic()
    total = args.minutes * 60
    recent: dict[str, list[float]] = {}
    bar = tqdm(disable=None)
    for batch in batches(args.data, args.batch, args.seed + step):
        done = (time.monotonic() - start) / total
        if done >= 1:
            break
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch["pixels"])
        loss, stats = reader_loss(out, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = optim.step(warmup_stable_decay(done, decay=args.decay))
        ema.update(model)
        step += 1
        bar.update()
        for name, value in stats.items():
            recent.setdefault(name, []).append(value)
        if step % 50 == 0:
            stats = {name: float(np.mean(values)) for name, values in recent.items()}
            recent = {}
            row = {"step": step, "minutes": round(done * args.minutes, 2), "loss": round(float(loss.detach()), 4), "norm": round(norm, 3), **{k: round(v, 4) for k, v in stats.items()}}
            log.write(json.dumps(row) + "\n")
            log.flush()
        if time.monotonic() - last_save > 180:
            save(args.out, model, ema, optim, step)
            last_save = time.monotonic()
            if held:
                shadow.load_state_dict(ema.average)
                log.write(json.dumps({"step": step, "held": evaluate(shadow, held)}) + "\n")
                log.flush()
    save(args.out, model, ema, optim, step)
    if held:
        shadow.load_state_dict(ema.average)
        log.write(json.dumps({"step": step, "held": evaluate(shadow, held)}) + "\n")


def save(path: Path, model: ReaderTower, ema: EMA, optim: Optimisers, step: int) -> None:
    """Write the checkpoint whole or not at all."""
    partial = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "ema": ema.state_dict(), "optim": optim.state_dict(), "step": step}, partial)
    partial.rename(path)


if __name__ == "__main__":
    main()
