"""What several commands take."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...convert.families import FAMILIES, UNKNOWN
from ...convert.forms import DTYPE_NAMES


def add_job(parser: argparse.ArgumentParser) -> None:
    """A job file, and changes to it."""
    parser.add_argument("job", type=Path, help="TOML job file")
    add_changes(parser)
    add_place(parser)


def add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a setting, such as optimizer.lr=2e-4",
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """Where run folders go, and how many processor threads may be taken."""
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")


def add_writing(parser: argparse.ArgumentParser) -> None:
    """How a LoRA is written."""
    parser.add_argument("--dtype", default="fp16", choices=DTYPE_NAMES, help="number format on disk")
    parser.add_argument(
        "--approximate",
        type=int,
        default=0,
        metavar="RANK",
        help="turn LoHa, LoKr and full differences into LoRA of this rank",
    )
    parser.add_argument("--details", action="store_true", help="keep captions and dataset folders of the old header")
    parser.add_argument("--overwrite", action="store_true")


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """How small a LoRA becomes."""
    parser.add_argument("--rank", type=int, required=True, help="largest rank")
    parser.add_argument("--conv-rank", type=int, default=0, help="largest rank of convolutions (default: as --rank)")
    parser.add_argument("--energy", type=float, default=1.0, help="share of the squared norm to keep, such as 0.95")


def add_family(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--family", default="", choices=("", *FAMILIES, UNKNOWN), help="the base model, where the file does not tell"
    )


def add_target_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True)


def add_target_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="file to write, or folder for several (default: beside the source)")
