"""Between layers that the native model keeps as one matrix and the separate layers of diffusers: exact in both directions, or an error.

Chunking the down matrix of a densely trained fused layer is the field's classic wrong conversion; here a down matrix is only ever cut where
the up matrix is block-diagonal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from .lora import FormatError, Module, as_lora, folded, plain
from .patterns import Row

_BY_ROW = ("dora", "diff_b")


def split(module: Module, shares: Sequence[int]) -> list[Module | None]:
    """One module for each share of the output rows; None where a block-diagonal module has nothing for a share."""
    if module.kind == "lora":
        return _split_lora(plain(module), shares)
    if module.kind == "loha" and "hada_t1" not in module.parts:
        one, two = (
            torch.split(module.parts[k], sizes(len(module.parts[k]), shares)) for k in ("hada_w1_a", "hada_w2_a")
        )
        return [
            _with_rows_of(module.replaced(hada_w1_a=a, hada_w2_a=b), module, n, shares)
            for n, (a, b) in enumerate(zip(one, two))
        ]
    if module.kind == "lokr" and (counts := _kron_rows(module, shares)):
        name = _first_factor(module)
        ones = torch.split(module.parts[name], counts)
        return [_with_rows_of(module.replaced(**{name: o.clone()}), module, n, shares) for n, o in enumerate(ones)]
    if rows := _row_parts(module):
        cut = {k: torch.split(module.parts[k], sizes(len(module.parts[k]), shares)) for k in rows}
        shared = {k: v for k, v in module.parts.items() if k not in rows}
        return [
            dataclasses.replace(module, parts={**shared, **{k: v[n].clone() for k, v in cut.items()}})
            for n in range(len(shares))
        ]
    raise FormatError("fuse.indivisible", kind=module.kind, way=as_lora(module))


def divides(module: Module, shares: Sequence[int]) -> bool:
    """Whether `split` has an exact form of this module for each share."""
    if module.kind == "lora" or (module.kind == "loha" and "hada_t1" not in module.parts):
        return True
    return bool(_row_parts(module)) or (module.kind == "lokr" and bool(_kron_rows(module, shares)))


def _first_factor(module: Module) -> str:
    """The part of a LoKr whose rows each stand for as many output rows as its second factor has."""
    return "lokr_w1" if "lokr_w1" in module.parts else "lokr_w1_a"


def _kron_rows(module: Module, shares: Sequence[int]) -> list[int]:
    """How many rows of the first factor each share is made of; [] where a share ends within one, which no LoKr of its own can say."""
    parts = module.parts
    rows = len(parts[_first_factor(module)])
    second = len(parts["lokr_w2"]) if "lokr_w2" in parts else parts["lokr_w2_a"].shape["lokr_t2" in parts]
    counts = [divmod(size, second) for size in sizes(rows * second, shares)]
    return [] if any(rest for _, rest in counts) else [count for count, _ in counts]


def _row_parts(module: Module) -> tuple[str, ...]:
    """The parts whose rows are the layer's outputs, where the module can be taken apart by them; () where it cannot."""
    if module.algebra is None or not module.algebra.by_rows(module.parts):
        return ()
    return tuple(part.name for part in module.algebra.parts if part.rows and part.name in module.parts)


def sizes(rows: int, shares: Sequence[int]) -> list[int]:
    """`rows` divided in the given proportions."""
    unit, rest = divmod(rows, sum(shares))
    if rest:
        raise FormatError("fuse.rows", rows=rows, shares=":".join(map(str, shares)))
    return [unit * s for s in shares]


def _split_lora(module: Module, shares: Sequence[int]) -> list[Module | None]:
    down, up, rank = module.parts["down"], module.parts["up"], module.rank
    blocks = torch.split(up, sizes(len(up), shares))
    columns = _owned_columns([b.flatten(1) for b in blocks], rank)
    by_row = any(k in module.parts for k in _BY_ROW)  # then a share without weights still says something about its rows
    trained = bool(up.any())
    out: list[Module | None] = []
    for n, block in enumerate(blocks):
        if columns is None:
            if trained and not block.any() and not by_row:
                out.append(None)
                continue
            out.append(_with_rows_of(module.replaced(up=block.clone()), module, n, shares))
        elif len(columns[n]):
            chosen = slice(columns[n].start, columns[n].stop)
            part = Module(
                "lora",
                {**module.parts, "down": down[chosen].clone(), "up": block[:, chosen].clone()},
                module.scale * len(columns[n]),
            )
            out.append(_with_rows_of(part, module, n, shares))
        elif by_row:
            nothing = Module(
                "lora",
                {**module.parts, "down": torch.zeros_like(down[:1]), "up": torch.zeros_like(block[:, :1])},
                module.scale,
            )
            out.append(_with_rows_of(nothing, module, n, shares))
        else:
            out.append(None)
    return out


def _owned_columns(blocks: list[torch.Tensor], rank: int) -> list[range] | None:
    """Which columns of a block-diagonal up matrix belong to which block, or None when it is not block-diagonal."""
    used = torch.stack([(b != 0).any(0) for b in blocks])  # (blocks, rank)
    count = len(blocks)
    if rank % count == 0:
        step = rank // count
        inside = torch.zeros_like(used)
        for n in range(count):
            inside[n, n * step : (n + 1) * step] = True
        if not (used & ~inside).any():
            return [range(n * step, (n + 1) * step) for n in range(count)]
    if (used.sum(0) == 1).all():
        owner = used.int().argmax(0)
        if (owner.diff() >= 0).all():
            ends = torch.bincount(owner, minlength=count).cumsum(0).tolist()
            return [range(a, b) for a, b in zip([0, *ends], ends)]
    return None


def _with_rows_of(part: Module, whole: Module, n: int, shares: Sequence[int]) -> Module:
    """The part with its share of what the whole has for each output row: DoRA magnitudes, bias changes."""
    for name in _BY_ROW:
        value = whole.parts.get(name)
        if value is None:
            continue
        if name == "dora" and value.shape[0] == 1:
            raise FormatError("fuse.dora_inputs")
        part = part.replaced(**{name: torch.split(value, sizes(len(value), shares))[n].clone()})
    return part


def join(modules: Sequence[Module | None], shares: Sequence[int]) -> Module:
    """One module over all shares. A missing part changes nothing: its rows are zero."""
    present = [m for m in modules if m is not None]
    kinds = {m.kind for m in present}
    if len(kinds) > 1:
        raise FormatError("fuse.several_kinds", kinds=sorted(kinds))
    dora = [m.parts.get("dora") for m in present]
    if any(d is not None for d in dora) and (
        len(present) < len(shares) or any(d is None or d.shape[0] == 1 for d in dora)
    ):
        raise FormatError("fuse.some_dora")
    kind = kinds.pop()
    if kind == "lora":
        joined = _join_lora([None if m is None else plain(m) for m in modules], shares)
    elif kind == "loha" and all("hada_t1" not in m.parts for m in present):
        joined = _join_loha(modules, shares)
    elif kind == "lokr" and len(present) == len(shares) and _one_kron(present):
        name = _first_factor(present[0])
        joined = present[0].replaced(**{name: torch.cat([m.parts[name] for m in present])})
    elif len(present) == len(shares) and len({tuple(m.parts) for m in present}) == 1 and _alike_but_rows(present):
        cut = _row_parts(present[0])
        return dataclasses.replace(
            present[0], parts={**present[0].parts, **{k: torch.cat([m.parts[k] for m in present]) for k in cut}}
        )
    else:
        raise FormatError("fuse.no_form", kind=kind, way=as_lora(present[0]))
    if any(d is not None for d in dora):
        joined = joined.replaced(dora=torch.cat([d for d in dora if d is not None]))
    if any("diff_b" in m.parts for m in present):
        rows = _rows(modules, shares)
        joined = joined.replaced(
            diff_b=torch.cat(
                [m.parts["diff_b"] if m and "diff_b" in m.parts else torch.zeros(n) for m, n in zip(modules, rows)]
            )
        )
    return joined


def _one_kron(present: Sequence[Module]) -> bool:
    """Whether these modules are one LoKr cut along the rows of its first factor."""
    first, name = present[0], _first_factor(present[0])
    shared = [part for part in first.parts if part not in (name, *_BY_ROW)]
    return all(
        m.alpha == first.alpha
        and m.parts.keys() == first.parts.keys()
        and m.parts[name].shape[1:] == first.parts[name].shape[1:]
        and all(torch.equal(m.parts[part], first.parts[part]) for part in shared)
        for m in present
    )


def _alike_but_rows(present: Sequence[Module]) -> bool:
    """Whether these modules are one module cut along its output rows."""
    first, rows = present[0], _row_parts(present[0])
    shared = [k for k in first.parts if k not in rows]
    fits = all(m.parts[k].shape[1:] == first.parts[k].shape[1:] for m in present for k in rows)
    return (
        bool(rows)
        and fits
        and all(
            m.alpha == first.alpha and all(torch.equal(m.parts[k], first.parts[k]) for k in shared) for m in present
        )
    )


def _rows(modules: Sequence[Module | None], shares: Sequence[int]) -> list[int]:
    """Output rows of every part, those of missing ones by proportion."""
    units = {m.shape[0] / s for m, s in zip(modules, shares) if m is not None}
    if len(units) != 1 or not next(iter(units)).is_integer():
        raise FormatError("fuse.parts_rows", shares=":".join(map(str, shares)))
    unit = int(units.pop())
    return [unit * s for s in shares]


def _join_lora(modules: Sequence[Module | None], shares: Sequence[int]) -> Module:
    present = [m for m in modules if m is not None]
    first, rows = present[0], _rows(modules, shares)
    same_scale = len({m.scale for m in present}) == 1
    if same_scale and all(m.rank == first.rank and torch.equal(m.parts["down"], first.parts["down"]) for m in present):
        ups = [
            torch.zeros(n, first.rank, dtype=first.parts["up"].dtype) if m is None else m.parts["up"]
            for m, n in zip(modules, rows)
        ]
        return Module("lora", {"down": first.parts["down"], "up": torch.cat(ups)}, first.alpha)
    parts = present if same_scale else [folded(m) for m in present]
    scale, rank = parts[0].scale, sum(m.rank for m in parts)
    dtype = torch.result_type(parts[0].parts["up"], parts[-1].parts["up"])
    up = torch.zeros(sum(rows), rank, *first.parts["up"].shape[2:], dtype=dtype)
    remaining, row, column = iter(parts), 0, 0
    for old, count in zip(modules, rows):
        if old is not None:
            part = next(remaining)
            up[row : row + count, column : column + part.rank] = part.parts["up"]
            column += part.rank
        row += count
    return Module("lora", {"down": torch.cat([m.parts["down"].to(dtype) for m in parts]), "up": up}, scale * rank)


def _join_loha(modules: Sequence[Module | None], shares: Sequence[int]) -> Module:
    present = [m for m in modules if m is not None]
    rows, parts = _rows(modules, shares), [folded(m, present[0].scale) for m in present]
    rank = sum(m.rank for m in parts)
    out = {k: torch.cat([m.parts[k] for m in parts]) for k in ("hada_w1_b", "hada_w2_b")}
    for key in ("hada_w1_a", "hada_w2_a"):
        wide, remaining, row, column = torch.zeros(sum(rows), rank, dtype=parts[0].parts[key].dtype), iter(parts), 0, 0
        for old, count in zip(modules, rows):
            if old is not None:
                part = next(remaining)
                wide[row : row + count, column : column + part.rank] = part.parts[key]
                column += part.rank
            row += count
        out[key] = wide
    return Module("loha", out, present[0].scale * rank)


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
    keys = _row_parts(module)
    if not keys or any(len(module.parts[k]) % 2 for k in keys):
        raise FormatError("fuse.order", kind=module.kind, way=as_lora(module))
    more = [k for k in _BY_ROW if k in module.parts and k not in keys and module.parts[k].shape[0] > 1]
    return dataclasses.replace(
        module,
        parts={**module.parts, **{k: module.parts[k].roll(len(module.parts[k]) // 2, 0) for k in (*keys, *more)}},
    )
