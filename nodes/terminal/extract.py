"""lora-loom extract: a LoRA for the difference of two checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...convert.forms import TARGETS
from . import DONE
from .arguments import add_ranks, add_target_file, add_writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--no-text-encoders", action="store_true", help="leave the text encoders out")
    add_ranks(parser)
    parser.add_argument("--to", default="universal", choices=TARGETS[:-1])
    add_writing(parser)
    add_target_file(parser)


def run(args: argparse.Namespace) -> int:
    from ...convert.files.jobs import Size, extract_file
    from .files import Bar, options_of, say, with_suffix

    size = Size(args.rank, args.conv_rank, args.energy)
    with Bar("extracting") as progress:
        written = extract_file(
            (args.base, args.tuned), with_suffix(args.out), options_of(args), size, not args.no_text_encoders, progress
        )
    say(written)
    return DONE
