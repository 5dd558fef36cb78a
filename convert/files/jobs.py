"""File in, file out: what the commands and the nodes both do. Each function reads, converts, and writes one new file, and says what happened."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...lora_core.algebra.bias import KIND as BIAS
from ...lora_core.algebra.kind import Kind
from ...lora_core.algebra.norm import KIND as NORM
from ...lora_core.messages.figures import percent
from ...lora_core.messages.message import Message, Setting
from .. import loaders, peft
from ..card import card, merged
from ..embedding import Embedding, bundled, is_embedding, read_embedding, write_embedding
from ..families import Family
from ..lora import FormatError, Lora, Module, State, about, cast
from ..merge import Outcome, Progress, merge, quiet, resize
from ..metadata import converted_metadata, embedding_metadata
from ..origin import Origin, in_card, in_config
from ..readers import read
from ..report import triggers
from ..writers import approximated, carried, entries, form_of, in_diffusers, peft_directories
from . import disk
from .checkpoints import bake, extract
from .whole import new_folder, replacing


@dataclasses.dataclass
class Written:
    """A file that was written, and what to say about it."""

    path: Path
    notes: list[Message]


def open_file(path: Path, family: str = "", drop_unknown: bool = False) -> Lora | Embedding:
    """The LoRA or embedding at `path`: a safetensors or torch file, or a PEFT directory (or a directory of PEFT directories)."""
    if path.is_dir():
        return _open_folder(path, family, drop_unknown)
    data, metadata = disk.load_any(path)
    with about(path.name):
        if is_embedding(data):
            return read_embedding(data)
        return _read_table(data, metadata, family, drop_unknown)


def _read_table(
    data: Mapping[str, Any], metadata: Mapping[str, str], family: str = "", drop_unknown: bool = False
) -> Lora:
    if not all(isinstance(v, torch.Tensor) for v in data.values()):
        raise FormatError("file.holds_no_tensors")
    return read(data, metadata, family=family, drop_unknown=drop_unknown)


def _open_folder(folder: Path, family: str, drop_unknown: bool) -> Lora | Embedding:
    """A PEFT directory, or a repository with one weight file; its card may say which base model it was trained on."""
    weights = sorted(folder.glob("*.safetensors"))
    is_peft = any((place / "adapter_config.json").is_file() for place in (folder, *(folder / c for c in _COMPONENTS)))
    usual = folder / "pytorch_lora_weights.safetensors"
    file = usual if usual in weights else next(iter(weights), None)
    if is_peft or file is None or (file != usual and len(weights) > 1):
        product: Lora | Embedding = open_peft(folder, family)
    else:
        product = open_file(file, family, drop_unknown)
    if isinstance(product, Lora):
        product.origins = tuple(dict.fromkeys((*_card_origins(folder), *product.origins)))
    return product


def _card_origins(folder: Path) -> tuple[Origin, ...]:
    """What the card of a repository folder says; nothing where there is none that can be read."""
    try:
        with open(folder / "README.md", encoding="utf-8", errors="replace") as file:
            return in_card(file.read(MAX_CARD))
    except OSError:
        return ()


MAX_CARD = 1 << 18  # characters of a card that are read; its header is at the beginning


def inspected(path: Path, family: str = "") -> Lora | Embedding:
    """As `open_file`, and a note when the hash in the header is not that of the data."""
    product = open_file(path, family)
    if isinstance(product, Lora):
        stated_hash = product.metadata.get("sshs_model_hash")
        if stated_hash and path.is_file() and disk.data_sha256(path) != stated_hash:
            product.notes.insert(0, Message.of("note.hash"))
    return product


def open_lora(path: Path, family: str = "", drop_unknown: bool = False) -> Lora:
    product = open_file(path, family, drop_unknown)
    if not isinstance(product, Lora):
        raise FormatError("file.embedding_not_lora", file=path.name)
    return product


def open_embedding(path: Path) -> Embedding:
    product = open_file(path)
    if not isinstance(product, Embedding):
        raise FormatError("file.lora_not_embedding", file=path.name)
    return product


_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def open_peft(folder: Path, family: str = "") -> Lora:
    """A PEFT directory, or one with a PEFT directory for each component of the pipeline."""
    places = (
        {"": folder}
        if (folder / "adapter_config.json").is_file()
        else {c: folder / c for c in _COMPONENTS if (folder / c / "adapter_config.json").is_file()}
    )
    if not places:
        raise FormatError("peft.no_config", folder=folder.name)
    state: State = {}
    metadata: dict[str, str] = {}
    configs = {}
    for part, place in places.items():
        configs[part] = _peft_config(place)
        file = next(
            (f for f in (place / "adapter_model.safetensors", place / "adapter_model.bin") if f.is_file()), None
        )
        if file is None:
            raise FormatError("peft.no_weights", folder=place.name)
        tensors, metadata = disk.load(file)
        prefix = f"{part}." if part else ""
        state |= {prefix + key: value for key, value in tensors.items()}
    with about(folder.name):
        if "" in configs:
            lora = read(state, metadata, configs[""], family)
        else:
            flat = {f"{part}.{key}": value for part, config in configs.items() for key, value in config.items()}
            lora = read(state, {**metadata, peft.HEADER: json.dumps(flat)}, family=family)
            lora.metadata = dict(metadata)
    lora.origins = tuple(dict.fromkeys(origin for config in configs.values() for origin in in_config(config)))
    lora.source = "peft"
    return lora


def _peft_config(place: Path) -> dict[str, Any]:
    """The adapter_config.json of one PEFT directory. Raises FormatError for what is damaged, and for parts of PEFT nobody else has."""
    try:
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError("peft.config_no_json", folder=place.name) from error
    if not isinstance(config, dict):
        raise FormatError("peft.config_no_table", folder=place.name)
    with about(place.name):
        peft.require_supported(config)
    return config


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
            worst = percent(max(errors.values()))
            notes.append(Message.of("note.approximated", count=len(errors), rank=options.approximate, error=worst))
    if path.exists() and (not options.overwrite or options.target == "peft"):
        raise FormatError("file.exists" if options.target == "peft" else "file.exists_overwrite", file=path.name)
    if options.target == "peft":
        return _write_peft(lora, path, options, notes)
    if form_of(lora, options.target) == "comfyui" != form_of(dataclasses.replace(lora, modules={}), options.target):
        notes.append(_host_form(lora))
    spelled = entries(lora, options.target, False if options.keep_alphas else None)
    tensors, lost = cast(spelled, options.dtype, carried(lora))
    if options.bundle and lora.embeddings:
        tensors |= bundled({token: read_embedding(vectors) for token, vectors in lora.embeddings.items()})
    if lost:
        notes.append(_underflow(lost, options.dtype))
    disk.save(
        path,
        tensors,
        converted_metadata(lora.metadata, tensors, path.stem, lora.family, options.details, **(extra or {})),
    )
    return Written(path, notes)


def _host_form(lora: Lora) -> Message:
    """Why a file that was to be read by diffusers too has ComfyUI's names."""
    unheld = [m.told_kind for m in lora.modules.values() if not in_diffusers(m)]
    return Message.of("note.host_form", count=len(unheld), kinds=sorted(set(unheld)))


def _write_peft(lora: Lora, path: Path, options: Options, notes: list[Message]) -> Written:
    parts = {
        name: (*cast(state, options.dtype), config)
        for name, (state, config) in peft_directories(lora, options.flat_clip).items()
    }
    with new_folder(path) as folder:
        for component, (tensors, lost, config) in parts.items():
            disk.save(folder / component / "adapter_model.safetensors", tensors, {"format": "pt"})
            (folder / component / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
            if lost:
                notes.append(Message.of("error.about", about=component, error=_underflow(lost, options.dtype)))
    return Written(path, notes)


def _underflow(lost: float, dtype: str) -> Message:
    return Message.of("note.underflow", share=percent(lost), type=dtype)


def convert(
    lora: Lora, target: Path, options: Options, embeddings_to: Path | None = None, embed: Sequence[Path] = ()
) -> list[Written]:
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
            out[-1].notes.append(Message.of("note.unbundled", token=repr(token), trigger=out[-1].path.stem))
    return out


def _safe(token: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() or c in "-_" else "_" for c in token.lower())[:40]


def free_path(
    folder: Path, stem: str, suffix: str = ".safetensors", taken: Callable[[Path], bool] = Path.exists
) -> Path:
    """`stem` in the folder, with _2, _3, ... behind it as long as that is taken."""
    path, number = folder / f"{stem}{suffix}", 2
    while taken(path):
        path, number = folder / f"{stem}_{number}{suffix}", number + 1
    return path


def write_embedding_file(
    embedding: Embedding, path: Path, target: str = "webui", overwrite: bool = False, dtype: str = "fp32"
) -> Written:
    """Writes an embedding; its file's stem is the trigger."""
    if path.exists() and not overwrite:
        raise FormatError("file.exists_overwrite", file=path.name)
    if target == "diffusers":
        embedding = dataclasses.replace(embedding, token=path.stem)
    tensors, _ = cast(write_embedding(embedding, target), dtype)
    disk.save(path, tensors, embedding_metadata(embedding, tensors, path.stem))
    return Written(path, list(embedding.notes))


def merge_files(
    sources: Sequence[tuple[Path, float]],
    target: Path,
    options: Options,
    rank: int = 0,
    family: str = "",
    progress: Progress = quiet,
) -> Written:
    """The weighted sum of LoRA files."""
    loras = [(open_lora(path, family), weight) for path, weight in sources]
    outcome = merge(loras, rank, progress)
    metadata = {"modelspec.merged_from": ", ".join(f"{path.stem} ({weight:g})" for path, weight in sources)}
    words = [t for lora, _ in loras for t in triggers(lora.metadata) if "modelspec.trigger_phrase" in lora.metadata]
    if words:
        metadata["modelspec.trigger_phrase"] = ", ".join(dict.fromkeys(words))
    return _write_outcome(outcome, target, options, metadata)


@dataclasses.dataclass(frozen=True)
class Size:
    """How small a LoRA becomes: the largest rank, that of convolutions (0: the same), the share of the squared norm to keep."""

    rank: int
    conv_rank: int = 0
    energy: float = 1.0


def resize_file(
    source: Path, target: Path, options: Options, size: Size, family: str = "", progress: Progress = quiet
) -> Written:
    """A LoRA file with smaller ranks."""
    outcome = resize(open_lora(source, family), size.rank, size.conv_rank, size.energy, progress)
    return _write_outcome(outcome, target, options, {})


AUTO, KEEP, LEAVE = BESIDE = ("auto", "keep", "leave")
NORMS_BIASES = Setting("norms_biases")
_PARTS = ((NORM, "part.norms"), (BIAS, "part.biases"))


@dataclasses.dataclass(frozen=True)
class Taken:
    """What of a difference becomes part of a LoRA beside the denoiser's matrices. `norms_biases`: one of BESIDE; "auto" keeps the changes of norms, and
    those of biases, where a program was seen to read them in such a file and none to lose the rest of the file over them.
    """

    text_encoders: bool = True
    norms_biases: str = AUTO


def extract_file(
    checkpoints: tuple[Path, Path],
    target: Path,
    options: Options,
    size: Size,
    taken: Taken = Taken(),
    progress: Progress = quiet,
) -> Written:
    """A LoRA for the difference of two checkpoints, the base and the tuned one. Raises FormatError where nothing but what is left out differs."""
    if taken.norms_biases not in BESIDE:
        raise FormatError("extract.beside", field="norms_biases", value=repr(taken.norms_biases), allowed=BESIDE)
    outcome = extract(*checkpoints, size.rank, size.conv_rank, size.energy, taken.text_encoders, progress=progress)
    lora = _with_beside(outcome.lora, options.target, taken.norms_biases)
    if not lora.modules:
        raise FormatError("extract.beside_alone", option=NORMS_BIASES)
    return _write_outcome(dataclasses.replace(outcome, lora=lora), target, options, {})


def _with_beside(lora: Lora, target: str, choice: str) -> Lora:
    """The LoRA with the changes of norms and of biases that the choice keeps, and a note for each of both that says what became of them, and why."""
    for kind, part in _PARTS:
        count = sum(_has_beside(module, kind) for module in lora.modules.values())
        if not count:
            continue
        rest = dataclasses.replace(lora, modules=_without(lora.modules, kind))
        form = form_of(lora if choice == KEEP else rest, target)
        verdicts = loaders.verdicts(lora.family, form, kind.name)
        readers, stopped = sorted(verdicts.get("exact", ())), sorted(verdicts.get("raises", ()))
        if choice == KEEP or (choice == AUTO and readers and not stopped and form not in ("diffusers", "shared")):
            code = "note.beside_kept_stops" if stopped else "note.beside_kept"
        else:
            lora, code = rest, _why_left_out(choice, form, stopped)
        what = Message.of(part, count=count)
        values = {"readers": readers or [Message.of("part.no_program")], "stopped": stopped, "option": NORMS_BIASES}
        lora = dataclasses.replace(lora, notes=[*lora.notes, Message.of(code, what=what, **values)])
    return lora


def _why_left_out(choice: str, form: str, stopped: list[str]) -> str:
    if choice == LEAVE:
        return "note.beside_left"
    if form in ("diffusers", "shared"):
        return "note.beside_left_form"
    return "note.beside_left_stops" if stopped else "note.beside_left_unread"


def _has_beside(module: Module, kind: Kind) -> bool:
    """Whether it is a norm's change, or changes a bias of another layer."""
    norm = NORM.signed(module.parts)
    return norm if kind is NORM else not norm and bool(kind.signs & module.parts.keys())


def _without(modules: Mapping[str, Module], kind: Kind) -> dict[str, Module]:
    """The modules without changes of norms, or without those of biases."""
    out = {}
    for name, module in modules.items():
        if not _has_beside(module, kind):
            out[name] = module
        elif kind is BIAS and module.parts.keys() != kind.signs:
            parts = {part: value for part, value in module.parts.items() if part not in kind.signs}
            out[name] = dataclasses.replace(module, parts=parts)
    return out


def _write_outcome(outcome: Outcome, target: Path, options: Options, metadata: Mapping[str, str]) -> Written:
    written = write_lora(outcome.lora, target, options, metadata)
    if outcome.error:
        worst = max(outcome.errors, key=lambda n: outcome.errors[n])
        highest = percent(outcome.errors[worst])
        written.notes.append(Message.of("note.error", error=percent(outcome.error), highest=highest, layer=worst))
    return written


def bake_file(
    source: Path, loras: Sequence[tuple[Path, float]], target: Path, overwrite: bool = False, progress: Progress = quiet
) -> Written:
    """A checkpoint with LoRAs added for good. Its header keeps what it says, and names what was merged; a stale hash is dropped."""
    if target.exists() and not overwrite:
        raise FormatError("file.exists_overwrite", file=target.name)
    if target.resolve() == source.resolve():
        raise FormatError("bake.onto_itself", file=target.name)
    metadata = disk.header(source)[1] if source.is_file() else {}
    metadata = {k: v for k, v in metadata.items() if not k.startswith(("sshs_", "modelspec.hash_sha256"))}
    metadata["modelspec.merged_from"] = ", ".join(
        [source.stem, *(f"{path.stem} ({weight:g})" for path, weight in loras)]
    )

    def opened(family: Family) -> list[tuple[Lora, float]]:
        return [(_for_family(path, family), weight) for path, weight in loras]

    baked = bake(source, target, opened, metadata, progress)
    notes = [Message.of("note.baked", changed=baked.changed, count=baked.tensors)]
    if baked.rounded:
        notes.append(Message.of("note.baked_rounded", count=baked.rounded, error=percent(baked.rounding)))
    return Written(target, notes)


def _for_family(path: Path, family: Family) -> Lora:
    """A LoRA for a known model: one of text encoders alone fits several."""
    data, metadata = disk.load_any(path) if path.is_file() else ({}, {})
    if not data or is_embedding(data):
        return open_lora(path)
    with about(path.name):
        lora = _read_table(data, metadata)
        texts_only = not any(name.startswith(("unet.", "transformer.")) for name in lora.modules)
        return read(data, metadata, family=family.name) if lora.family != family.name and texts_only else lora


def write_card(
    path: Path, family: str, words: tuple[str, ...], weight: float = 1.0, description: str = "", written: float = 0.0
) -> Path:
    """`<name>.json` beside a LoRA. What the user wrote into an existing card stays; a card that cannot be read is left alone.

    `written`: the weight an earlier card of ours had, which gives way to `weight`.
    """
    place = path.with_suffix(".json")
    try:
        existing = place.read_text(encoding="utf-8") if place.exists() else ""
        text = merged(existing, card(family, words, description, weight), written)
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError("card.unreadable", file=place.name) from error
    with replacing(place) as file:
        file.write(text.encode())
    return place
