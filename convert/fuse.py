"""Between layers that the native model keeps as one matrix and the separate layers of diffusers: exact in both directions, or an error.

Chunking the down matrix of a densely trained fused layer is the field's classic wrong conversion; here a down matrix is only ever cut where
the up matrix is block-diagonal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from .lora import FormatError, Module, as_lora, kind_of, plain
from .patterns import Row


def split(module: Module, shares: Sequence[int]) -> list[Module | None]:
    """One module for each share of the output rows; None where a block-diagonal module has nothing for a share."""
    module = plain(module)
    counts = _row_counts(module, shares)
    if not counts:
        raise FormatError("fuse.indivisible", kind=module.kind, way=as_lora(module))
    if module.magnitudes is not None and module.magnitudes.shape[0] == 1:
        raise FormatError("fuse.dora_inputs")
    return [None if parts is None else _piece(module, parts) for parts in kind_of(module).cut(module.parts, counts)]


def _piece(whole: Module, parts: Mapping[str, torch.Tensor]) -> Module:
    """A share's parts at the scale of the whole."""
    rank = kind_of(whole).rank(parts)
    return dataclasses.replace(whole, parts=parts, alpha=whole.alpha if rank == whole.rank else whole.scale * rank)


def divides(module: Module, shares: Sequence[int]) -> bool:
    """Whether `split` has an exact form of this module for each share."""
    return {*_spans(module).values()} == {1} or bool(_row_counts(module, shares))


def _spans(module: Module) -> dict[str, int]:
    return module.algebra.spans(module.parts) if module.algebra else {}


def _row_counts(module: Module, shares: Sequence[int]) -> dict[str, list[int]]:
    """Part -> how many of its rows are each share's; {} where a share ends within a row, which no module of its kind can say."""
    spans = _spans(module)
    outputs = {name: sizes(len(module.parts[name]) * span, shares) for name, span in spans.items()}
    if any(size % spans[name] for name, of_part in outputs.items() for size in of_part):
        return {}
    return {name: [size // spans[name] for size in of_part] for name, of_part in outputs.items()}


def sizes(rows: int, shares: Sequence[int]) -> list[int]:
    """`rows` divided in the given proportions."""
    unit, rest = divmod(rows, sum(shares))
    if rest:
        raise FormatError("fuse.rows", rows=rows, shares=":".join(map(str, shares)))
    return [unit * s for s in shares]


def join(modules: Sequence[Module | None], shares: Sequence[int]) -> Module:
    """One module over all shares. A missing part changes nothing: its rows are zero."""
    present = [m for m in modules if m is not None]
    kinds = {m.kind for m in present}
    if len(kinds) > 1:
        raise FormatError("fuse.several_kinds", kinds=sorted(kinds))
    magnitudes = [m.magnitudes for m in present if m.magnitudes is not None]
    if magnitudes and (len(magnitudes) < len(shares) or any(one.shape[0] == 1 for one in magnitudes)):
        raise FormatError("fuse.some_dora")
    first = present[0]
    plained = [None if m is None else plain(m) for m in modules]
    rows = _rows(plained, shares)
    members = [None if m is None else (m.parts, m.alpha) for m in plained]
    joined = first.algebra.stacked(members, rows) if first.algebra else None
    if joined is None and first.shape and not rows:
        raise FormatError("fuse.parts_rows", shares=":".join(map(str, shares)))
    if joined is None:
        raise FormatError("fuse.no_form", kind=first.kind, way=as_lora(first))
    parts, alpha = joined
    return dataclasses.replace(first, parts=parts, alpha=alpha)


def _rows(modules: Sequence[Module | None], shares: Sequence[int]) -> list[int]:
    """Output rows of every part, those of missing ones by proportion; [] where the parts do not tell them, or are not in proportion."""
    shapes = [None if m is None else m.shape for m in modules]
    units = {shape[0] / share if shape else 0.0 for shape, share in zip(shapes, shares) if shape is not None}
    unit = units.pop() if len(units) == 1 else 0.0
    return [int(unit) * share for share in shares] if unit and unit.is_integer() else []


def swaps(row: Row, module: Module) -> bool:
    """Whether the halves of this layer's output rows change places. "last": only the last block has two modulation vectors, seen by its width."""
    shape = module.shape
    return row.swap == "always" or (row.swap == "last" and len(shape) > 1 and shape[0] == 2 * shape[1])


def arranged(row: Row, module: Module) -> Module:
    """The module with its output rows in the order of the other world, where this layer has another there. Its own inverse."""
    return swapped(module) if swaps(row, module) else module


def native(row: Row, parts: Sequence[Module | None]) -> Module:
    """The module of a native layer, from the modules of its diffusers parts in the order of the rows."""
    module = join(parts, row.shares) if len(row.shares) > 1 else parts[0]
    assert module is not None
    return arranged(row, module)


def swapped(module: Module) -> Module:
    """The two halves of the output rows exchanged: shift, scale in the one world is scale, shift in the other."""
    kind = module.algebra
    keys = kind.row_parts(module.parts) if kind and kind.by_rows(module.parts) else []
    if not keys or any(len(module.parts[k]) % 2 for k in keys):
        raise FormatError("fuse.order", kind=module.kind, way=as_lora(module))
    turned = {k: module.parts[k].roll(len(module.parts[k]) // 2, 0) for k in keys}
    return dataclasses.replace(module, parts={**module.parts, **turned})
