"""What the terminal's commands on files take. Imports nothing heavy, so --help comes at once; commands.py does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..families import FAMILIES, UNKNOWN
from ..forms import DTYPE_NAMES, TARGETS

FLAGS = {  # setting -> the option it is given by
    "approximate": "--approximate", "blocks": "--block", "conv_rank": "--conv-rank", "drop_unknown": "--drop-unknown", "energy": "--energy",
    "family": "--family", "rank": "--rank", "scale": "--scale", "target": "--to",
}  # fmt: skip


def add_commands(commands: Any) -> None:
    """Adds the commands to an argparse sub-parser collection."""
    convert = commands.add_parser("convert", help="write LoRAs or embeddings in another program's form")
    convert.add_argument("files", nargs="+", help="files, PEFT directories, or patterns such as 'loras/*.safetensors'")
    convert.add_argument("--to", default="universal", choices=TARGETS, help="form to write (default: the one every program of that model reads)")
    convert.add_argument("--scale", type=float, default=1.0, help="multiply the effect")
    convert.add_argument(
        "--block", action="append", default=[], metavar="BLOCK=FACTOR", help="factor for a block (IN04, MID, OUT05, BASE) or for names that fit a pattern"
    )
    convert.add_argument("--bundle", action="store_true", help="keep bundled embeddings inside the LoRA file")
    convert.add_argument("--embed", action="append", default=[], type=Path, metavar="FILE", help="bundle an embedding into the LoRA (for A1111 from 1.7)")
    convert.add_argument("--drop-unknown", action="store_true", help="leave out keys that the model does not have, and say how many")
    convert.add_argument("--keep-alphas", action="store_true", help="leave alphas that differ between layers as they are (diffusers then misreads SD files)")

    show = commands.add_parser("inspect", help="say what a file is, what it does and which programs read it")
    show.add_argument("files", nargs="+")
    show.add_argument("--family", default="", choices=("", *FAMILIES, UNKNOWN))
    show.add_argument("--diff", action="store_true", help="compare two LoRAs layer by layer")
    show.add_argument("--json", action="store_true", help="facts for programs")
    show.add_argument("--picture", type=Path, help="draw the norm of every block into this PNG file")

    merge = commands.add_parser("merge", help="add LoRAs up")
    merge.add_argument("files", nargs="+", metavar="FILE[=WEIGHT]")
    merge.add_argument("--rank", type=int, default=0, help="rank of the result; 0 is exact: the ranks add up")

    resize = commands.add_parser("resize", help="make a LoRA smaller")
    resize.add_argument("files", nargs="+")

    extract = commands.add_parser("extract", help="a LoRA for the difference of two checkpoints")
    extract.add_argument("base", type=Path)
    extract.add_argument("tuned", type=Path)
    extract.add_argument("--no-text-encoders", action="store_true", help="leave the text encoders out")

    bake = commands.add_parser("bake", help="add LoRAs to a checkpoint for good")
    bake.add_argument("checkpoint", type=Path)
    bake.add_argument("files", nargs="+", metavar="LORA[=WEIGHT]")
    bake.add_argument("--overwrite", action="store_true")
    for command in (resize, extract):
        command.add_argument("--rank", type=int, required=True, help="largest rank")
        command.add_argument("--conv-rank", type=int, default=0, help="largest rank of convolutions (default: as --rank)")
        command.add_argument("--energy", type=float, default=1.0, help="share of the squared norm to keep, such as 0.95")
    for command in (merge, resize, extract):
        command.add_argument("--to", default="universal", choices=TARGETS[:-1])
    for command in (convert, merge, resize, extract):
        command.add_argument("--dtype", default="fp16", choices=DTYPE_NAMES, help="number format on disk")
        command.add_argument("--approximate", type=int, default=0, metavar="RANK", help="turn LoHa, LoKr and full differences into LoRA of this rank")
        command.add_argument("--details", action="store_true", help="keep captions and dataset folders of the old header")
        command.add_argument("--overwrite", action="store_true")
    for command in (convert, merge, resize):
        command.add_argument("--family", default="", choices=("", *FAMILIES, UNKNOWN), help="the base model, where the file does not tell")
    for command in (convert, resize):
        command.add_argument("--out", type=Path, help="file to write, or folder for several (default: beside the source)")
    for command in (merge, extract, bake):
        command.add_argument("--out", type=Path, required=True)
