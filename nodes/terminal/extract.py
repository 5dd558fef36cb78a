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
    parser.add_argument(
        "--norms-biases",
        default="auto",
        choices=("auto", "keep", "leave"),
        help="changes of norms and biases; auto keeps them where a program reads them and none stops at them (default: auto)",
    )
    add_ranks(parser)
    parser.add_argument("--to", default="universal", choices=TARGETS[:-1])
    add_writing(parser)
    add_target_file(parser)


def run(args: argparse.Namespace) -> int:
    from ...convert.files.jobs import Size, Taken, extract_file
    from .files import Bar, options_of, say, with_suffix

    size = Size(args.rank, args.conv_rank, args.energy)
    taken = Taken(not args.no_text_encoders, args.norms_biases)
    with Bar("extracting") as progress:
        written = extract_file((args.base, args.tuned), with_suffix(args.out), options_of(args), size, taken, progress)
    say(written)
    return DONE
