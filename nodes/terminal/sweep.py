"""lora-loom sweep: each run of a sweep is trained on the same loaded model, and all are compared on one sheet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import DONE
from .arguments import add_changes, add_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, help="TOML file with [[runs]], or the name of a bundled one: y2k")
    add_changes(parser)
    add_place(parser)


def run(args: argparse.Namespace) -> int:
    from ...lora_core.recipes import HERE
    from ...lora_core.training.sweep import LastSamples, runs_of, sheet
    from ...lora_core.training.trainer import sample_prompts
    from ..jobs.headless import prepared
    from .running import run_job, use_threads
    from .settings import values_of

    bundled = HERE / "sweeps" / f"{args.job}.toml"
    path = bundled if bundled.is_file() and not args.job.exists() else args.job
    configs = runs_of(values_of(path, args.changes), Path.cwd() if path == bundled else path.parent)
    use_threads(args.threads)
    backend = prepared(configs[0], args.out).backend
    columns, code = [], DONE
    for config in configs:
        last = LastSamples()
        result, code = run_job(config, args, backend=backend, listener=last)
        losses = [measure[1] for measure in result.facts["validation"]]
        columns.append(
            (config.name, last.images, sample_prompts(config, result.facts["captions"]), min(losses, default=None))
        )
        if code != DONE:
            break
    place = args.out / f"{configs[0].name.rpartition('_')[0]}-comparison.png"
    if any(images for _, images, _, _ in columns):
        sheet(columns).save(place)
        sys.stdout.write(f"{len(columns)} runs compared: {place}\n")
    return code
