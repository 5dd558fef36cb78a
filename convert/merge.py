"""Operations on whole LoRAs: weighted sums, smaller ranks, strengths by block. Exact where the mathematics allows it; else the error is told."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch

from ..lora_core.algebra.full import KIND as FULL
from ..lora_core.matching.regex import Pattern
from ..lora_core.messages.message import Message
from .families import FAMILIES
from .lora import (
    FEW,
    MAX_DENSE,
    MAX_FACTORS,
    FormatError,
    Lora,
    Module,
    about,
    added,
    as_lora,
    component,
    delta,
    factored,
    low_rank,
    multiplied,
    numbers,
    plain,
    resized,
    with_bias,
)

Progress = Callable[[int, int, str], None]
EXACT_NUMBERS = (
    1 << 23
)  # of one module, whose norm is computed in float64; larger ones would take several times the file
MAX_MADE = 1 << 25  # numbers of a sum beyond few times those of its summands
_BLOCK = re.compile(r"(IN|OUT)(\d\d)|MID|M00|BASE")


def quiet(done: int, total: int, name: str) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A new LoRA and what it lost: relative error of the change of weights, over all modules and by module (0 where exact)."""

    lora: Lora
    error: float
    errors: dict[str, float]


def merge(parts: Sequence[tuple[Lora, float]], rank: int = 0, progress: Progress = quiet) -> Outcome:
    """The sum of LoRAs times their weights. `rank` 0: exact, the ranks add up; else the best approximation of at most that rank.

    Raises FormatError for different families, and for DoRA, whose rescaling does not add up.
    """
    if not parts:
        raise FormatError("merge.nothing")
    if rank < 0:
        raise FormatError("rank.unusable_or_exact", field="rank", rank=rank)
    families = {lora.family for lora, _ in parts}
    if len(families) > 1:
        raise FormatError("merge.other_families", families=sorted(families))
    names = sorted({name for lora, _ in parts for name in lora.modules})
    modules, errors, lost, total, made = {}, {}, 0.0, 0.0, 0
    for n, name in enumerate(names):
        progress(n, len(names), name)
        members = [
            multiplied(_summable(name, lora.modules[name]), weight)
            for lora, weight in parts
            if name in lora.modules and weight
        ]
        if not members:
            continue
        if len({m.shape for m in members if m.shape}) > 1:
            raise FormatError("merge.shapes", name=name, shapes=sorted(str(m.shape) for m in members))
        with about(name):
            module, error = _sum(members, rank)
        held = sum(numbers(m) for m in members)
        made += numbers(module) if numbers(module) > FEW * held else 0
        if made > MAX_MADE:
            raise FormatError("merge.large", field="rank", layer=name, count=made, limit=MAX_MADE)
        modules[name], errors[name] = module, error
        if rank:
            norm = squared_norm(module)
            full = norm / max(1e-12, 1 - error**2)
            lost, total = lost + full - norm, total + full
    if not modules:
        raise FormatError("merge.nothing_left")
    first = parts[0][0]
    return Outcome(Lora(first.family, modules, notes=_notes(parts)), (lost / total) ** 0.5 if total else 0.0, errors)


def _summable(name: str, module: Module) -> Module:
    if module.magnitudes is not None:
        raise FormatError("merge.dora", name=name)
    if module.algebra is None:
        raise FormatError("merge.parts", name=name, parts=module.parts)
    if not module.algebra.ends(module.parts) and module.changes_weight:
        raise FormatError("merge.kind", name=name, parts=module.parts, kind=module.kind, way=as_lora(module))
    return module


def _sum(members: list[Module], rank: int) -> tuple[Module, float]:
    if all(m.paired for m in members):
        joined = added(members) if len(members) > 1 else plain(members[0])
        assert joined is not None
        return resized(joined, rank) if rank and joined.rank > rank else (joined, 0.0)
    dense_to_do = rank and any(len(m.shape) > 1 for m in members)
    if len(members) == 1 and not dense_to_do:
        return members[0], 0.0
    if not dense_to_do and (exact := added(members)):
        return exact, 0.0
    shaped = [m for m in members if m.shape]
    if max(math.prod(m.shape) for m in shaped) > MAX_DENSE and (in_factors := _in_factors(shaped)):
        module, error = resized(in_factors, rank) if rank and in_factors.rank > rank else (in_factors, 0.0)
        return with_bias(module, members), error
    dense = delta(shaped[0])
    for member in shaped[1:]:
        dense = dense + delta(member)
    module, error = low_rank(dense, rank) if rank else (Module(FULL.name, {"diff": dense}), 0.0)
    return with_bias(module, members), error


def _in_factors(members: Sequence[Module]) -> Module | None:
    """The exact sum as one LoRA, where every member has small factors."""
    loras = [factored(module, MAX_FACTORS // len(members)) for module in members]
    if any(module is None for module in loras):
        return None
    return added([module for module in loras if module is not None])


def _notes(parts: Sequence[tuple[Lora, float]]) -> list[Message]:
    tokens = sorted({token for lora, _ in parts for token in lora.embeddings})
    return [Message.of("note.embeddings_unmerged", tokens=tokens)] if tokens else []


def squared_norm(module: Module) -> float:
    """||delta||^2, by the factors where the kind knows how; of a kind that depends on the base weight, of its own numbers. 0 where nothing is known."""
    if module.algebra is None or not module.changes_weight:
        return 0.0
    wide = torch.float64 if sum(value.numel() for value in module.parts.values()) <= EXACT_NUMBERS else torch.float32
    return max(0.0, float(module.algebra.squared_norm({k: v.to(wide) for k, v in module.parts.items()}, module.scale)))


def resize(lora: Lora, rank: int, conv_rank: int = 0, energy: float = 1.0, progress: Progress = quiet) -> Outcome:
    """Every LoRA module at most of `rank` (convolutions of `conv_rank`, 0: the same), fewer where `energy` of the squared norm needs fewer."""
    require_sizes(rank, conv_rank, energy)
    modules, errors, lost, total = {}, {}, 0.0, 0.0
    for n, (name, module) in enumerate(lora.modules.items()):
        progress(n, len(lora.modules), name)
        limit = rank_limit(module.shape, rank, conv_rank)
        norm = squared_norm(module)
        if not module.is_plain or (module.rank <= limit and energy == 1.0):
            modules[name], error = module, 0.0
        else:
            modules[name], error = resized(module, limit, energy)
        errors[name] = error
        lost, total = lost + norm * error**2, total + norm
    out = dataclasses.replace(lora, modules=modules, notes=list(lora.notes))
    if kept := [module.told_kind for module in lora.modules.values() if not module.is_plain]:
        out.notes.append(Message.of("note.kept_size", count=len(kept), kinds=sorted({*kept})))
    return Outcome(out, (lost / total) ** 0.5 if total else 0.0, errors)


def rank_limit(shape: tuple[int, ...], rank: int, conv_rank: int) -> int:
    """The largest rank of a layer with a weight of `shape`: `conv_rank` (0: the same) for kernels larger than 1x1."""
    return (conv_rank or rank) if len(shape) > 2 and max(shape[2:]) > 1 else rank


def require_sizes(rank: int, conv_rank: int, energy: float) -> None:
    """Raises FormatError for ranks and shares that are none."""
    if rank < 1 or conv_rank < 0:
        raise FormatError("rank.unusable", field="rank", rank=rank if rank < 1 else conv_rank)
    if not 0 < energy <= 1:
        raise FormatError("energy.unusable", field="energy", energy=energy)


def weighted(lora: Lora, factor: float = 1.0, blocks: Mapping[str, float] | None = None) -> Lora:
    """The LoRA with `factor` times the effect, and further factors by block.

    A block is IN00 to IN11, MID, OUT00 to OUT11 (the UNet's blocks in SGM order, as block-weight extensions call them), BASE (the text
    encoders), or a regular expression searched in the canonical name. Several that fit a layer multiply. Raises FormatError when one fits none.
    """
    modules = {}
    used = dict.fromkeys(blocks or {}, False)
    for name, module in lora.modules.items():
        share = factor
        for block, value in (blocks or {}).items():
            if in_block(lora.family, name, block):
                share, used[block] = share * value, True
        if share != 1.0 and module.magnitudes is not None:
            raise FormatError("module.dora_strength", name=name)
        with about(name):
            modules[name] = module if share == 1.0 else multiplied(module, share)
    if unused := [block for block, hit in used.items() if not hit]:
        raise FormatError("block.unmatched", field="blocks", block=repr(unused[0]))
    return dataclasses.replace(lora, modules=modules)


def in_block(family: str, name: str, block: str) -> bool:
    """Whether a canonical name lies in a block (see `weighted`)."""
    if not _BLOCK.fullmatch(block):
        if block_of(family, name) == block:
            return True
        return _block_pattern(block).search(name)
    return block_of(family, name) == ("MID" if block == "M00" else block)


@functools.lru_cache(maxsize=256)
def _block_pattern(block: str) -> Pattern:
    try:
        return Pattern(
            block, lambda why: FormatError("pattern.costly", field="blocks", pattern=repr(block), reason=why)
        )
    except re.error as error:
        raise FormatError("block.pattern", field="blocks", block=repr(block), reason=error) from error


def block_of(family: str, name: str) -> str:
    """BASE for text encoders; IN04, MID, OUT05 for UNets; `double_blocks.3` and the like for transformers; else the first word of the path."""
    entry = FAMILIES.get(family)
    path = name.partition(".")[2]
    if entry is None or component(name) != entry.component:
        return "BASE" if entry else name.split(".")[0]
    match = entry.table.find(path)
    native = (match.rows[0].native if match else path).split(".")
    if entry.component == "unet":
        kind = {"input_blocks": "IN", "output_blocks": "OUT"}.get(native[0])
        if kind:
            return f"{kind}{int(native[1]):02d}"
        return "MID" if native[0] == "middle_block" else native[0]
    return f"{native[0]}.{int(match.numbers[0]):02d}" if match and match.numbers else native[0]
