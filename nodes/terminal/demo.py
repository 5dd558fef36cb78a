"""lora-loom demo: the toy model learns a bundled concept in minutes; leaves the LoRA, the loss and a before/after grid."""

from __future__ import annotations

import argparse
import sys

from .arguments import add_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", default="object", help="bundled picture set: object, style, pair or word", dest="picture_set"
    )
    add_place(parser)


def run(args: argparse.Namespace) -> int:
    from ...lora_core.config import parse
    from ...lora_core.messages.errors import LoomError
    from ...lora_core.toy.concepts import CONCEPTS
    from ...lora_core.training.demo import demo_job
    from .running import run_job

    if args.picture_set not in CONCEPTS:
        raise LoomError("demo.no_set", field="--set", name=repr(args.picture_set), allowed=CONCEPTS)
    result, code = run_job(parse(demo_job(args.picture_set)), args)
    folder = result.folder
    where = {
        "LoRA in WebUI form": result.file,
        "loss plot": folder / "loss.png",
        "before and after": folder / "before-after.png",
    }
    for label, path in where.items():
        sys.stdout.write(f"{label:20} {path}\n")
    return code
