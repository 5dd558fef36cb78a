"""What a training run hands out: its LoRA in the universal form, and one file for each token it learned."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..lora_core.algebra.kinds import KINDS, trained_as
from ..lora_core.messages.message import Message
from .embedding import Embedding, write_embedding
from .families import FAMILIES, known_family
from .lora import FormatError, Lora, State, plain
from .metadata import embedding_metadata, lora_metadata
from .patterns import fill
from .writers import approximated, trained, write

EXPERTS = (
    "high_noise",
    "low_noise",
)  # what the networks of Wan 2.2 are called in the state of a run of both, and at the end of its files' names
_TOKEN = re.compile(r"token\.(.+)\.([^.]+)")  # token.<placeholder>.<encoder>


def products(
    state: Mapping[str, torch.Tensor], name: str, base: str, facts: Mapping[str, Any]
) -> dict[str, tuple[State, dict[str, str]]]:
    """File stem -> (tensors, header), the main one first, from a run's own state (`<layer>.lora_down`, `token.<placeholder>.clip_l`, ...).

    A LoRA is called `name`, its embeddings `<name>_emb` (several: `<name>_<token>_emb`); an embedding alone is called `name` itself.
    The stem of an embedding's file is the word that calls it. Of a run that trained two experts each has a LoRA of its own, `<name>_<expert>`.
    """
    layers = {k: v for k, v in state.items() if not _TOKEN.fullmatch(k)}
    tokens = embeddings(state, facts.get("step", 0))
    stems = token_stems(name, list(tokens), bool(layers))
    out: dict[str, tuple[State, dict[str, str]]] = {}
    for expert, theirs in by_expert(layers).items():
        stem = f"{name}_{expert}" if expert else name
        tensors = trained(theirs, base)
        out[stem] = tensors, lora_metadata(tensors, stem, base, {**facts, "triggers": list(stems.values())})
    for token, embedding in tokens.items():
        tensors = write_embedding(embedding)
        out[stems[token]] = tensors, embedding_metadata(embedding, tensors, stems[token])
    return out


def by_expert(state: Mapping[str, torch.Tensor]) -> dict[str, State]:
    """Expert -> the values of its layers by their names in files, from the state of a run that trained two (`high_noise.<layer>.lora_down`); else "" -> all."""
    parts: dict[str, State] = {}
    for key, value in state.items():
        expert = next((name for name in EXPERTS if key.startswith(f"{name}.")), "")
        parts.setdefault(expert, {})[key.removeprefix(f"{expert}.") if expert else key] = value
    return parts


def embeddings(state: Mapping[str, torch.Tensor], step: int = 0) -> dict[str, Embedding]:
    """Placeholder -> its vectors, from a run's own state."""
    vectors: dict[str, State] = {}
    for key, value in state.items():
        if match := _TOKEN.fullmatch(key):
            vectors.setdefault(match[1], {})[match[2]] = value
    return {token: Embedding(vectors_of_token, step=step) for token, vectors_of_token in vectors.items()}


def token_stems(name: str, placeholders: list[str], beside_lora: bool) -> dict[str, str]:
    """Placeholder -> the file stem, and so the trigger, of a token."""
    words = {
        p: "_" + re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-") if len(placeholders) > 1 else "" for p in placeholders
    }
    return {p: f"{name}{word}" + ("_emb" if beside_lora else "") for p, word in words.items()}


def kohya_name(base: str, path: str) -> str:
    """What Kohya's files call the UNet layer at diffusers' `path`: SDXL's have the original model's own names, all others diffusers'."""
    family = FAMILIES.get(known_family(base))
    layer = family.table.find(path) if family and family.native_kohya else None
    return "lora_unet_" + (fill(layer.rows[0].native, layer.numbers) if layer else path).replace(".", "_")


def kohya_name_of_native(base: str, path: str) -> str:
    """The same for the layer that the original model has at `path`, such as input_blocks.1.1.proj_in. Layers without a table keep their path."""
    family = FAMILIES.get(known_family(base))
    layer = family.table.find(path) if family and not family.native_kohya else None
    return "lora_unet_" + (fill(layer.rows[0].diffusers, layer.numbers) if layer else path).replace(".", "_")


_ENDINGS = {
    **{f".{part.file}": part.parameter for kind in KINDS.values() for part in kind.parts},
    **{f".{part.native}": part.parameter for kind in KINDS.values() for part in kind.parts if part.native},
    ".lora_A.weight": "lora_down",
    ".lora_B.weight": "lora_up",
    ".alpha": "alpha",
}


def starting_point(lora: Lora, names: Iterable[str], algorithm: str) -> dict[str, State]:
    """The LoRA for a run whose layers are called `names`: layer -> lora_down, lora_up, alpha, ... Raises FormatError when a layer finds no place,
    or is of another kind than the run's `algorithm`; "" takes any.

    For plain LoRA other kinds are brought into its form by SVD, at the rank of the file's largest module or 16.
    """
    known = set(names)
    of_run = KINDS[algorithm] if algorithm else None
    for name, module in lora.modules.items() if of_run and not of_run.paired else ():
        kind = trained_as(plain(module).parts)
        if kind is not of_run:
            held = Message.of("held.unknown", kind=module.kind)
            if kind:
                held = Message.of("held.kind", title=kind.title, algorithm=kind.name)
            raise FormatError("start.other_kind", name=name, held=held, algorithm=algorithm)
    if of_run and of_run.paired and not all(m.paired for m in lora.modules.values()):
        lora, _ = approximated(lora, max([m.rank for m in lora.modules.values()] + [16]))
    if not lora.modules:
        raise FormatError("start.norms_alone")
    lora = dataclasses.replace(lora, modules={name: plain(module) for name, module in lora.modules.items()})
    best: dict[str, State] = {}
    missing: list[str] = []
    for form in ("kohya", "comfyui", "diffusers"):
        with contextlib.suppress(FormatError):
            tensors = _by_layer(write(lora, form), form)
            placed = {n: parts for n, parts in tensors.items() if n in known}
            if len(placed) > len(best):
                best, missing = placed, sorted(tensors.keys() - known)
    if not best or missing:
        raise FormatError("lora.layer_untrained", layer=(missing or list(lora.modules))[0])
    return best


def _by_layer(state: State, form: str) -> dict[str, State]:
    out: dict[str, State] = {}
    for key, value in state.items():
        suffix = max((s for s in _ENDINGS if key.endswith(s)), key=len, default=None)
        if suffix is None:
            raise FormatError("lora.no_start_part", key=key)
        name = key.removesuffix(suffix)
        if (
            form == "diffusers"
        ):  # the headless trainer's own names: flat for the Stable Diffusion family, else as they are
            component, _, path = name.partition(".")
            flat = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}.get(component)
            name = flat + path.replace(".", "_") if flat else name
        out.setdefault(name, {})[_ENDINGS[suffix]] = value
    return out
