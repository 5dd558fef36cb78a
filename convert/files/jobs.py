"""File in, file out: what the commands and the nodes both do. Each function reads, converts, and writes one new file, and says what happened."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from .. import peft
from ..card import card, merged
from ..embedding import Embedding, bundled, is_embedding, read_embedding, write_embedding
from ..families import Family
from ..lora import FormatError, Lora, State, cast
from ..merge import Outcome, Progress, merge, quiet, resize
from ..metadata import converted_metadata, embedding_metadata
from ..readers import read
from ..report import triggers
from ..writers import approximated, entries, peft_directories
from . import disk
from .checkpoints import bake, checkpoint, extract, family_of, require_unscaled


@dataclasses.dataclass
class Written:
    """A file that was written, and sentences about it."""

    path: Path
    notes: list[str]


def open_file(path: Path, family: str = "", drop_unknown: bool = False) -> Lora | Embedding:
    """The LoRA or embedding at `path`: a safetensors or torch file, or a PEFT directory (or a directory of PEFT directories)."""
    try:
        if path.is_dir():
            return open_peft(path, family)
        data, metadata = disk.load_any(path)
        if is_embedding(data):
            return read_embedding(data)
        if not all(isinstance(v, torch.Tensor) for v in data.values()):
            raise FormatError("is not a table of tensors.")
        return read(data, metadata, family=family, drop_unknown=drop_unknown)
    except FormatError as error:
        if str(error).startswith(path.name):
            raise
        raise FormatError(f"{path.name}: {error}") from error


def inspected(path: Path, family: str = "") -> Lora | Embedding:
    """As `open_file`, and a note when the hash in the header is not that of the data."""
    found = open_file(path, family)
    if isinstance(found, Lora):
        told = found.metadata.get("sshs_model_hash")
        if told and path.is_file() and disk.data_sha256(path) != told:
            found.notes.insert(0, "The hash in the header is not that of the data: another program changed the file and kept the old hash, or it is damaged.")
    return found


def open_lora(path: Path, family: str = "", drop_unknown: bool = False) -> Lora:
    found = open_file(path, family, drop_unknown)
    if not isinstance(found, Lora):
        raise FormatError(f"{path.name}: is an embedding, not a LoRA.")
    return found


def open_embedding(path: Path) -> Embedding:
    found = open_file(path)
    if not isinstance(found, Embedding):
        raise FormatError(f"{path.name}: is a LoRA, not an embedding.")
    return found


_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def open_peft(folder: Path, family: str = "") -> Lora:
    """A PEFT directory, or one with a PEFT directory for each component of the pipeline."""
    places = (
        {"": folder} if (folder / "adapter_config.json").is_file() else {c: folder / c for c in _COMPONENTS if (folder / c / "adapter_config.json").is_file()}
    )
    if not places:
        raise FormatError(f"{folder.name}: holds no adapter_config.json, so it is no PEFT adapter; give the adapter's own directory or file.")
    state: State = {}
    metadata: dict[str, str] = {}
    configs = {}
    for part, place in places.items():
        try:
            config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{place.name}/adapter_config.json: is not JSON.") from error
        if not isinstance(config, dict):
            raise FormatError(f"{place.name}/adapter_config.json: is no table of settings.")
        peft.require_supported(config)
        file = next((f for f in (place / "adapter_model.safetensors", place / "adapter_model.bin") if f.is_file()), None)
        if file is None:
            raise FormatError(f"{place.name}: has an adapter_config.json but no adapter_model.safetensors.")
        tensors, metadata = disk.load(file)
        prefix = f"{part}." if part else ""
        state |= {prefix + key: value for key, value in tensors.items()}
        configs[part] = config
    if "" in configs:
        lora = read(state, metadata, configs[""], family)
    else:
        flat = {f"{part}.{key}": value for part, config in configs.items() for key, value in config.items()}
        lora = read(state, {**metadata, peft.HEADER: json.dumps(flat)}, family=family)
        lora.metadata = dict(metadata)
    lora.source = "peft"
    return lora


@dataclasses.dataclass(frozen=True)
class Options:
    """How a LoRA is written. `approximate`: rank for modules the target has no form for, 0 refuses them. `details`: keep captions and paths."""

    target: str = "universal"
    dtype: str = "fp16"
    approximate: int = 0
    details: bool = False
    overwrite: bool = False
    keep_alphas: bool = False
    flat_clip: bool = False
    bundle: bool = False


def write_lora(lora: Lora, path: Path, options: Options, extra: Mapping[str, str] | None = None) -> Written:
    """Writes a LoRA as one safetensors file, or, for the target "peft", as directories at `path`. Never overwrites unless told."""
    notes = list(lora.notes)
    if options.approximate:
        lora, errors = approximated(lora, options.approximate)
        notes = list(lora.notes)
        if errors:
            notes.append(f"{len(errors)} modules became LoRA of rank {options.approximate}; relative error {max(errors.values()):.2%} at most.")
    if path.exists() and (not options.overwrite or options.target == "peft"):
        raise FormatError(f"{path.name}: exists already; choose another name{'' if options.target == 'peft' else ', or allow overwriting'}.")
    if options.target == "peft":
        return _write_peft(lora, path, options, notes)
    tensors, lost = cast(entries(lora, options.target, False if options.keep_alphas else None), options.dtype)
    if options.bundle and lora.embeddings:
        tensors |= bundled({token: read_embedding(vectors) for token, vectors in lora.embeddings.items()})
    if lost:
        notes.append(f"{lost:.2%} of the values are too small for {options.dtype} and became zero.")
    disk.save(path, tensors, converted_metadata(lora.metadata, tensors, path.stem, lora.family, options.details, **(extra or {})))
    return Written(path, notes)


def _write_peft(lora: Lora, path: Path, options: Options, notes: list[str]) -> Written:
    parts = {name: (*cast(state, options.dtype), config) for name, (state, config) in peft_directories(lora, options.flat_clip).items()}
    for component, (tensors, lost, config) in parts.items():
        disk.save(path / component / "adapter_model.safetensors", tensors, {"format": "pt"})
        with disk.replacing(path / component / "adapter_config.json") as file:
            file.write(json.dumps(config, indent=2).encode())
        if lost:
            notes.append(f"{component}: {lost:.2%} of the values are too small for {options.dtype} and became zero.")
    return Written(path, notes)


def convert(lora: Lora, target: Path, options: Options, embeddings_to: Path | None = None, embed: Sequence[Path] = ()) -> list[Written]:
    """A LoRA in another spelling; embeddings bundled in it as files of their own in `embeddings_to` (default: beside it), unless they are to
    stay bundled. Their names come from the name of the LoRA and never take the place of a file. `embed`: embedding files to bundle, each under
    its stem.
    """
    if embed:
        more = {path.stem: write_embedding(open_embedding(path)) for path in embed}
        lora = dataclasses.replace(lora, embeddings=lora.embeddings | more)
        options = dataclasses.replace(options, bundle=True)
    out = [write_lora(lora, target, options)]
    if not options.bundle:
        for token, vectors in lora.embeddings.items():
            stem = f"{target.stem}_emb" + (f"_{_safe(token)}" if len(lora.embeddings) > 1 else "")
            out.append(write_embedding_file(read_embedding(vectors), free_path(embeddings_to or target.parent, stem)))
            out[-1].notes.append(f"It was bundled under the token {token!r}; its trigger is now {out[-1].path.stem}.")
    return out


def _safe(token: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() or c in "-_" else "_" for c in token.lower())[:40]


def free_path(folder: Path, stem: str, suffix: str = ".safetensors", taken: Callable[[Path], bool] = Path.exists) -> Path:
    """`stem` in the folder, with _2, _3, ... behind it as long as that is taken."""
    path, number = folder / f"{stem}{suffix}", 2
    while taken(path):
        path, number = folder / f"{stem}_{number}{suffix}", number + 1
    return path


def write_embedding_file(embedding: Embedding, path: Path, target: str = "webui", overwrite: bool = False, dtype: str = "fp32") -> Written:
    """Writes an embedding; its file's stem is the trigger."""
    if path.exists() and not overwrite:
        raise FormatError(f"{path.name}: exists already; choose another name, or allow overwriting.")
    if target == "diffusers":
        embedding = dataclasses.replace(embedding, token=path.stem)
    tensors, _ = cast(write_embedding(embedding, target), dtype)
    disk.save(path, tensors, embedding_metadata(embedding, tensors, path.stem))
    return Written(path, list(embedding.notes))


def merge_files(sources: Sequence[tuple[Path, float]], target: Path, options: Options, rank: int = 0, family: str = "", progress: Progress = quiet) -> Written:
    """The weighted sum of LoRA files."""
    loras = [(open_lora(path, family), weight) for path, weight in sources]
    outcome = merge(loras, rank, progress)
    metadata = {"modelspec.merged_from": ", ".join(f"{path.stem} ({weight:g})" for path, weight in sources)}
    found = [t for lora, _ in loras for t in triggers(lora.metadata) if "modelspec.trigger_phrase" in lora.metadata]
    if found:
        metadata["modelspec.trigger_phrase"] = ", ".join(dict.fromkeys(found))
    return _write_outcome(outcome, target, options, metadata)


@dataclasses.dataclass(frozen=True)
class Size:
    """How small a LoRA becomes: the largest rank, that of convolutions (0: the same), the share of the squared norm to keep."""

    rank: int
    conv_rank: int = 0
    energy: float = 1.0


def resize_file(source: Path, target: Path, options: Options, size: Size, family: str = "", progress: Progress = quiet) -> Written:
    """A LoRA file with smaller ranks."""
    outcome = resize(open_lora(source, family), size.rank, size.conv_rank, size.energy, progress)
    return _write_outcome(outcome, target, options, {})


def extract_file(
    checkpoints: tuple[Path, Path], target: Path, options: Options, size: Size, text_encoders: bool = True, progress: Progress = quiet
) -> Written:
    """A LoRA for the difference of two checkpoints, the base and the tuned one."""
    outcome = extract(*checkpoints, size.rank, size.conv_rank, size.energy, text_encoders, progress=progress)
    return _write_outcome(outcome, target, options, {})


def _write_outcome(outcome: Outcome, target: Path, options: Options, metadata: Mapping[str, str]) -> Written:
    written = write_lora(outcome.lora, target, options, metadata)
    if outcome.error:
        worst = max(outcome.errors, key=lambda n: outcome.errors[n])
        written.notes.append(f"Relative error of the change of weights: {outcome.error:.2%} over all, {outcome.errors[worst]:.2%} in {worst}.")
    return written


def bake_file(source: Path, loras: Sequence[tuple[Path, float]], target: Path, overwrite: bool = False, progress: Progress = quiet) -> Written:
    """A checkpoint with LoRAs added for good. Its header keeps what it says, and names what was merged; a stale hash is dropped."""
    if target.exists() and not overwrite:
        raise FormatError(f"{target.name}: exists already; choose another name, or allow overwriting.")
    if target.resolve() == source.resolve():
        raise FormatError(f"{target.name}: is the checkpoint itself; choose another name.")
    metadata = disk.header(source)[1] if source.is_file() else {}
    metadata = {k: v for k, v in metadata.items() if not k.startswith(("sshs_", "modelspec.hash_sha256"))}
    metadata["modelspec.merged_from"] = ", ".join([source.stem, *(f"{path.stem} ({weight:g})" for path, weight in loras)])
    with checkpoint(source) as (layout, _, _):
        require_unscaled(source.name, layout)
        family = family_of(layout)
    counts = bake(source, target, [(_for_family(path, family), weight) for path, weight in loras], metadata, progress)
    return Written(target, [f"{counts['changed']} of {counts['tensors']} tensors changed."])


def _for_family(path: Path, family: Family) -> Lora:
    """A LoRA for a known model: one of text encoders alone fits several."""
    lora = open_lora(path)
    texts_only = not any(name.startswith(("unet.", "transformer.")) for name in lora.modules)
    return open_lora(path, family.name) if lora.family != family.name and texts_only else lora


def write_card(path: Path, family: str, words: tuple[str, ...], weight: float = 1.0, description: str = "") -> Path:
    """`<name>.json` beside a LoRA. What the user wrote into an existing card stays; a card that cannot be read is left alone."""
    place = path.with_suffix(".json")
    try:
        existing = place.read_text(encoding="utf-8") if place.exists() else ""
        text = merged(existing, card(family, words, description, weight))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{place.name}: is there but is not a card that can be read; it is left as it is.") from error
    with disk.replacing(place) as file:
        file.write(text.encode())
    return place
