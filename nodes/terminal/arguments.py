"""What several commands take."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...lora_core.messages.message import Message
from ..jobs.options import TOOLS, Option


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
    parser.add_argument(
        "--pictures",
        choices=("auto", "kitty", "iterm", "sixel", "none"),
        default="auto",
        help="how the terminal shows samples (default: auto, by what it says it is); none: only their files",
    )
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0: one for a small model, else as many as torch takes"
    )


def add_tool(parser: argparse.ArgumentParser, name: str) -> None:
    """The files and options of a tool, as its table says."""
    tool = TOOLS[name]
    for files in tool.files:
        several = {"nargs": "+"} if files.many else {"type": Path}
        usual = None if files.many else files.name
        mark = "LORA[=WEIGHT]" if files.weighted else usual
        sentence = "" if files.weighted else _text(files.about)
        parser.add_argument(files.name, metavar=mark, help=sentence or None, **several)  # type: ignore[arg-type]
    for option in tool.options:
        add_option(parser, option)


def add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    flag, sentence = f"--{option.name.replace('_', '-')}", _text(option.about)
    if option.kind is bool:
        parser.add_argument(flag, action="store_true", help=sentence)
    elif option.many:
        parser.add_argument(flag, action="append", default=[], metavar=option.metavar, help=sentence)
    elif option.choices:
        parser.add_argument(flag, default=option.default, choices=tuple(option.choices), help=sentence)
    else:
        parser.add_argument(
            flag,
            type=option.kind,
            default=option.default,
            required=option.required,
            metavar=option.metavar,
            help=sentence,
        )


def _text(code: str) -> str:
    """A text of the table as argparse takes it."""
    return str(Message.of(code)).replace("%", "%%")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true")


def add_target_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True)


def add_target_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="file to write, or folder for several (default: beside the source)")
