"""lora-loom resize: LoRA files with smaller ranks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...convert.forms import TARGETS
from .arguments import add_family, add_ranks, add_target_files, add_writing

if TYPE_CHECKING:
    from ...convert.files.jobs import Written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+")
    add_ranks(parser)
    parser.add_argument("--to", default="universal", choices=TARGETS[:-1])
    add_writing(parser)
    add_family(parser)
    add_target_files(parser)


def run(args: argparse.Namespace) -> int:
    from ...convert.files.jobs import Size, resize_file
    from .files import Bar, Targets, each, expanded, options_of

    files = expanded(args.files)
    targets, size = Targets(args.out, files, f"rank{args.rank}"), Size(args.rank, args.conv_rank, args.energy)

    def one(file: Path) -> list[Written]:
        with Bar("resizing") as progress:
            return [resize_file(file, targets(file), options_of(args), size, args.family, progress)]

    return each(files, one)
