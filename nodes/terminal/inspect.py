"""lora-loom inspect: what files are, or how two LoRAs differ."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...lora_core.messages.message import Message
from . import DONE, FAILED, in_words, put
from .arguments import add_tool

if TYPE_CHECKING:
    from ...convert.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool(parser, "inspect")
    parser.add_argument("--diff", action="store_true", help="compare two LoRAs layer by layer")
    parser.add_argument("--json", action="store_true", help="facts for programs")
    parser.add_argument("--picture", type=Path, help="draw the norm of every block into this PNG file")


def execute(args: argparse.Namespace) -> int:
    from ...convert import FormatError
    from .files import expanded

    files = expanded(args.files)
    if args.diff:
        return _compare(files, args.family)
    failed = 0
    for file in files:
        try:
            report = _show(file, args)
        except FormatError as error:
            failed += 1
            sys.stderr.write(f"lora-loom: {in_words(error.message)}\n")
            continue
        if report is not None and args.picture:
            _draw(report, args.picture)
    return FAILED if failed else DONE


def _compare(files: Sequence[Path], family: str) -> int:
    from ...convert import FormatError
    from ...convert.files.jobs import open_lora
    from ...convert.report import difference

    if len(files) != 2:
        raise FormatError("diff.two_files", count=len(files))
    apart = difference(*(open_lora(file, family) for file in files))
    worst = sorted(apart.items(), key=lambda item: -item[1])
    equal = sum(value == 0 for value in apart.values())
    put(Message.of("diff.found", count=len(apart), equal=equal, largest=f"{worst[0][1]:.3g}"))
    sys.stdout.write("".join(f"  {value:8.3g}  {name}\n" for name, value in worst[:20] if value))
    return DONE


def _show(file: Path, args: argparse.Namespace) -> Report | None:
    """Writes what a file is; returns the report on a LoRA, None for an embedding."""
    from ..jobs.tools import looked_at

    lines_of_file, report = looked_at(file, args.family)
    lines = [in_words(line) for line in lines_of_file]
    if not args.json:
        sys.stdout.write("\n".join([file.name, *lines]) + "\n")
    elif report is None:
        sys.stdout.write(json.dumps({"file": file.name, "facts": lines}) + "\n")
    else:
        problems = [in_words(problem) for problem in report.problems]
        facts = {"file": file.name, **dataclasses.asdict(report), "problems": problems}
        sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
    return report


def _draw(report: Report, picture: Path) -> None:
    from ...convert import FormatError
    from ...lora_core.pictures.plots import bars

    try:
        bars([(block.name, block.norm) for block in report.blocks], "norm of the change, by block").save(picture)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError("picture.unwritten", file=picture, reason=error) from error
