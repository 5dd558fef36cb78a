"""lora-loom extract: a LoRA for the difference of two checkpoints."""

from __future__ import annotations

import argparse

from .arguments import add_overwrite, add_target_file, add_tool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_tool(parser, "extract")
    add_overwrite(parser)
    add_target_file(parser)


def execute(args: argparse.Namespace) -> int:
    from .files import on_all

    return on_all("extract", args, "terminal.extracting")
