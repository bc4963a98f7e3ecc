"""Train the reader tower on rendered pages: every cell names the characters and things whose centres it holds.

``python -m examples.pocket.train_reader --data runs/reader --out runs/reader.pt --minutes 20``
Resumes from ``--out`` when it exists (``--fresh`` starts anew). Logs loss and accuracy on held-out fonts.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.pocket.options import add_training_options, trainer_config
from vision.reader import ReaderConfig, ReaderOutput, ReaderTower
from vlm.training.trainer import Trainer, move

Batch = dict[str, Tensor]
#: What an empty cell counts beside one with a character, and beside one with a thing.
EMPTY_CHAR, EMPTY_THING = 0.4, 0.1
#: How much oftener pages with coloured objects are drawn than their number says: they are few, and cheap to learn.
COLOURED = 2.0


class ShardBatches:
    """Endless batches, each from one shard drawn at random, so that kinds of pages alternate; all shards stay in memory.

    Shards that appear while training runs are taken up. Batch `n` is drawn by a generator of its own, so that its number
    and the shards known by then say how to go on.

    Args:
        folder: holds ``shard-NNNNN.npz`` files. size: pages of a batch.
    """

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        self.folder, self.size, self.seed = folder, size, seed
        self.number = 0
        self.names: list[str] = []
        self._shards: dict[str, dict[str, np.ndarray]] = {}

    def __next__(self) -> Batch:
        if self.number % 50 == 0 or not self.names:
            self.names = sorted(p.name for p in self.folder.glob("shard-*[0-9].npz"))
            if not self.names:
                raise SystemExit(f"no shards in {self.folder}: run examples.pocket.render_reader first")
        rng = np.random.default_rng((self.seed, self.number))
        self.number += 1
        share = np.array([self._share(name) for name in self.names])
        shard = self._shard(self.names[int(rng.choice(len(share), p=share / share.sum()))])
        rows = np.sort(rng.choice(len(shard["pixels"]), self.size, replace=False))
        return augment({k: torch.from_numpy(v[rows]) for k, v in shard.items()}, rng)

    @functools.cache  # noqa: B019 - lives as long as the training
    def _share(self, name: str) -> float:
        shard = self._shard(name)
        return len(shard["pixels"]) * (COLOURED if _coloured(shard) else 1.0)

    def _shard(self, name: str) -> dict[str, np.ndarray]:
        if name not in self._shards:
            self._shards[name] = dict(np.load(self.folder / name))
        return self._shards[name]

    def state_dict(self) -> dict[str, Any]:
        """Number of the next batch and the shards known."""
        return {"number": self.number, "names": list(self.names)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there; shards that are gone are left out."""
        self.number = state["number"]
        self.names = [name for name in state["names"] if (self.folder / name).exists()]


def augment(batch: Batch, rng: np.random.Generator) -> Batch:
    """Cheap variety at load time: inverted pages, shuffled colour channels, contrast."""
    pixels = as_pixels(batch["pixels"])
    free = not _coloured(batch)  # where colours are asked for, they stay
    if rng.random() < 0.12 and free:
        pixels = 1 - pixels
    if rng.random() < 0.3 and free:
        pixels = pixels[:, torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.5 and free:
        pixels = (pixels - 0.5) * float(rng.uniform(0.6, 1.2)) + 0.5 + float(rng.uniform(-0.15, 0.15))
    return {**batch, "pixels": pixels.clamp_(0, 1).contiguous(memory_format=torch.channels_last)}


def _coloured(batch: Mapping[str, Any]) -> bool:
    """Whether objects with labelled colours are on the pages."""
    return "colors" in batch and bool((batch["colors"] > 0).any())


def as_pixels(bytes_: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in 0..1."""
    return bytes_.permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=torch.channels_last)


class ReaderObjective:
    """Cross-entropy of characters and things (empty cells count little), boxes, gaps and colours.

    Args:
        model: the tower. compile: fuse its element-wise operations.
    """

    def __init__(self, model: ReaderTower, compile: bool = False) -> None:
        self.model: Callable[[Tensor], ReaderOutput] = torch.compile(model, dynamic=False) if compile else model

    def totals(self, batch: Batch) -> dict[str, float]:
        """Weights of the cells that each term is a mean over."""
        ink = batch["classes"] > 0
        things, colors = _things(batch)
        present = (things > 0) & (things < 255)
        n = {k: float(v.sum()) for k, v in {"ink": ink, "told": ink & (batch["blanks"] < 2), "present": present, "tinted": colors > 0}.items()}
        empty = float(((things == 0)).sum())
        return {**n, "chars": n["ink"] + EMPTY_CHAR * (ink.numel() - n["ink"]), "things": n["present"] + EMPTY_THING * empty}

    def __call__(self, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies of a batch."""
        return reader_loss(self.model(batch["pixels"]), batch, totals)


def reader_loss(out: ReaderOutput, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
    """Sums of each term over its total (see :meth:`ReaderObjective.totals`), and statistics."""
    n = {k: max(v, 1.0) for k, v in totals.items()}  # a term without cells is zero
    classes = batch["classes"].long()  # [B,2,h,w]
    logits = out.chars.float().movedim(2, -1)  # [B,2,h,w,C]
    ink = classes > 0
    each = F.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="none").view_as(ink)
    chars = (each * torch.where(ink, 1.0, EMPTY_CHAR)).sum() / n["chars"]
    boxes, target = (b.float().movedim(2, -1)[ink] for b in (out.char_boxes, batch["boxes"]))  # [I,4]
    place = F.smooth_l1_loss(boxes, target, beta=0.1, reduction="sum") / (4 * n["ink"])
    follows = batch["blanks"]
    told = ink & (follows < 2)
    gaps = F.binary_cross_entropy_with_logits(out.blanks.float()[told], follows[told].float(), reduction="sum") / n["told"]
    with torch.no_grad():
        named = logits.argmax(-1)
        stats = {"chars": float(chars), "place": float(place), "false_ink": float((named > 0)[~ink].float().mean())}
        if ink.any():
            stats["right"] = float((named == classes)[ink].float().mean())
        if told.any():
            stats["gaps"] = float(((out.blanks > 0)[told] == (follows[told] == 1)).float().mean())
    return chars + place + 0.3 * gaps + thing_loss(out, batch, n, stats), stats


def thing_loss(out: ReaderOutput, batch: Batch, n: Mapping[str, float], stats: dict[str, float]) -> Tensor:
    """Class, colour and box of objects and widgets at the cell of their centre; 255 marks what is not labelled."""
    things, colors = _things(batch)
    logits = out.things.float().movedim(1, -1)
    known, present, tinted = things < 255, (things > 0) & (things < 255), colors > 0
    each = F.cross_entropy(logits[known], things[known], reduction="none")
    loss = (each * torch.where(present[known], 1.0, EMPTY_THING)).sum() / n["things"]
    loss = loss + F.cross_entropy(out.colors.float().movedim(1, -1)[tinted], colors[tinted], reduction="sum") / n["tinted"]
    if present.any():
        boxes, target = (b.float().movedim(1, -1)[present] for b in (out.thing_boxes, batch["thing_boxes"]))
        loss = loss + 0.5 * F.smooth_l1_loss(boxes, target, beta=0.1, reduction="sum") / (4 * n["present"])
        stats["things"] = float((logits.argmax(-1) == things)[present].float().mean())
    return loss


def _things(batch: Batch) -> tuple[Tensor, Tensor]:
    """Thing and colour classes [B, h, w]; a page of text holds neither."""
    if "things" in batch:
        return batch["things"].long(), batch["colors"].long()
    none = torch.zeros_like(batch["classes"][:, 0], dtype=torch.long)
    return none, none


class HeldOut:
    """Mean statistics of averaged weights over the shards of a folder.

    Args:
        device: where to run. size: pages at a time.
    """

    def __init__(self, folder: Path, device: str, size: int = 8) -> None:
        self.shards = [dict(np.load(p)) for p in sorted(folder.glob("shard-*[0-9].npz"))]
        self.model = ReaderTower(ReaderConfig()).to(device, memory_format=torch.channels_last).eval()
        self.device, self.size = torch.device(device), size

    @torch.no_grad()
    def __call__(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Statistics of these weights."""
        self.model.load_state_dict(weights)
        objective = ReaderObjective(self.model)
        rows: list[dict[str, float]] = []
        for shard in self.shards:
            for i in range(0, len(shard["pixels"]), self.size):
                batch = {k: torch.from_numpy(v[i : i + self.size]) for k, v in shard.items()}
                batch = move({**batch, "pixels": as_pixels(batch["pixels"])}, self.device)
                with torch.autocast(self.device.type, torch.bfloat16):
                    rows.append(objective(batch, objective.totals(batch))[1])
        return {k: float(np.mean([r[k] for r in rows if k in r])) for k in sorted(set().union(*rows))}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_options(parser, minutes=20, adam_lr=1.5e-3, threads=2)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held", type=Path, default=None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steady", action="store_true", help="normalise by the running statistics, as reading does; for all but the first half hour")
    parser.add_argument("--no-compile", action="store_true", help="starts a minute earlier, slower by a fifth")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = ReaderTower(ReaderConfig()).to(memory_format=torch.channels_last)
    model.steady = args.steady
    trainer = Trainer(
        model, ReaderObjective(model, compile=not args.no_compile), ShardBatches(args.data, args.batch, args.seed), trainer_config(args, log_every=50), args.out,
        evaluate=HeldOut(args.held, args.device) if args.held else None, fresh=args.fresh, new_schedule=args.new_schedule,
    )  # fmt: skip
    trainer.run()


if __name__ == "__main__":
    main()
