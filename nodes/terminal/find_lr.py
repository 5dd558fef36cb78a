"""lora-loom find-lr: a learning rate for a job, by a short test whose weights are thrown away."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from . import DONE
from .arguments import add_job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--steps", type=int, default=60, help="steps of the test (default: 60)")


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.backends.threads import use_threads
    from ...lora_core.runs.reports import ProgressBar
    from ...lora_core.training.lr_range import Trial, lr_range
    from ..jobs.headless import prepared
    from .settings import job_of

    use_threads(args.threads)
    job = prepared(job_of(args), args.out)
    with ProgressBar() as bar:
        result = lr_range(dataclasses.replace(job, listener=bar), Trial(steps=args.steps))
    args.out.mkdir(parents=True, exist_ok=True)
    plot = args.out / f"{job.config.name}-learning-rate.png"
    result.drawn().save(plot)
    sys.stdout.write(f"{result.message()} {plot}\n")
    return DONE
