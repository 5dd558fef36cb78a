"""Whole base models layer by layer: baking a LoRA in, and extracting one as the difference of two. One tensor at a time, never two copies.

Reads ComfyUI's single files (with or without `model.diffusion_model.`), and diffusers folders; the layout follows from the keys.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ...lora_core.algebra.full import KIND as FULL
from ...lora_core.messages.message import Message
from .. import fuse
from ..detect import detect
from ..families import FAMILIES, Family, text
from ..lora import FormatError, Lora, Module, applied, delta, kind_of, low_rank
from ..merge import Outcome, Progress, quiet, rank_limit, require_sizes
from ..patterns import Found
from ..readers import unfused
from ..scales import dequantised, factors, quantised, unapplied, warning
from ..serialize import Layout
from . import disk

_DENOISER = ("model.diffusion_model.", "diffusion_model.", "")
_TEXT = (
    ("cond_stage_model.transformer.", "clip_l"),
    ("conditioner.embedders.0.transformer.", "clip_l"),
    ("conditioner.embedders.1.model.", "clip_g"),
    ("conditioner.embedders.0.model.", "clip_g"),
    ("cond_stage_model.model.", "clip_h"),
    ("text_encoders.clip_l.transformer.", "clip_l"),
    ("text_encoders.clip_g.transformer.", "clip_g"),
    ("text_encoders.t5xxl.transformer.", "t5xxl"),
)
_NOT_DENOISER = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoder", "vae.")
_BIAS = re.compile(r"weight$")
Read = Callable[[str], torch.Tensor]
_WEIGHT = re.compile(r"(.+?)(?:\.weight|(?<=in_proj)_weight)")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One weight of a checkpoint: whose (denoiser component or text encoder), its row in the table, and the key it is stored under."""

    owner: str
    entry: Found
    key: str

    def names(self) -> list[str]:
        """Canonical names of the layer, several for a fused one."""
        return [f"{self.owner}.{self.entry.diffusers(row)}" for row in self.entry.rows]


@contextmanager
def checkpoint(path: Path) -> Iterator[tuple[Layout, Read, dict[str, Path]]]:
    """(key -> type and shape, reader of one tensor, key -> file) of a single file or of all weights of a diffusers folder.

    Keys of a folder begin with the component, as in `unet/down_blocks.0...`.
    """
    files = {path: ""} if path.is_file() else {file: f"{file.parent.name}/" for file in _folder_files(path)}
    if not files:
        raise FormatError("checkpoint.no_model", file=path.name)
    layout, where, headers = {}, {}, {}
    for file, prefix in files.items():
        if file.suffix != ".safetensors":
            raise FormatError("checkpoint.not_safetensors", file=file.name)
        headers[file] = entries = disk.header(file)[0]
        for key, entry in entries.items():
            layout[prefix + key] = (disk.dtype_of(entry["dtype"]), tuple(entry["shape"]))
            where[prefix + key] = file
    with ExitStack() as stack:
        readers = {file: stack.enter_context(disk.opened(file, headers[file])) for file in files}

        def tensor(key: str) -> torch.Tensor:
            return readers[where[key]](key.removeprefix(files[where[key]]))

        yield layout, tensor, where


_FOLDERS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def _folder_files(path: Path) -> list[Path]:
    """The weight files of the parts a LoRA can change; a variant (fp16) only where there is nothing else."""
    files_of_part = []
    for part in _FOLDERS:
        folder = path / part
        if not folder.is_dir():
            continue
        files = sorted(folder.glob("*.safetensors"))
        indexes = [i for i in sorted(folder.glob("*.safetensors.index.json")) if ".fp16." not in i.name]
        if indexes:
            try:
                files = sorted(
                    {
                        folder / name
                        for name in json.loads(indexes[0].read_text())["weight_map"].values()
                        if Path(name).name == name
                    }
                )
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                raise FormatError("checkpoint.no_index", file=indexes[0].name) from error
        plain = [f for f in files if ".fp16." not in f.name and "non_ema" not in f.name]
        files_of_part += plain or files
    return files_of_part


def layers_of(layout: Layout, family: Family) -> dict[str, Layer]:
    """Key -> layer, for every weight the family's tables know."""
    out = {}
    components = {e.component: e.name for e in family.encoders}
    for key in layout:
        match = _WEIGHT.fullmatch(key)
        if match is None:
            continue
        name = match[1]
        folder, slash, path = name.partition("/")
        if slash:
            layer = _in_folder(folder, path, family, components)
        else:
            layer = _in_file(name, family)
        if layer:
            out[key] = Layer(*layer, key)
    return out


def _in_folder(folder: str, path: str, family: Family, components: Mapping[str, str]) -> tuple[str, Found] | None:
    if folder == family.component:
        layer = family.table.find(path)
        return (folder, layer) if layer else None
    encoder = components.get(folder, "")
    layer = text.layer(encoder, path) if encoder else None
    return (encoder, layer) if layer else None


def _in_file(name: str, family: Family) -> tuple[str, Found] | None:
    for prefix, encoder in _TEXT:
        if name.startswith(prefix):
            layer = text.layer(encoder, name.removeprefix(prefix)) if family.encoder(encoder) else None
            return (encoder, layer) if layer else None
    prefix = next(p for p in _DENOISER if name.startswith(p))
    layer = family.table.find(name.removeprefix(prefix))
    return (family.component, layer) if layer else None


def require_unscaled(name: str, layout: Layout, plain: Mapping[str, str], keys: Iterable[str] = ()) -> None:
    """Refuses a checkpoint whose denoiser is quantised with more than the `plain` factors of `scales.factors`, or one of the weights `keys` in
    another part. Raises FormatError.
    """
    scaled = unapplied(layout, plain)
    scales_present = [scale for scales in scaled.values() for scale in scales if not scale.startswith(_NOT_DENOISER)]
    scales_present += [scale for key in keys for scale in scaled.get(key.removesuffix(".weight"), ())]
    if scales_present:
        raise FormatError("error.about", about=name, error=warning(scales_present))


def family_of(layout: Layout) -> Family:
    """The family of a checkpoint, from its layer names and shapes."""
    raw = {}
    for key, (_, shape) in layout.items():
        match = _WEIGHT.fullmatch(key)
        if match and len(shape) > 1 and not key.startswith(_NOT_DENOISER):
            name = match[1].partition("/")[2] or match[1].removeprefix("model.").removeprefix("diffusion_model.")
            raw[f"diffusion_model.{name}"] = Module(FULL.name, {"diff": torch.empty(shape, device="meta")})
    name, _ = detect(raw, {}, any_width=True) if raw else ("", None)
    if name not in FAMILIES:
        raise FormatError("checkpoint.unknown_family")
    return FAMILIES[name]


# --- baking -----------------------------------------------------------------------------------------------------------

Loras = list[tuple[Lora, float]] | Callable[[Family], list[tuple[Lora, float]]]  # each with its strength


def bake(
    source: Path,
    target: Path,
    loras: Loras,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = quiet,
) -> Baked:
    """Writes `source` with the LoRAs added at their strengths to `target`, each weight in the type it had, fp8 ones with a new factor where they need one.

    A folder is written as a folder of the same files; other files in it are copied. `loras`: also a function that opens them for the checkpoint's family.
    Raises FormatError, before writing, when a module of a LoRA has no layer in the checkpoint, and when a result is not finite.
    """
    with checkpoint(source) as (layout, tensor, where):
        plain = factors(layout, tensor)
        require_unscaled(source.name, layout, plain)
        family = family_of(layout)
        opened = loras(family) if callable(loras) else loras
        _require_family(family, opened)
        layers = layers_of(layout, family)
        changes = [(_by_key(lora, layers), strength) for lora, strength in opened]
        changed = dict.fromkeys(sorted({key for by_key, _ in changes for key in by_key}))
        require_unscaled(source.name, layout, plain, changed)
        for by_key, _ in changes:
            for key, module in by_key.items():
                if key not in layout:
                    raise FormatError("bake.tensor_missing", key=key)
                if not kind_of(module).fits(module.parts, layout[key][1]):
                    shape = module.shape or ", ".join(
                        f"{part} {tuple(value.shape)}" for part, value in module.parts.items()
                    )
                    raise FormatError("bake.other_shape", key=key, shape=layout[key][1], wanted=shape)
        done = 0
        lost, total = 0.0, 0.0  # squared norms: of what rounding to fp8 took from the changes, of the changes
        of_scale = {plain[weight]: weight for weight in changed if weight in plain}

        def numbers(key: str) -> torch.Tensor:
            """The weight with the LoRAs added, float32 where it is one of the changed."""
            new = tensor(key)
            if key in plain:
                new = dequantised(new, tensor(plain[key]))
            for by_key, strength in changes:
                if key not in by_key:
                    continue
                try:
                    new = applied(new, by_key[key], strength)
                except FormatError as error:
                    raise FormatError("error.about", about=key, error=error) from error
            return new

        def result(key: str) -> torch.Tensor:
            nonlocal done, lost, total
            if key in of_scale:
                weight = of_scale[key]
                return quantised(numbers(weight), tensor(key), layout[weight][0])[1]
            if key not in changed:
                return tensor(key)
            progress(done, len(changed), key)
            done += 1
            new = numbers(key)
            if key in plain:
                old = tensor(plain[key])
                stored, scale = quantised(new, old, layout[key][0])
                apart = dequantised(stored, scale) - new
                lost, total = (
                    lost + float(apart.square().sum()),
                    total + float((new - dequantised(tensor(key), old)).square().sum()),
                )
                new = stored
            else:
                new = new.to(layout[key][0])
            if not torch.isfinite(new.float()).all():
                raise FormatError("bake.not_finite", key=key)
            return new

        for key in changed:
            if layout[key][0].itemsize < 2 and key not in plain:
                raise FormatError("bake.small_type", key=key, type=layout[key][0])
        if source.is_file():
            disk.save_streamed(target, layout, result, metadata)
        else:
            disk.save_folder(source, target, layout, result, where)
    return Baked(len(changed), len(layout), len(of_scale), (lost / total) ** 0.5 if total else 0.0)


@dataclasses.dataclass(frozen=True)
class Baked:
    """What was written: how many of the tensors changed; how many of those are fp8 with a factor, and how much of their change rounding took,
    as a relative error.
    """

    changed: int
    tensors: int
    rounded: int = 0
    rounding: float = 0.0


def _require_family(family: Family, loras: list[tuple[Lora, float]]) -> None:
    for lora, _ in loras:
        if lora.family != family.name:
            raise FormatError("bake.other_family", family=family.title, wanted=lora.family)


def _by_key(lora: Lora, layers: Mapping[str, Layer]) -> dict[str, Module]:
    """Checkpoint key -> module, fused where the checkpoint is, and its bias's key for a change of the bias."""
    modules = dict(lora.modules)
    out = {}
    for key, layer in layers.items():
        parts = [modules.pop(name, None) for name in layer.names()]
        present = [m for m in parts if m is not None]
        if not present:
            continue
        row = layer.entry.rows[0]
        if any(m.algebra is None for m in present):
            raise FormatError("bake.unbakeable", layer=layer.names()[0], parts=present[0].parts)
        try:
            module = fuse.native(row, parts) if layer.entry.native else present[0]
        except FormatError as error:
            raise FormatError("error.about", about=key, error=error) from error
        if module.changes_weight:
            out[key] = module
        if "diff_b" in module.parts:
            out[_BIAS.sub("bias", key)] = Module(FULL.name, {"diff": module.parts["diff_b"]})
    if modules:
        raise FormatError("bake.layers_missing", count=len(modules), layer=next(iter(modules)))
    return out


# --- extraction -------------------------------------------------------------------------------------------------------


def extract(
    base: Path,
    tuned: Path,
    rank: int,
    conv_rank: int = 0,
    energy: float = 1.0,
    text_encoders: bool = True,
    min_change: float = 1e-6,
    progress: Progress = quiet,
) -> Outcome:
    """A LoRA for the difference of two checkpoints of one family, layer by layer, by SVD, and its relative error.

    `conv_rank` 0: the same as `rank`. Weights and biases whose relative change is below `min_change` are left out. Changes of norms and biases are
    kept as they are, as full differences.
    """
    require_sizes(rank, conv_rank, energy)
    with checkpoint(base) as (old_layout, old, _), checkpoint(tuned) as (new_layout, new, _):
        old_plain, new_plain = factors(old_layout, old), factors(new_layout, new)
        for place, layout, plain in ((base, old_layout, old_plain), (tuned, new_layout, new_plain)):
            require_unscaled(place.name, layout, plain)
        family = family_of(old_layout)
        if family_of(new_layout) is not family:
            raise FormatError("extract.other_family", family=family.title, other=family_of(new_layout).title)
        owners = [family.component, *(e.name for e in family.encoders if text_encoders)]
        ours, theirs = (_by_name(layers_of(layout, family), owners) for layout in (old_layout, new_layout))
        pairs = list(dict.fromkeys((ours[name], theirs[name]) for name in theirs if name in ours))
        require_unscaled(base.name, old_layout, old_plain, (before.key for before, _ in pairs))
        require_unscaled(tuned.name, new_layout, new_plain, (after.key for _, after in pairs))
        if not pairs:
            raise FormatError("extract.nothing_common")
        modules, errors, lost, total = {}, {}, 0.0, 0.0
        for n, (before, after) in enumerate(pairs):
            progress(n, len(pairs), after.key)
            sides = _side(before, old_layout, old, old_plain), _side(after, new_layout, new, new_plain)
            for layer, change in _changes(*sides, min_change):
                for path, full, part in _approximated(layer, change, (rank, conv_rank), energy):
                    name = f"{after.owner}.{path}"
                    modules[name] = part
                    if not part.paired:
                        continue
                    apart = float((delta(full) - delta(part).reshape(full.shape)).norm())
                    norm = float(delta(full).norm())
                    errors[name] = apart / norm if norm else 0.0
                    lost, total = lost + apart**2, total + norm**2
    if not modules:
        raise FormatError("extract.same")
    lonely = len(ours.keys() ^ theirs.keys())
    notes = [Message.of("note.lonely_layers", count=lonely)] if lonely else []
    return Outcome(
        Lora(family.name, dict(sorted(modules.items())), notes=notes), (lost / total) ** 0.5 if total else 0.0, errors
    )


@dataclasses.dataclass(frozen=True)
class _Side:
    """A layer as one of the checkpoints has it. `values`: "diff" -> its weight, "diff_b" -> its bias, where it has one."""

    layer: Layer
    values: dict[str, torch.Tensor]


def _side(layer: Layer, layout: Layout, tensor: Read, plain: Mapping[str, str]) -> _Side:
    values, bias = {"diff": _numbers(layer.key, tensor, plain)}, _BIAS.sub("bias", layer.key)
    return _Side(layer, values | {"diff_b": tensor(bias)} if bias in layout else values)


def _approximated(
    layer: Found, change: Module, ranks: tuple[int, int], energy: float
) -> Iterator[tuple[str, Module, Module]]:
    """(diffusers path, its change, that as a LoRA with the change of its bias) of each layer that a changed one stands for. Norms, and layers of which
    the bias alone changed, stay as they are. `ranks`: of all layers, of convolutions.
    """
    weight, bias = change.parts["diff"], change.parts.get("diff_b")
    if weight.ndim < 2 or not weight.any():
        for path, part in unfused(layer, change):
            if part is not None:
                kept = part if weight.ndim < 2 else Module(FULL.name, {"diff_b": part.parts["diff_b"]})
                yield path, kept, kept
        return
    low, _ = low_rank(weight, rank_limit(weight.shape, *ranks), energy)
    exact = dict(unfused(layer, Module(FULL.name, {"diff": weight})))
    for path, part in unfused(layer, low if bias is None else low.replaced(diff_b=bias)):
        full = exact[path]
        if part is not None and full is not None:
            yield path, full, part


def _numbers(key: str, tensor: Read, plain: Mapping[str, str]) -> torch.Tensor:
    value = tensor(key)
    return dequantised(value, tensor(plain[key])) if key in plain else value


def _by_name(layers: Mapping[str, Layer], owners: list[str]) -> dict[str, Layer]:
    """Canonical name -> the layer that holds it, several names for a fused one."""
    return {name: layer for layer in layers.values() if layer.owner in owners for name in layer.names()}


def _changes(before: _Side, after: _Side, least: float) -> Iterator[tuple[Found, Module]]:
    """(what it is, its change) of a pair of layers: as a whole where both are stored alike, else of each layer they share. Parts whose relative change is
    at most `least` are left out, and layers that have no other.
    """
    if before.layer.names() == after.layer.names() and before.layer.entry.native == after.layer.entry.native:
        pairs = [(after.layer.entry, before.values, after.values)]
    else:
        first, second = _apart(before), _apart(after)
        pairs = [
            (module_name, first[name][1], values) for name, (module_name, values) in second.items() if name in first
        ]
    for module_name, one, two in pairs:
        parts = {}
        for part in (part for part in two if part in one):
            change, size = _difference(after.layer.key, one[part], two[part])
            if size > least:
                parts[part] = change
        if parts:  # a bias comes with a weight, whose shape says in which order its rows are
            yield module_name, Module(FULL.name, {"diff": torch.zeros_like(one["diff"], dtype=torch.float32), **parts})


def _difference(key: str, one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(two - one, its size relative to one)."""
    if one.numel() != two.numel() or one.shape[:1] != two.shape[:1]:
        raise FormatError("extract.other_shape", key=key, shape=tuple(two.shape), base=tuple(one.shape))
    change = two.float().reshape(one.shape) - one.float()
    if not torch.isfinite(change).all():
        raise FormatError("tensor.not_finite", key=key)
    return change, float(change.norm()) / max(float(one.float().norm()), 1e-12)


def _apart(side: _Side) -> dict[str, tuple[Found, dict[str, torch.Tensor]]]:
    """Diffusers path -> (the single layer, its weight and bias), for one layer of a checkpoint."""
    layer, out = side.layer.entry, {}
    for (path, part), row in zip(unfused(layer, Module(FULL.name, side.values)), layer.rows, strict=True):
        if part is not None:
            out[path] = Found((row,), layer.numbers, native=False), dict(part.parts)
    return out
