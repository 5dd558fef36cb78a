"""lora-loom sweep: each run of a sweep is trained on the same loaded model, with several seeds if wanted; a sheet and a table compare them.

What another sweep in the same folder trained with the same settings and seed is not trained again: its row is taken over.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...lora_core.messages.message import Message
from . import DONE, FAILED, in_words, put
from .arguments import add_changes, add_place

if TYPE_CHECKING:
    from ...lora_core.backends.headless import Headless
    from ...lora_core.training.comparing import Results, Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job",
        type=Path,
        help="TOML file with [[runs]], or the name of a bundled one: y2k; toy_methods, toy_kinds and others on the toy",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="how often each run is trained, with another seed each time (default: 1)"
    )
    add_changes(parser)
    add_place(parser)


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.backends.threads import use_threads
    from ...lora_core.disk import files
    from ...lora_core.messages.errors import LoomError
    from ...lora_core.recipes import HERE
    from ...lora_core.training import comparing
    from ...lora_core.training.sweep import name_of, runs_of
    from ..jobs.headless import prepared
    from .settings import values_of

    bundled = HERE / "sweeps" / f"{args.job}.toml"
    path = bundled if bundled.is_file() and not args.job.exists() else args.job
    values = values_of(path, args.changes)
    jobs, ruler = runs_of(values, Path.cwd() if path == bundled else path.parent), comparing.required_ruler(values)
    trials, name = comparing.trials(jobs, args.seeds), name_of(values)
    results = comparing.Results(args.out / f"{name}{comparing.FOLDER_END}")
    results.borrow(trials, ruler)
    left = [trial for trial in trials if not results.has(trial)]
    if len(left) < len(trials):
        asked = len(trials)
        put(Message.of("terminal.taken_over", done=asked - len(left), trials=asked))
    use_threads(args.threads)
    backend = prepared(trials[0].config, args.out).backend if left else None
    code = failed = DONE
    for trial in left:
        assert backend is not None
        try:
            code = _train(trial, args, backend, ruler, results)
        except LoomError as error:  # such as a rate that was too high: the others are not lost with it
            sys.stderr.write(f"lora-loom: {trial.config.name}: {in_words(error.message)}\n")
            failed = FAILED
        if code != DONE:
            break
    text = comparing.table(jobs, results, [trial.digest for trial in trials])
    files.write_bytes(results.folder / comparing.TABLE, text.encode())
    sys.stdout.write(text)
    _compare([trial for trial in trials if trial.seed == 0], results, args.out / f"{name}-comparison.png")
    return code or failed


def _train(trial: Trial, args: argparse.Namespace, backend: Headless, ruler: str, results: Results) -> int:
    """Trains one and keeps what it measured; the exit code."""
    from ...lora_core.events import Listeners
    from ...lora_core.training.comparing import LOWEST, MINUTES, Judged
    from ...lora_core.training.samples import sample_prompts
    from ...lora_core.training.sweep import LastSamples
    from .running import run_job

    last, judged, began = LastSamples(), Judged(backend, ruler), time.monotonic()
    result, code = run_job(trial.config, args, backend=backend, listener=Listeners([last, judged]))
    if code != DONE:
        return code
    losses = [measure[1] for measure in result.facts["validation"]]
    lowest = {LOWEST: min(losses)} if losses else {}
    measures = {**judged.measures, **lowest, MINUTES: (time.monotonic() - began) / 60}
    prompts = sample_prompts(trial.config, result.facts["captions"]) if last.images else []
    results.add(trial, measures, list(zip(prompts, last.images)), result.folder, ruler)
    return code


def _compare(trials: list[Trial], results: Results, place: Path) -> None:
    """One sheet of what each variant's first seed drew last, written where any drew something."""
    from ...lora_core.training.comparing import LOWEST
    from ...lora_core.training.sweep import sheet

    columns = []
    for trial in trials:
        if results.has(trial):
            (measures,), drawn = results.of(trial.variant, [trial.digest]), results.drawn(trial)
            loss = measures.get(LOWEST)
            columns.append((trial.variant, [image for _, image in drawn], [prompt for prompt, _ in drawn], loss))
    if any(images for _, images, _, _ in columns):
        sheet(columns).save(place)
        put(Message.of("terminal.compared", count=len(columns), file=place))
