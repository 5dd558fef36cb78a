"""Which program reads which spelling of which family: what was measured with the programs' own loaders (`loaders.json`), asked for the file at hand.

Nothing is said here of a program, family, spelling or kind that was not run.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..lora_core.algebra.kinds import trained_as
from ..lora_core.messages.message import Message
from .families import FAMILIES
from .lora import FormatError, Lora, Module, component
from .writers import write

PROGRAMS = (
    "ComfyUI", "A1111", "Forge", "reForge", "SD.Next", "sd-scripts", "musubi-tuner", "OneTrainer", "ai-toolkit",
    "LyCORIS", "diffusers", "PEFT",
)  # fmt: skip
FORMS = ("kohya", "comfyui", "diffusers", "peft")
ALL, NOT_RUN, NO_MODEL = Message.of("loader.all"), Message.of("loader.not_run"), Message.of("loader.no_model")
_NUMBER = re.compile(r"(block|blocks|layers|attentions|resnets|refiner)\.\d+(?=\.)")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_DOWN = (".lora_down.weight", ".lora_A.weight", ".hada_w1_b")
_NAMED = 3  # layers that a sentence names
_MOST = 0.8  # of all layers

Cell = Mapping[str, Any]


@functools.cache
def measured() -> dict[str, Any]:
    """Program -> version, date, and family -> spelling -> what was seen; see tests/convert/programs/make_table.py, which writes it."""
    table: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table


def cell_of(program: str, family: str, form: str) -> Cell | None:
    """What was seen of a program with files of a family in a spelling; None where it was not run."""
    cell: Cell | None = measured().get(program, {}).get("families", {}).get(family, {}).get(form)
    return cell


def readers_of(kind: str) -> list[str]:
    """Programs that were seen to read modules of this kind exactly, in files of any family."""

    def reads(program: str) -> bool:
        return any(_reads(cell, kind) for cell in _cells(program))

    return list(filter(reads, measured()))


def reads_most(program: str, family: str) -> bool:
    """Whether a program was seen to read nearly all layers of plain LoRAs of a family in one spelling at least; what it leaves is embedders and the like."""
    cells = (cell_of(program, family, form) for form in FORMS)
    return any(cell["layers"][0] >= _MOST * cell["layers"][1] > 0 for cell in cells if cell)


def verdicts(family: str, form: str, kind: str) -> dict[str, set[str]]:
    """What becomes of modules of a kind in files of a family in a form (exact, nothing, wrong, raises) -> the programs of which that was seen, among those
    that read plain LoRA of such a file.
    """
    out: dict[str, set[str]] = {}
    for program in measured():
        cell = cell_of(program, family, form)
        if cell and cell["layers"][0]:
            verdicts = cell.get("kinds", {}).get(kind, ())
            for word in [verdicts] if isinstance(verdicts, str) else dict(verdicts).values():
                out.setdefault(word, set()).add(program)
    return out


def _cells(program: str) -> Iterable[Cell]:
    return (cell for forms in measured()[program]["families"].values() for cell in forms.values())


def _reads(cell: Cell, kind: str) -> bool:
    verdict = cell.get("kinds", {}).get(kind, "")
    return "exact" in ([verdict] if isinstance(verdict, str) else verdict.values())


def loaders(lora: Lora) -> dict[str, Message]:
    """Program -> what it reads of this file, as it is spelled; {} where the spelling or the family is none that was measured."""
    if lora.family not in FAMILIES or lora.source not in FORMS:
        return {}
    ranks = _ranks_as_spelled(lora)
    return {program: _remark(program, lora, len(ranks) > 1) for program in PROGRAMS} if ranks is not None else {}


def _remark(program: str, lora: Lora, ranks_differ: bool) -> Message:
    if lora.source == "peft" and program == "PEFT":
        return ALL  # tests/convert/test_effect_peft.py
    cell = cell_of(program, lora.family, lora.source)
    if cell is None:
        return NO_MODEL if lora.family in measured().get(program, {}).get("absent", ()) else NOT_RUN
    unread = {name for name in lora.modules if _listed(name, cell["unread"]) or _without_company(name, lora, cell)}
    if {*lora.components()} <= {*cell.get("not_alone", ())}:
        return Message.of("loader.nothing")
    kinds = {name: _seen(module, cell) for name, module in lora.modules.items() if name not in unread}
    for seen, code in (("", "loader.kinds_not_run"), ("raises", "loader.stops_at_kinds")):
        if affected := sorted({_kind(lora.modules[name]) for name, verdict in kinds.items() if verdict == seen}):
            return Message.of(code, kinds=affected)
    unread |= {name for name, verdict in kinds.items() if verdict != "exact"}
    return _refused(lora, cell, unread, ranks_differ) or _counted(lora, cell, unread)


def _seen(module: Module, cell: Cell) -> str:
    """What became of such a module: exact, nothing, wrong or raises; "" where it was not run."""
    if module.is_plain:
        return "exact"
    verdict = cell.get("kinds", {}).get(_kind(module), "")
    sort = "conv" if len(module.shape) > 2 else "linear"
    return str(verdict if isinstance(verdict, str) else verdict.get(sort, ""))


def _refused(lora: Lora, cell: Cell, unread: set[str], ranks_differ: bool) -> Message | None:
    """Why the program reads nothing of the whole file, where that is so."""
    if culprits := _stars(name for name in lora.modules if _listed(name, cell.get("fails_on", ()))):
        return Message.of("loader.fails", layers=culprits[:_NAMED])
    if cell.get("fails_alone") and any(_without_company(name, lora, cell) for name in lora.modules):
        return Message.of("loader.fails_incomplete")
    if cell.get("one_rank") and ranks_differ:
        return Message.of("loader.one_rank")
    most = cell.get("foreign_keys")
    foreign = _keys_of(lora, unread)
    if most is not None and foreign > most:
        return Message.of("loader.too_many_keys", count=foreign, most=most)
    return None


def _counted(lora: Lora, cell: Cell, unread: set[str]) -> Message:
    """How many layers are read, and which are not."""
    count = len(lora.modules)
    if len(unread) == count:
        kinds = sorted({_kind(module) for module in lora.modules.values() if not module.is_plain})
        return (
            Message.of("loader.nothing_of_kinds", kinds=kinds)
            if kinds and _only_kinds(lora, cell)
            else Message.of("loader.nothing")
        )
    if unread:
        return Message.of("loader.some", read=count - len(unread), count=count, layers=_shown(unread))
    if cell.get("one_alpha") and _mixed_alphas(lora):
        return Message.of("loader.wrong_strengths")
    return ALL


def _only_kinds(lora: Lora, cell: Cell) -> bool:
    """Whether the layers themselves would be read."""
    return any(not _listed(name, cell.get("unread", ())) for name in lora.modules)


def _shown(names: Iterable[str]) -> list[str]:
    stars = _stars(names)
    return stars[:_NAMED] + (["..."] if len(stars) > _NAMED else [])


def _stars(names: Iterable[str]) -> list[str]:
    """The names with stars for block numbers, each once."""
    return sorted({starred(name) for name in names})


@functools.lru_cache(maxsize=8192)
def starred(name: str) -> str:
    """A canonical layer name with stars for the numbers of its blocks."""
    return _NUMBER.sub(r"\1.*", name)


def _listed(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer is among those patterns: `<component>.*`, a name with stars for block numbers, or a name."""
    return bool({name, starred(name), f"{component(name)}.*"} & {*patterns})


def _without_company(name: str, lora: Lora, cell: Cell) -> bool:
    """Whether it is attention of a text encoder whose queries, keys, values and outputs the program reads together or not at all, and some are missing."""
    if component(name) not in cell.get("together", ()):
        return False
    block, _, last = name.rpartition(".")
    return last in _ATTENTION and any(f"{block}.{part}" not in lora.modules for part in _ATTENTION)


def _kind(module: Module) -> str:
    """The name under which the kind was measured."""
    kind = trained_as(module.parts) or module.algebra
    return kind.variant(module.parts) if kind else module.kind


def _keys_of(lora: Lora, names: set[str]) -> int:
    """How many keys of the file belong to these layers."""
    if not names:
        return 0
    part = Lora(lora.family, {name: lora.modules[name] for name in names}, source=lora.source)
    try:
        return len(write(part, lora.source, one_alpha=False))
    except FormatError:
        return 3 * len(names)


def _ranks_as_spelled(lora: Lora) -> set[int] | None:
    """The ranks of the file's own modules, fused ones where it has them fused; None for keys that are not among those this package writes in that
    spelling, of which the table says nothing.
    """
    if lora.source == "peft":
        return {module.rank for module in lora.modules.values()}
    try:
        state = write(lora, lora.source, one_alpha=False)
    except FormatError:
        return None
    ranks = {len(value) for key, value in state.items() if key.endswith(_DOWN)}
    return ranks if lora.keys <= state.keys() else None


def _mixed_alphas(lora: Lora) -> bool:
    alphas: dict[str, Counter[float]] = {}
    for name, module in lora.modules.items():
        alphas.setdefault(component(name), Counter())[module.scale * module.rank] += 1
    return any(len(values) > 1 for values in alphas.values())
