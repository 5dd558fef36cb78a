"""lora-loom blocks: which blocks the LoRA of a finished run needs, and a smaller file without those that it does not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...lora_core.messages.message import Message
from . import DONE, in_words, put
from .arguments import add_threads

if TYPE_CHECKING:
    from ...lora_core.training.usefulness import Usefulness


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run, whose base and pictures are still there")
    parser.add_argument(
        "--bound",
        type=float,
        default=1.0,
        help="percent of the LoRA's effect that may be lost by what is left out, in all (default: 1)",
    )
    parser.add_argument("--to", type=Path, help="write the LoRA without the blocks it does not need into this file")
    parser.add_argument("--picture", type=Path, help="draw what is lost without each block into this PNG file")
    add_threads(parser)


def execute(args: argparse.Namespace) -> int:
    from ...convert import FormatError
    from ...lora_core.backends.threads import use_threads
    from ...lora_core.config import check
    from ...lora_core.messages.figures import figure
    from ...lora_core.runs.reports import ProgressBar
    from ..jobs.blocks import chart, finished_job, measured, smaller

    check("--bound", args.bound, float, {"low": 0.0, "high": 100.0, "choices": ()})
    if args.to is not None and args.to.exists():
        raise FormatError("file.exists", file=args.to.name)
    use_threads(args.threads)
    job, file = finished_job(args.run)
    usefulness = measured(job, file, args.bound / 100, ProgressBar())
    _show(usefulness)
    if args.picture:
        try:
            chart(usefulness).save(args.picture)
        except (OSError, ValueError, KeyError) as error:
            raise FormatError("picture.unwritten", file=args.picture, reason=error) from error
    if args.to and usefulness.idle:
        before, after = smaller(file, job.backend.family, usefulness.idle, args.to)
        sizes = {"size": figure(after / 1e6), "whole": figure(before / 1e6)}
        put(Message.of("terminal.smaller", file=args.to, **sizes))
    return DONE


def _show(usefulness: Usefulness) -> None:
    sys.stdout.write("".join(f"{in_words(line)}\n" for line in usefulness.messages()))
