"""lora-loom demo: the toy model learns a bundled concept in minutes; leaves the LoRA, the loss and a before/after grid."""

from __future__ import annotations

import argparse
import sys

from ...lora_core.messages.message import Message
from . import in_words
from .arguments import add_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", default="mascot", help="bundled picture set: mascot, style, object, face or word", dest="picture_set"
    )
    add_place(parser)


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.config import parse
    from ...lora_core.messages.errors import LoomError
    from ...lora_core.toy.taught import TAUGHT
    from ...lora_core.training.demo import demo_job
    from .running import run_job

    if args.picture_set not in TAUGHT:
        raise LoomError("demo.no_set", field="--set", name=repr(args.picture_set), allowed=TAUGHT)
    config = parse(demo_job(args.picture_set))
    result, code = run_job(config, args)
    folder = result.folder
    alone = config.method == "embedding"
    products = ("terminal.embedding",) if alone else ("terminal.lora", "terminal.embedding_of_word")
    pictures = (("terminal.loss_plot", folder / "loss.png"), ("terminal.before_after", folder / "before-after.png"))
    for title, path in (*zip(products, result.files), *pictures):
        sys.stdout.write(f"{in_words(Message.of(title)):22} {path}\n")
    return code
