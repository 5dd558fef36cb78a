"""lora-loom resize: LoRA files with smaller ranks."""

from __future__ import annotations

import argparse

from .arguments import add_overwrite, add_target_files, add_tool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool(parser, "resize")
    add_overwrite(parser)
    add_target_files(parser)


def execute(args: argparse.Namespace) -> int:
    from .files import on_each

    return on_each("resize", args, f"rank{args.rank}", "terminal.resizing")
