"""lora-loom recipes: the bundled job files."""

from __future__ import annotations

import argparse
import sys

from . import DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes nothing."""


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.recipes import about, names

    for name in names():
        sys.stdout.write(f"{name:28} {about(name)}\n")
    return DONE
