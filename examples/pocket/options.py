"""Command-line options that both training scripts share."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.training.trainer import TrainerConfig


def add_training_options(parser: argparse.ArgumentParser, *, minutes: float, adam_lr: float, threads: int) -> None:
    """The trainer's settings, with this stage's defaults."""
    parser.add_argument("--out", type=Path, required=True, help="checkpoint; training resumes from it if it exists")
    parser.add_argument("--fresh", action="store_true", help="start anew although --out exists")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=None, help=f"length of the schedule, interruptions not counted (default {minutes:g})")
    length.add_argument("--steps", type=int, default=None, help="length of the schedule in steps instead")
    parser.add_argument("--new-schedule", action="store_true", help="begin a schedule although the last one was interrupted")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=adam_lr)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=threads)
    parser.set_defaults(default_minutes=minutes)


def trainer_config(args: argparse.Namespace, log_every: int) -> TrainerConfig:
    """The settings that were given."""
    minutes = args.default_minutes if args.minutes is None and args.steps is None else args.minutes
    return TrainerConfig(
        steps=args.steps, minutes=minutes, accumulate=args.accumulate, device=args.device, precision=args.precision, muon_lr=args.muon_lr,
        adam_lr=args.adam_lr, ema=args.ema, decay=args.decay, seed=args.seed, log_every=log_every,
    )  # fmt: skip
