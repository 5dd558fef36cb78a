"""A job trained before a terminal: a progress bar, and a signal that stops after the current step and keeps the result."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from typing import Any

from ...lora_core.backends.headless import Headless
from ...lora_core.backends.threads import use_threads
from ...lora_core.config import TrainConfig
from ...lora_core.events import Control, Listener, Listeners
from ...lora_core.messages.message import Message
from ...lora_core.processes import launched
from ...lora_core.runs.guarded import Extras, Guarded
from ...lora_core.runs.reports import ProgressBar
from ...lora_core.training.session import Session, run_folder
from ...lora_core.training.trainer import Result
from ..jobs.formats import exporter
from ..jobs.headless import prepared, with_start
from . import DONE, in_words, put
from .pictures import Shown, chosen_way

SIGNALS = [  # SIGHUP: the terminal was closed; SIGBREAK: the same on Windows
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]


def run_job(
    config: TrainConfig,
    args: argparse.Namespace,
    resume: bool = False,
    backend: Headless | None = None,
    listener: Listener | None = None,
) -> tuple[Result, int]:
    """Trains `config` headless below `args.out`, or goes on with its latest run. Returns (result, exit code).

    `backend`: a model that is loaded already. `listener`: one more.
    """
    use_threads(args.threads)
    processes = launched()
    job = prepared(config, args.out, backend, processes)
    if processes.main and processes.sharded:
        put(Message.of("terminal.sharded", count=processes.size))
    if processes.main:
        sys.stdout.write(job.dataset.summary() + "\n")
    job = with_start(job)
    folder = run_folder(args.out, job.config.name, resume, processes)
    with stopping_on_signal(job.control) as received, ProgressBar() as bar:
        everyone = Listeners([bar, Shown(chosen_way(args.pictures))])
        drawn = Guarded(everyone, "terminal", Extras(lambda message: None))  # one that is gone hears nothing
        job = dataclasses.replace(job, listener=Listeners([drawn, *([listener] if listener else [])]))
        try:
            result = Session(job, folder, exporter(job.config.name, job.backend.family), resume).train()
        except BaseException:
            if received:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    sys.stderr.write(f"lora-loom: {in_words(Message.of('terminal.stopped'))}\n")
                raise SystemExit(128 + received[0]) from None
            raise
    return result, 128 + received[0] if received else DONE


@contextlib.contextmanager
def stopping_on_signal(control: Control) -> Iterator[list[int]]:
    """Inside, the first signal lets the run end after its step, a second one ends the program at once. Gives the signals that came.

    A signal that whoever started us wants ignored (nohup, a job in the background) stays ignored.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def on_signal(number: int, frame: Any) -> None:
        received.append(number)
        control.stop_and_keep()
        signal.signal(number, before[number])

    for number in SIGNALS:
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):  # None: somebody else than Python takes it
            before[number] = handler
            signal.signal(number, on_signal)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
