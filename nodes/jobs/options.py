"""The tools for files and what each takes: one table, of which the terminal makes its options and the page its forms. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...convert.families import FAMILIES, UNKNOWN
from ...convert.forms import DTYPE_NAMES, TARGETS


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing a tool can be told. `kind`: of its value, of each one where there may be `many`; `label`, `about`: codes of its texts.

    `starts`: what a page fills in where the terminal has no default and asks for one.
    """

    name: str
    kind: type
    default: Any
    label: str
    about: str
    choices: Sequence[str] = ()
    many: bool = False
    metavar: str | None = None
    starts: Any = None

    @property
    def required(self) -> bool:
        return self.starts is not None


@dataclasses.dataclass(frozen=True)
class Files:
    """Files a tool reads. `role`: lora or checkpoint; `many`: one or more; `weighted`: each may bear a factor, as in NAME=0.5."""

    name: str
    label: str
    about: str
    role: str = "lora"
    many: bool = False
    weighted: bool = False


@dataclasses.dataclass(frozen=True)
class Tool:
    """`each`: several files are worked on one by one. `title`, `about`: codes of its texts."""

    name: str
    title: str
    about: str
    files: Sequence[Files]
    options: Sequence[Option] = ()
    each: bool = False


FAMILY = Option("family", str, "", "option.family", "option.family_about", ("", *FAMILIES, UNKNOWN))
TO = Option("to", str, "universal", "option.to", "option.to_about", TARGETS[:-1])
TO_ANY = dataclasses.replace(TO, choices=TARGETS)
DTYPE = Option("dtype", str, "fp16", "option.dtype", "option.dtype_about", DTYPE_NAMES)
APPROXIMATE = Option("approximate", int, 0, "option.approximate", "option.approximate_about", metavar="RANK")
DETAILS = Option("details", bool, False, "option.details", "option.details_about")
WRITING = (DTYPE, APPROXIMATE, DETAILS)
RANK = Option("rank", int, 0, "option.rank", "option.rank_about", starts=16)
SUM_RANK = Option("rank", int, 0, "option.rank", "option.sum_rank_about")
CONV_RANK = Option("conv_rank", int, 0, "option.conv_rank", "option.conv_rank_about")
ENERGY = Option("energy", float, 1.0, "option.energy", "option.energy_about")
SIZES = (RANK, CONV_RANK, ENERGY)
SCALE = Option("scale", float, 1.0, "option.scale", "option.scale_about")
BLOCK = Option("block", str, (), "option.block", "option.block_about", many=True, metavar="BLOCK=FACTOR")
BUNDLE = Option("bundle", bool, False, "option.bundle", "option.bundle_about")
EMBED = Option("embed", str, (), "option.embed", "option.embed_about", many=True, metavar="FILE")
DROP_UNKNOWN = Option("drop_unknown", bool, False, "option.drop_unknown", "option.drop_unknown_about")
KEEP_ALPHAS = Option("keep_alphas", bool, False, "option.keep_alphas", "option.keep_alphas_about")
NO_TEXTS = Option("no_text_encoders", bool, False, "option.no_text_encoders", "option.no_text_encoders_about")
NORMS_BIASES = Option(
    "norms_biases", str, "auto", "option.norms_biases", "option.norms_biases_about", ("auto", "keep", "leave")
)

ONE = Files("files", "tool.file", "tool.file_about", many=True)
SEVERAL = Files("files", "tool.files", "tool.files_about", many=True, weighted=True)
BASE = Files("base", "tool.base", "tool.base_about", role="checkpoint")
TUNED = Files("tuned", "tool.tuned", "tool.tuned_about", role="checkpoint")
CHECKPOINT = Files("checkpoint", "tool.checkpoint", "tool.checkpoint_about", role="checkpoint")

TOOLS = {
    tool.name: tool
    for tool in (
        Tool("inspect", "tool.inspect", "tool.inspect_about", (ONE,), (FAMILY,), each=True),
        Tool(
            "convert",
            "tool.convert",
            "tool.convert_about",
            (ONE,),
            (TO_ANY, SCALE, BLOCK, BUNDLE, EMBED, DROP_UNKNOWN, KEEP_ALPHAS, *WRITING, FAMILY),
            each=True,
        ),
        Tool("merge", "tool.merge", "tool.merge_about", (SEVERAL,), (SUM_RANK, TO, *WRITING, FAMILY)),
        Tool("resize", "tool.resize", "tool.resize_about", (ONE,), (*SIZES, TO, *WRITING, FAMILY), each=True),
        Tool(
            "extract",
            "tool.extract",
            "tool.extract_about",
            (BASE, TUNED),
            (*SIZES, NO_TEXTS, NORMS_BIASES, TO, *WRITING),
        ),
        Tool("bake", "tool.bake", "tool.bake_about", (CHECKPOINT, SEVERAL)),
    )
}
