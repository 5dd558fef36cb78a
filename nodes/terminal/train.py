"""lora-loom train: a job file is trained below a folder of runs."""

from __future__ import annotations

import argparse
import contextlib
import sys

from ...lora_core.messages.message import Message
from . import put
from .arguments import add_job

ENDED = {  # how a run ended -> what is said of it
    "finished": "terminal.finished", "stopped early": "terminal.stopped_early",
    "stopped": "terminal.stopped_after", "paused": "terminal.paused",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--resume", action="store_true", help="continue the latest run of this name")


def execute(args: argparse.Namespace) -> int:
    from .running import run_job
    from .settings import job_of

    result, code = run_job(job_of(args), args, args.resume)
    if result.files:  # of several processes only the first one writes
        with contextlib.suppress(OSError):  # the terminal may be gone
            put(Message.of(ENDED[result.outcome], step=result.step, files=result.files))
            sys.stdout.flush()
    return code
