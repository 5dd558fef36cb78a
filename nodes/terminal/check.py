"""lora-loom check: what a good trainer would notice in a job's pictures, and one real step of it."""

from __future__ import annotations

import argparse
import sys

from ...lora_core.messages.message import Message
from . import DONE, FAILED, put
from .arguments import add_job as add_arguments

__all__ = ["add_arguments", "execute"]


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.backends.threads import use_threads
    from ...lora_core.data.lint import look
    from ...lora_core.data.sheet import sheet
    from ...lora_core.training.assemble import dry_run
    from ...lora_core.training.fitting import verdict
    from ...lora_core.training.length import epochs_message, planned
    from ..jobs.headless import prepared
    from .settings import job_of

    use_threads(args.threads)
    job = prepared(job_of(args), args.out)
    report = look(job.dataset, job.backend.text_length, lambda n, of: None)
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.out / f"{job.config.name}-dataset.png"
    sheet(report).save(picture)
    sys.stdout.write(f"{report.text()}\n\n")
    put(Message.of("terminal.at_a_glance", picture=picture))
    base = job.backend.base_model(job.config.objective)
    for message in (base.message(), *base.warnings(job.config.objective, job.fixed is not None)):
        sys.stdout.write(f"{message}\n")
    chosen, measured = dry_run(job)
    length = planned(job.config, job.dataset)
    if (epochs := epochs_message(length, job.dataset)) is not None:
        sys.stdout.write(f"{epochs}\n")
    fits, message = verdict(job.config, chosen, measured, length.steps)
    sys.stdout.write(f"{message}\n")
    return DONE if fits else FAILED
