"""Any spelling of a LoRA -> the canonical form. Strict: a key that cannot be understood is an error with its name, never dropped in silence."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..lora_core.algebra.kind import Kind
from ..lora_core.algebra.kinds import recognised
from ..lora_core.messages.message import Message
from . import fuse, keys, peft
from .detect import detect, split_prefix
from .embedding import WIDTHS as EMBEDDING_WIDTHS
from .embedding import unbundled
from .families import FAMILIES, UNKNOWN, Family, text
from .lora import DROP_UNKNOWN, FAMILY, OTHER, SCALE, FormatError, Lora, Module, State, about, multiplied, same
from .origin import trained_on
from .patterns import Found, Row

MAX_RANK = 65536
MAX_LAYERS = 5000  # of one file; the largest models have a third of that
MAX_SEARCH_S = 1.5  # of this thread, for patterns that are no names
MAX_WEIGHT, MAX_SIDE = 1 << 30, 1 << 18  # values and rows of one layer; the largest in use have a third of that


def read(
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    family: str = "",
    drop_unknown: bool = False,
) -> Lora:
    """The LoRA in `state`. `config` is a PEFT `adapter_config.json`; `family` overrides detection.

    Scale comes from `.alpha`, else from the PEFT config (or the copy diffusers keeps in the header), else it is 1.
    Keys that are no part of an adapter, and layers that the model does not have, are carried as they are and counted in a note;
    `drop_unknown` leaves them out instead. Raises FormatError for files without any adapter, repeated keys, incomplete or misshapen modules,
    numbers that are not finite, and an unknown `family`.
    """
    if family and family not in (*FAMILIES, UNKNOWN):
        raise FormatError("family.unknown", field="family", family=repr(family), allowed=FAMILIES)
    state, embeddings = unbundled(state)
    metadata = dict(metadata or {})
    if not state:
        raise FormatError("file.only_embeddings" if embeddings else "file.empty")
    raw, foreign = _modules(state)
    _require_finite(raw)
    if config:
        raw = _scaled(raw, {"": config})
    else:
        raw = _scaled(raw, peft.header_configs(metadata))
    raw = {name: _settled_bias(name, module) for name, module in raw.items()}
    chosen, doubt = (family, None) if family else detect(raw, metadata)
    notes = [doubt] if doubt else []
    named, strays, whole = (raw, [], []) if chosen == UNKNOWN else _canonical(raw, FAMILIES[chosen])
    if strays and _none_fits(named, strays, FAMILIES[chosen]):
        raise FormatError("family.no_layer_or_other", name=strays[0], family=FAMILIES[chosen].title, option=FAMILY)
    if drop_unknown and (strays or foreign):
        named = {name: module for name, module in named.items() if name not in strays}
        notes.append(Message.of("note.dropped", count=len(strays) + len(foreign), key=[*strays, *foreign][0]))
        strays, foreign = [], {}
    if strays:
        notes.append(
            Message.of(
                "note.strays", count=len(strays), layer=strays[0], family=FAMILIES[chosen].title, option=DROP_UNKNOWN
            )
        )
    if whole:
        notes.append(Message.of("note.whole", count=len(whole), layer=whole[0], kind=named[whole[0]].kind))
    if others := [key for module in named.values() if module.kind == OTHER for key in module.as_found]:
        notes.append(Message.of("note.unknown_kind", count=len(others), key=others[0]))
    if foreign:
        notes.append(Message.of("note.foreign", count=len(foreign), key=next(iter(foreign)), option=DROP_UNKNOWN))
    if any(m.alpha == 0 for m in raw.values()):
        notes.append(Message.of("note.alpha_zero"))
    if embeddings:
        notes.append(Message.of("note.bundles", count=len(embeddings), tokens=[*embeddings]))
    if any("naive_a" in key or key.endswith((".A", ".B")) for key in state):
        notes.append(Message.of("note.bare_scale", option=SCALE))
    notes += [*_dora_notes(named), *_remarks(named)]
    return Lora(
        chosen,
        dict(sorted(named.items())),
        metadata,
        embeddings,
        notes,
        keys.form(next(iter(state), "")),
        frozenset(state),
        foreign,
        trained_on(metadata),
    )


def _modules(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, Module], State]:
    """(modules by their name in the file, tensors that are no part of an adapter)."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    origin: dict[tuple[str, str], str] = {}
    foreign: State = {}
    for key, value in state.items():
        parsed = keys.parse(key, state)
        if parsed is None:
            foreign[key] = value
            continue
        name, part = parsed
        if (name, part) in origin:
            raise FormatError("file.key_repeated", key=key, other=origin[name, part])
        origin[name, part] = key
        parts.setdefault(name, {})[part] = value
    _require_adapter(parts, foreign)
    if len(parts) > MAX_LAYERS:
        raise FormatError("file.many_layers", count=len(parts), limit=MAX_LAYERS)
    return {name: _module(name, part, {origin[name, p]: p for p in part}) for name, part in parts.items()}, foreign


def _none_fits(named: Collection[str], strays: Collection[str], family: Family) -> bool:
    """Whether a file has layers of a model, and none of this one. Layers of text encoders, which several families share, tell nothing."""
    of_a_model = [name for name in strays if split_prefix(name)[1] is None]
    fitting = any(name.startswith(f"{family.component}.") for name in named)
    return len(strays) == len(named) or bool(of_a_model) and not fitting


_NO_ADAPTER = frozenset({"alpha", "bias", "scale"})  # what weights of a model may be called too


def _require_adapter(parts: Mapping[str, Mapping[str, torch.Tensor]], foreign: State) -> None:
    """Raises FormatError for a file without any part that only adapters have."""
    if any(part.keys() - _NO_ADAPTER for part in parts.values()):
        return
    if not foreign:
        name, part = next(iter(parts.items()))
        raise FormatError("module.no_weights", name=name, parts=sorted(part))
    key, value = next(iter(foreign.items()))
    vectors = value.ndim in (1, 2, 3) and value.shape[-1:] and value.shape[-1] in EMBEDDING_WIDTHS
    raise FormatError("file.foreign_vectors" if vectors else "file.foreign_key", key=key)


def _module(name: str, tensors: dict[str, torch.Tensor], origin: Mapping[str, str]) -> Module:
    """One layer's parts as a module. `origin`: key in the file -> part. Parts of no kind we know, or of more than one, stay as they are."""
    if tensors.keys() == {"alpha"}:
        raise FormatError("module.no_weights", name=name, parts=["alpha"])
    as_found = {key: tensors[part] for key, part in origin.items()}
    parts = {part: value for part, value in tensors.items() if part != "alpha"}
    if parts.keys() == {"naive_a", "naive_b"}:
        parts = _from_naive(name, parts)
    kind = recognised(parts)
    if kind is None or parts.keys() - kind.allowed - _BESIDE[kind.paired]:
        return Module(OTHER, {keys.ending(key): value for key, value in as_found.items()}).found_as(as_found)
    _require_numbers(as_found)
    parts = {part: _computable(value) for part, value in parts.items()}
    alpha = _number(f"{name}.alpha", tensors["alpha"]) if "alpha" in tensors else None
    bias = parts.pop(keys.UP_BIAS, None)
    _require_sizes(name, parts)
    factor = 1.0
    if "scale" in parts:  # A1111 reads it in place of alpha / rank
        factor, alpha = _number(f"{name}.scale", parts.pop("scale")), None
    if "magnitude" in parts and "down" in parts:  # PEFT: one number for each output, in a shape of its own
        parts["dora"] = parts.pop("magnitude").reshape(-1, *[1] * (parts["down"].ndim - 1))
    elif "dora" in parts and parts["dora"].ndim == 1:
        parts["dora"] = parts["dora"].reshape(-1, 1)
    _require_parts(name, kind, parts)
    _require_shapes(name, kind, parts)
    settled, alpha = kind.settled(parts, alpha)
    module = Module(kind.name, settled, alpha)
    _require_layer(name, module)
    if factor != 1.0:
        module = multiplied(module, factor)
    return (module if bias is None else module.replaced(**{keys.UP_BIAS: bias})).found_as(as_found)


_BESIDE = {
    True: frozenset({"scale", "magnitude", keys.UP_BIAS}),
    False: frozenset(),
}  # what only a LoRA's own factors are read with


def _require_numbers(tensors: Mapping[str, torch.Tensor]) -> None:
    for key, value in tensors.items():
        if value.is_complex() or value.dtype == torch.bool:
            raise FormatError("tensor.type", key=key, type=value.dtype)


def _computable(value: torch.Tensor) -> torch.Tensor:
    """torch has hardly any arithmetic for 8-bit numbers."""
    return value.float() if value.is_floating_point() and value.itemsize == 1 else value


def _settled_bias(name: str, module: Module) -> Module:
    """The module with PEFT's bias of the upper factor as what it does: a change of the layer's bias, scale * bias."""
    bias = module.parts.get(keys.UP_BIAS)
    if bias is None:
        return module
    change = bias.float().flatten() * module.scale
    if "diff_b" in module.parts:
        change = change + module.parts["diff_b"].float()
    rest = {part: value for part, value in module.parts.items() if part != keys.UP_BIAS}
    settled = dataclasses.replace(module, parts={**rest, "diff_b": change})
    _require_layer(name, settled)
    return settled.found_as(module.as_found)


def _require_parts(name: str, kind: Kind, parts: Mapping[str, torch.Tensor]) -> None:
    """All that the kind needs, and numbers where it learns."""
    for part, value in parts.items():
        described = kind.part(part)
        if not value.is_floating_point() and not (described and described.constant):
            raise FormatError("module.part_type", name=name, part=part, type=value.dtype)
    if missing := kind.needed - parts.keys():
        raise FormatError("module.part_missing", name=name, parts=sorted(parts), missing=sorted(missing))


def _number(key: str, value: torch.Tensor) -> float:
    if value.numel() != 1:
        raise FormatError("module.number", key=key, count=value.numel())
    number = float(value)
    if not math.isfinite(number):
        raise FormatError("module.number_not_finite", key=key, number=number)
    return number


def _require_sizes(name: str, parts: Mapping[str, torch.Tensor]) -> None:
    """Every part is a tensor of one to five dimensions with something in it; scales may be any."""
    for part, value in parts.items():
        if part in ("scale", "on_input"):
            continue
        if value.numel() == 0 or not 1 <= value.ndim <= 5 or (part == "diff_b" and value.ndim != 1):
            raise FormatError("module.part_size", name=name, part=part, size=_size(value))


def _from_naive(name: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A (in, rank) and B (rank, out), used as x @ A @ B."""
    a, b = parts["naive_a"], parts["naive_b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise FormatError("module.bare_shapes", name=name, a=_size(a), b=_size(b))
    return {"down": a.t().contiguous(), "up": b.t().contiguous()}


def _require_shapes(name: str, kind: Kind, p: Mapping[str, torch.Tensor]) -> None:
    sizes = ", ".join(f"{k} {_size(v)}" for k, v in p.items())
    try:
        problem, shape, rank = kind.problem(p), (), 0
        if not problem:
            shape, rank = kind.shape(p), kind.rank(p)
    except (RuntimeError, KeyError, IndexError, StopIteration) as error:
        raise FormatError("module.factors", name=name, kind=kind.name, factors=sizes) from error
    if problem:
        raise FormatError("module.problem", name=name, problem=Message.of(problem), parts=sizes)
    if rank > MAX_RANK:
        raise FormatError("module.rank", name=name, rank=rank, parts=sizes, limit=MAX_RANK)
    if 0 in shape:
        raise FormatError("module.factors", name=name, kind=kind.name, factors=sizes)


def _require_layer(name: str, module: Module) -> None:
    """What the parts say about the layer's own size: not absurd, and the same in all of them."""
    shape, p = module.shape, module.parts
    if shape and (math.prod(shape) > MAX_WEIGHT or max(shape) > MAX_SIDE):
        raise FormatError("module.large", name=name, shape="x".join(map(str, shape)))
    if "dora" in p and len(shape) > 1 and p["dora"].numel() != (shape[1] if p["dora"].shape[0] == 1 else shape[0]):
        raise FormatError("module.dora_scale", name=name, size=_size(p["dora"]), outputs=shape[0], inputs=shape[1])
    if "diff_b" in p and shape and len(p["diff_b"]) != shape[0]:
        raise FormatError("module.diff_b", name=name, count=len(p["diff_b"]), outputs=shape[0])


def _size(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "1"


def _require_finite(modules: Mapping[str, Module]) -> None:
    for name, module in modules.items():
        for part, value in module.parts.items():
            if value.is_floating_point() and not torch.isfinite(_computable(value)).all():
                raise FormatError("module.not_finite", name=name, part=part)


def _scaled(raw: Mapping[str, Module], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Module]:
    """Every module with the alpha of its component's config; "" -> that of a file of one component, whose keys do not name it."""
    scales = {component: peft.Scales(config) for component, config in configs.items()}
    began, out = time.thread_time(), {}
    for name, module in raw.items():
        component = next((component for component in scales if component and name.startswith(f"{component}.")), "")
        inner = name[len(component) + 1 :] if component else name
        out[name] = scales[component].scaled(inner, module) if component in scales else module
        if time.thread_time() - began > MAX_SEARCH_S:
            raise FormatError("peft.patterns_slow", field="adapter_config.json")
    return out


def _canonical(raw: Mapping[str, Module], family: Family) -> tuple[dict[str, Module], list[str], list[str]]:
    """(modules by canonical name, the names of those that are of no layer of the family, and of those over several layers at once that cannot be divided
    exactly); the last two stay as they are.
    """
    out: dict[str, Module] = {}
    origin: dict[str, str] = {}
    strays: list[str] = []
    whole: list[str] = []

    def put(canonical: str, module: Module | None, name: str) -> None:
        if module is None:
            return
        if canonical in out and same(out[canonical], module):
            return  # "universal" files hold some layers under the names of two programs
        if canonical in out:
            raise FormatError("file.layer_repeated", name=name, other=origin[canonical])
        out[canonical], origin[canonical] = module, name

    for name, module in raw.items():
        if module.kind == OTHER:
            put(name, module, name)
            continue
        rest, slot = split_prefix(name)
        if slot is not None:
            path = _text_path(name, rest, slot, family)
            if path is None:
                strays.append(name)
            put(path or name, module, name)
            continue
        layer = family.table.find(rest)
        if layer is None:
            strays.append(name)
            put(name, module, name)
            continue
        if layer.native and len(layer.rows[0].shares) > 1 and not fuse.divides(module, layer.rows[0].shares):
            whole.append(name)
            put(name, module, name)
            continue
        for canonical, part in _unfused(name, layer, module):
            put(f"{family.component}.{canonical}", part, name)
    return out, strays, whole


def _text_path(name: str, rest: str, slot: int | str, family: Family) -> str | None:
    """The canonical name of a text encoder's layer: `name` in the file, `rest` without its prefix; None where the family has no such layer."""
    encoder = _encoder(name, rest, slot, family)
    path = text.find(encoder, rest) if encoder else None
    return f"{encoder}.{path}" if path else None


def _encoder(name: str, rest: str, slot: int | str, family: Family) -> str | None:
    """Which text encoder a slot means in this family. T5 is known by its layer names: some trainers count it as the second encoder of Flux."""
    if isinstance(slot, str):
        return slot if family.encoder(slot) else None
    if ("SelfAttention" in rest or "DenseReluDense" in rest) and family.encoder("t5xxl"):
        return "t5xxl"
    if by_component := [e for e in family.encoders if name.startswith(f"{e.component}.")]:
        return by_component[0].name
    clips = [e for e in family.encoders if e.name != "t5xxl"]
    if slot > len(clips):  # a program that counts the encoders before it, of which nothing is read here
        return next((e.name for e in clips if e.component == f"text_encoder_{slot}"), None)
    return clips[slot - 1].name


def _unfused(name: str, row: Found, module: Module) -> list[tuple[str, Module | None]]:
    shaped = _kernel(name, row.rows[0], module)
    with about(name):
        return unfused(row, shaped)


def unfused(entry: Found, module: Module) -> list[tuple[str, Module | None]]:
    """(diffusers path, module) of each layer that a module of a looked-up layer stands for."""
    row = entry.rows[0]
    if entry.native:
        module = fuse.arranged(row, module)
    if entry.native and len(row.shares) > 1:
        return [(entry.diffusers(r), part) for r, part in zip(entry.rows, fuse.split(module, row.shares))]
    return [(entry.diffusers(row), module)]


def _kernel(name: str, row: Row, module: Module) -> Module:
    """Factors in the shape the layer's own weight has: convolutions saved flat get their kernel back, 1x1 kernels of linear layers go."""
    if row.kernel and module.algebra and module.algebra.stores_flat and len(module.shape) == 2:
        if module.shape[1] % math.prod(row.kernel):
            raise FormatError(
                "module.no_convolution",
                name=name,
                kind=module.kind,
                size=_size_of(module.shape),
                kernel=_size_of(row.kernel),
            )
        return dataclasses.replace(module, kernel=row.kernel)
    if row.kernel is None or not module.paired or "mid" in module.parts:
        return module
    down, up, kernel = module.parts["down"], module.parts["up"], row.kernel
    if tuple(down.shape[2:]) == kernel:
        return module
    area = math.prod(kernel)
    flat = down.flatten(1)
    if (down.ndim > 2 and math.prod(down.shape[2:]) != 1) or flat.shape[1] % area:
        if not kernel:
            raise FormatError("module.for_linear", name=name, down=_size(down))
        raise FormatError("module.for_convolution", name=name, down=_size(down), kernel=_size_of(kernel))
    shaped = flat.reshape(len(flat), -1, *kernel)
    return module.replaced(down=shaped, up=up.reshape(*up.shape[:2], *[1] * len(kernel)))


def _size_of(kernel: tuple[int, ...]) -> str:
    return "x".join(map(str, kernel))


def _dora_notes(modules: Mapping[str, Module]) -> list[Message]:
    magnitudes = [module.magnitudes for module in modules.values()]
    axes = {"output" if sizes.shape[0] > 1 else "input" for sizes in magnitudes if sizes is not None}
    notes = []
    if "output" in axes:
        notes.append(Message.of("note.dora_outputs"))
    if "input" in axes:
        notes.append(Message.of("note.dora_inputs"))
    return notes


def _remarks(modules: Mapping[str, Module]) -> list[Message]:
    """What the kinds themselves have to say of such modules, once each."""
    codes = dict.fromkeys(m.algebra.remark(m.parts) for m in modules.values() if m.algebra)
    return [Message.of(code) for code in codes if code]
