"""lora-loom bake: a checkpoint with LoRAs added for good."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import DONE
from .arguments import add_target_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("files", nargs="+", metavar="LORA[=WEIGHT]")
    parser.add_argument("--overwrite", action="store_true")
    add_target_file(parser)


def run(args: argparse.Namespace) -> int:
    from ...convert.files.jobs import bake_file
    from .files import Bar, say, weighted_files, with_suffix

    target = args.out if args.checkpoint.is_dir() else with_suffix(args.out)
    with Bar("baking") as progress:
        written = bake_file(args.checkpoint, weighted_files(args.files), target, args.overwrite, progress)
    say(written)
    return DONE
