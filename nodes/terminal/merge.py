"""lora-loom merge: the weighted sum of LoRA files."""

from __future__ import annotations

import argparse

from ...convert.forms import TARGETS
from . import DONE
from .arguments import add_family, add_target_file, add_writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE[=WEIGHT]")
    parser.add_argument("--rank", type=int, default=0, help="rank of the result; 0 is exact: the ranks add up")
    parser.add_argument("--to", default="universal", choices=TARGETS[:-1])
    add_writing(parser)
    add_family(parser)
    add_target_file(parser)


def run(args: argparse.Namespace) -> int:
    from ...convert.files.jobs import merge_files
    from .files import Bar, options_of, say, weighted_files, with_suffix

    with Bar("merging") as progress:
        files = weighted_files(args.files)
        written = merge_files(files, with_suffix(args.out), options_of(args), args.rank, args.family, progress)
    say(written)
    return DONE
