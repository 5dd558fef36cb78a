"""lora-loom merge: the weighted sum of LoRA files."""

from __future__ import annotations

import argparse

from .arguments import add_overwrite, add_target_file, add_tool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool(parser, "merge")
    add_overwrite(parser)
    add_target_file(parser)


def execute(args: argparse.Namespace) -> int:
    from .files import on_all

    return on_all("merge", args, "terminal.merging")
