"""The canonical form -> the spelling a program reads. What each of them reads, and what it silently gets wrong, decides the details here.

"kohya" (A1111, Forge, kohya's own tools, ComfyUI), "comfyui" (its native names), "diffusers" (one file for `load_lora_weights`), "peft"
(a directory for each component) and "universal": the one form that ComfyUI and diffusers both read; what other programs read of it stands in README.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..lora_core.messages.message import Message
from . import fuse, peft
from .families import FAMILIES, UNKNOWN, Family, known_family, text
from .forms import TARGETS
from .lora import (
    APPROXIMATE,
    DROP_UNKNOWN,
    FAMILY,
    OTHER,
    FormatError,
    Lora,
    Module,
    State,
    about,
    approximation,
    as_lora,
    component,
    folded,
    plain,
    without_unread_core,
)
from .patterns import fill
from .readers import read

KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")
_PEFT_PARTS = {"down": "lora_A.weight", "up": "lora_B.weight", "dora": "lora_magnitude_vector"}


def write(lora: Lora, target: str = "universal", one_alpha: bool | None = None) -> State:
    """The tensors of one file, float32 wherever arithmetic was needed. See `entries`."""
    return dict(entries(lora, target, one_alpha))


def entries(lora: Lora, target: str = "universal", one_alpha: bool | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) of one file, computed one module at a time.

    `one_alpha`: the same alpha for all modules of a component, the difference folded into the weights. Default: only for the SD families
    in Kohya form, where diffusers gives every module the commonest alpha. What is of no known kind or layer has its own keys and tensors in
    every form (see `carried`). Raises FormatError where the target has no exact form.
    """
    if target == "peft":
        raise FormatError("peft.several_folders")
    if target not in TARGETS:
        raise FormatError("target.unknown", field="target", target=repr(target), allowed=TARGETS)
    placed, strays = _placed(lora)
    written: set[str] = set()
    for key, value in (*_spelled(placed, target, one_alpha), *_carried(strays), *lora.foreign.items()):
        if key in written:
            raise FormatError("file.key_repeated", key=key, other=key)
        written.add(key)
        yield key, value


def carried(lora: Lora) -> frozenset[str]:
    """The keys that `entries` gives with the very tensors of the file: of kinds and layers nobody here knows, and of no adapter at all."""
    _, strays = _placed(lora)
    return frozenset([*lora.foreign, *(key for module in strays.values() for key in module.as_found)])


def form_of(lora: Lora, target: str) -> str:
    """The form that `target` stands for with this LoRA. "universal" is the family's, and ComfyUI's where diffusers has no form for a module."""
    if target != "universal" or lora.family == UNKNOWN:
        return target
    form = FAMILIES[lora.family].universal
    placed, _ = _placed(lora)
    held = all(in_diffusers(module) for module in placed.modules.values())
    return "comfyui" if form in ("diffusers", "shared") and not held else form


def in_diffusers(module: Module) -> bool:
    """Whether diffusers has a form for it: lora_A and lora_B, with DoRA magnitudes of outputs where there are any."""
    kind = module.algebra
    if kind is None or not kind.paired or "diff_b" in module.parts:
        return False
    return module.magnitudes is None or kind.magnifies_outputs(module.parts)


def _placed(lora: Lora) -> tuple[Lora, Named]:
    """(the modules of layers that the family has, all others by their name in the file)."""
    family = FAMILIES.get(lora.family)
    strays = {n: m for n, m in lora.modules.items() if family is None or m.kind == OTHER or not _has(family, n)}
    placed = {name: module for name, module in lora.modules.items() if name not in strays}
    return dataclasses.replace(lora, modules=placed, foreign={}), strays


def _has(family: Family, name: str) -> bool:
    """Whether `name` is the canonical name of a layer of the family."""
    part, _, path = name.partition(".")
    if part == family.component:
        layer = family.table.find(path)
        return layer is not None and not layer.native
    return family.encoder(part) is not None and text.find(part, path) is not None


def _spelled(lora: Lora, target: str, one_alpha: bool | None) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) of modules whose layers the family has."""
    if not lora.modules:
        return
    family, form = FAMILIES[lora.family], form_of(lora, target)
    everyone = target == "universal" and form == "diffusers"
    target = form
    named = _for_everyone(lora, family) if everyone else _NAMES[target](lora, family)
    common = (
        _common_alphas(named)
        if target == "kohya" and (one_alpha or (one_alpha is None and family.component == "unet"))
        else {}
    )
    suffixes = _kohya_suffixes if target == "kohya" else _scale_in_weights
    if target == "comfyui":
        suffixes = _scale_in_weights_or_alpha
    for name, module in named.items():
        if name in common:
            module = folded(module, common[name] / module.rank)
        yield from ((f"{name}.{part}", value) for part, value in suffixes(name, module).items())


def peft_directories(lora: Lora, flat_clip: bool = False) -> dict[str, tuple[State, dict[str, Any]]]:
    """Component (unet, transformer, text_encoder, ...) -> (tensors, adapter_config) of a PEFT directory.

    `flat_clip`: CLIP paths without `text_model.`, as transformers 5.6 and later name the modules of CLIPTextModel.
    """
    family = _known(lora)
    groups: dict[str, dict[str, Module]] = {}
    placed, strays = _placed(lora)
    if foreign := [*strays, *lora.foreign]:
        raise FormatError("peft.foreign", key=foreign[0], option=DROP_UNKNOWN)
    for name, module in placed.modules.items():
        part = component(name)
        path = name.removeprefix(f"{part}.")
        encoder = family.encoder(part)
        if encoder and flat_clip and part != "clip_g":
            path = path.removeprefix("text_model.")
        groups.setdefault(encoder.component if encoder else part, {})[path] = plain(module)
    out = {}
    for name, modules in groups.items():
        state: State = {}
        for path, module in modules.items():
            _refuse_bias(path, module)
            parts = (
                {_PEFT_PARTS[k]: v for k, v in _peft_dora(path, module).parts.items()}
                if module.paired
                else module.parts
            )
            state |= {f"base_model.model.{path}.{part}": value for part, value in parts.items()}
        out[name] = state, peft.config_for(modules, [row.diffusers for row in family.table.rows])
    return out


# --- names: canonical -> (name in the file, module) -------------------------------------------------------------------

Named = dict[str, Module]


def _known(lora: Lora) -> Family:
    if lora.family == UNKNOWN:
        raise FormatError("family.unknown_names", option=FAMILY)
    return FAMILIES[lora.family]


def _native(lora: Lora, family: Family) -> Named:
    """Denoiser modules by native path, fused where the native model is."""
    groups: dict[str, dict[int, Module]] = {}
    rows = {}
    for name, module in _denoiser(lora, family):
        layer = family.table.find(name)
        assert layer is not None
        row = layer.rows[0]
        path = fill(row.native, layer.numbers)
        groups.setdefault(path, {})[row.part] = module
        rows[path] = row
    out = {}
    for path, parts in groups.items():
        row = rows[path]
        with about(path):
            out[path] = fuse.native(row, [parts.get(n) for n in range(len(row.shares))])
    return out


def _denoiser(lora: Lora, family: Family) -> list[tuple[str, Module]]:
    prefix = f"{family.component}."
    return [(name[len(prefix) :], m) for name, m in lora.modules.items() if name.startswith(prefix)]


def _texts(lora: Lora, family: Family) -> list[tuple[str, str, Module]]:
    """(encoder, path, module) of every text encoder layer."""
    return [(component(n), n.partition(".")[2], m) for n, m in lora.modules.items() if family.encoder(component(n))]


def _kohya_names(lora: Lora, family: Family) -> Named:
    denoiser = _native(lora, family) if family.native_kohya else dict(_denoiser(lora, family))
    named = {f"lora_unet_{_flat(path)}": module for path, module in denoiser.items()}
    prefixes = {e.name: e.kohya for e in family.encoders}
    for encoder, path, module in _texts(lora, family):
        flat = encoder == "t5xxl" or text.in_blocks(path) or (prefixes[encoder], path) in text.KOHYA_PROJECTIONS
        name = f"{prefixes[encoder]}_{_flat(path)}" if flat else f"text_encoders.{encoder}.transformer.{path}"
        named[name] = module
    return named


def _native_names(lora: Lora, family: Family) -> Named:
    named = {f"diffusion_model.{path}": module for path, module in _native(lora, family).items()}
    return named | {
        f"text_encoders.{encoder}.transformer.{path}": module for encoder, path, module in _texts(lora, family)
    }


def _diffusers_names(lora: Lora, family: Family) -> Named:
    components = {e.name: e.component for e in family.encoders}
    named = {f"{family.component}.{path}": module for path, module in _denoiser(lora, family)}
    return named | {f"{components[encoder]}.{path}": module for encoder, path, module in _texts(lora, family)}


def _shared_names(lora: Lora, family: Family) -> Named:
    """Fused layers under names that ComfyUI and diffusers both read; text encoders as in `_for_everyone`."""
    assert family.shared is not None
    named = {family.shared(path): module for path, module in _native(lora, family).items()}
    texts = {name: module for name, module in lora.modules.items() if family.encoder(component(name))}
    return named | _for_everyone(dataclasses.replace(lora, modules=texts), family)


def _for_everyone(lora: Lora, family: Family) -> Named:
    """diffusers' names, except for layers that ComfyUI knows by its own alone: T5 and other encoders of which diffusers loads no LoRA, and rows that say
    so. Parts of text encoders beside their blocks, which are few, have both names.
    """
    named = {}
    for name, module in lora.modules.items():
        encoder, path = family.encoder(component(name)), name.partition(".")[2]
        if encoder is None:
            layer = family.table.find(path)
            assert layer is not None
            row = layer.rows[0]
            named[f"diffusion_model.{fill(row.native, layer.numbers)}" if row.host_name_only else name] = module
            continue
        host_name_only = encoder.host_name_only or encoder.name == "t5xxl"
        if not host_name_only:
            named[f"{encoder.component}.{path}"] = module
        if host_name_only or not text.in_blocks(path):
            named[f"text_encoders.{encoder.name}.transformer.{path}"] = module
    return named


_NAMES = {"kohya": _kohya_names, "comfyui": _native_names, "diffusers": _diffusers_names, "shared": _shared_names}


def _flat(path: str) -> str:
    return path.replace(".", "_")


# --- suffixes: module -> keys -----------------------------------------------------------------------------------------


def _kohya_suffixes(name: str, module: Module, native: bool = False) -> State:
    """The endings of kohya's and LyCORIS' files, or of ComfyUI's native form, and alpha. Parts of no kind we know keep their endings."""
    kind, alpha = module.algebra, module.alpha
    out = dict(module.parts)
    if kind is not None:
        described = {part.name: part for part in kind.parts}
        out = {(native and described[k].native) or described[k].file: v for k, v in module.parts.items()}
        alpha = kind.alpha(module.parts, module.scale)
    return out if alpha is None else {**out, "alpha": torch.tensor(float(alpha))}


def _scale_in_weights(name: str, module: Module) -> State:
    """lora_A and lora_B alone. diffusers knows nothing else, and misreads alpha beside them."""
    if not module.paired:
        raise FormatError("diffusers.no_form", name=name, kind=module.kind, way=as_lora(module))
    _refuse_bias(name, module)
    return {_PEFT_PARTS[k]: v for k, v in _peft_dora(name, folded(plain(module))).parts.items()}


def _scale_in_weights_or_alpha(name: str, module: Module) -> State:
    """ComfyUI's native names: A and B with the scale inside; other kinds with their own parts and alpha."""
    if module.is_plain:
        return {_PEFT_PARTS.get(k, k): v for k, v in folded(plain(module)).parts.items()}
    return _kohya_suffixes(name, without_unread_core(module), native=True)


def _refuse_bias(name: str, module: Module) -> None:
    if "diff_b" in module.parts:
        raise FormatError("diffusers.bias", name=name, approximate=APPROXIMATE)


def _peft_dora(name: str, module: Module) -> Module:
    """DoRA magnitudes in PEFT's shape: (out,) for linear layers, (1, out, 1, ...) for convolutions."""
    dora = module.magnitudes
    if dora is None:
        return module
    out, kernel = module.shape[0], module.shape[2:]
    if dora.shape[0] != out:
        raise FormatError("diffusers.dora", name=name)
    return module.replaced(dora=dora.reshape(1, out, *[1] * len(kernel)) if kernel else dora.reshape(out))


def _common_alphas(named: Named) -> dict[str, float]:
    """Name -> the commonest alpha of its component, for components whose modules differ."""
    out: dict[str, float] = {}
    for prefix in KOHYA_PREFIXES:
        members = {n: m for n, m in named.items() if n.startswith(prefix) and m.rank}
        counts = Counter(m.scale * m.rank for m in members.values())
        common = max(counts, key=lambda a: (counts[a], a), default=0.0)
        if len(counts) > 1 and common > 0:
            out |= dict.fromkeys(members, common)
    return out


def _carried(modules: Named) -> Iterator[tuple[str, torch.Tensor]]:
    """The file's own keys and tensors; of modules that were changed since, its names with Kohya suffixes for flat ones, A and B for dotted ones."""
    for name, module in modules.items():
        if module.as_found:
            yield from module.as_found.items()
            continue
        flat = name.startswith(("lora_", "lycoris_", "oft_"))
        suffixes = (_kohya_suffixes if flat else _scale_in_weights_or_alpha)(name, module)
        yield from ((f"{name}.{part}", value) for part, value in suffixes.items())


def trained(state: Mapping[str, torch.Tensor], base: str) -> State:
    """What a training run exports, from its own state (`<name>.lora_down`, ...): the universal form of the family called `base`.

    Families and layers without a table keep the names they were trained under, which the host's own key map gave them.
    """
    family = known_family(base)
    if family != UNKNOWN:
        with contextlib.suppress(FormatError):
            lora = read(state, family=family)
            _, strays = _placed(lora)
            if not strays and not lora.foreign:
                return write(lora)
    lora = read(state, family=UNKNOWN)
    modules = {
        name: module if module.kind == OTHER else dataclasses.replace(module) for name, module in lora.modules.items()
    }
    return write(dataclasses.replace(lora, modules=modules))


def approximated(lora: Lora, rank: int) -> tuple[Lora, dict[str, float]]:
    """(the LoRA with every LoHa, LoKr or full difference replaced by its best LoRA of `rank`, relative error of each).

    Refused is what depends on the base weight: DoRA, OFT and the like. Changes of biases and norms, which only ComfyUI and kohya files can hold,
    are left out; a note says how many.
    """
    if rank < 1:
        raise FormatError("rank.unusable", field="approximate", rank=rank)
    modules, errors, biases, norms = {}, {}, 0, 0
    for name, module in lora.modules.items():
        if module.magnitudes is not None:
            raise FormatError("approximate.dora", name=name)
        if module.algebra and module.algebra.needs_base:
            raise FormatError("module.not_low_rank", name=name, kind=module.kind, way=as_lora(module))
        if len(module.shape) == 1:
            norms += 1
            continue
        if module.kind != OTHER and "diff_b" in module.parts:
            module, biases = (
                dataclasses.replace(module, parts={k: v for k, v in module.parts.items() if k != "diff_b"}),
                biases + 1,
            )
        if not module.parts:
            continue
        modules[name] = module
        if module.algebra and not module.paired:
            with about(name):
                modules[name], errors[name] = approximation(module, rank)
    notes = [Message.of("note.biases_left_out", count=biases)] if biases else []
    notes += [Message.of("note.norms_left_out", count=norms)] if norms else []
    return dataclasses.replace(lora, modules=modules, notes=[*lora.notes, *notes]), errors
