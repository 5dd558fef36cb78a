"""lora-loom convert: LoRAs and embeddings in the form of another program."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...convert.forms import TARGETS
from .arguments import add_family, add_target_files, add_writing

if TYPE_CHECKING:
    from ...convert.files.jobs import Written

_EMBEDDING_FORMS = {
    "universal": "webui",
    "kohya": "webui",
    "comfyui": "comfyui",
    "diffusers": "diffusers",
    "peft": "diffusers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help="files, PEFT directories, or patterns such as 'loras/*.safetensors'")
    parser.add_argument(
        "--to",
        default="universal",
        choices=TARGETS,
        help="form to write (default: the one ComfyUI and diffusers both read)",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the effect")
    parser.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="BLOCK=FACTOR",
        help="factor for a block (IN04, MID, OUT05, BASE) or for names that fit a pattern",
    )
    parser.add_argument("--bundle", action="store_true", help="keep bundled embeddings inside the LoRA file")
    parser.add_argument(
        "--embed",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="bundle an embedding into the LoRA (for A1111 from 1.7)",
    )
    parser.add_argument(
        "--drop-unknown", action="store_true", help="leave out keys that the model does not have, and say how many"
    )
    parser.add_argument(
        "--keep-alphas",
        action="store_true",
        help="leave alphas that differ between layers as they are (diffusers then misreads SD files)",
    )
    add_writing(parser)
    add_family(parser)
    add_target_files(parser)


def run(args: argparse.Namespace) -> int:
    from ...convert.embedding import Embedding
    from ...convert.files import jobs
    from ...convert.merge import weighted
    from .files import Targets, each, expanded, options_of

    files, blocks = expanded(args.files), _blocks(args.block)
    targets = Targets(args.out, files, args.to)

    def one(file: Path) -> list[Written]:
        content = jobs.open_file(file, args.family, args.drop_unknown)
        if isinstance(content, Embedding):
            form = _EMBEDDING_FORMS[args.to]
            return [jobs.write_embedding_file(content, targets(file), form, args.overwrite, args.dtype)]
        target = targets(file, "" if args.to == "peft" else ".safetensors")
        return jobs.convert(weighted(content, args.scale, blocks), target, options_of(args), embed=args.embed)

    return each(files, one)


def _blocks(texts: Sequence[str]) -> dict[str, float]:
    from ...convert import FormatError

    out = {}
    for text in texts:
        block, _, number = text.rpartition("=")
        try:
            out[block] = float(number)
        except ValueError:
            raise FormatError("block.unreadable", text=text) from None
    return out
