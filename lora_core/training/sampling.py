"""Pictures from finished LoRAs and from the saves of a run, headless: one sheet of file or step x strength x prompt."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn

from ..adapters import AdapterSet
from ..adapters.tokens import Token, TokenSet, TokenVectors
from ..backends.base import Backend, SampleJob
from ..config import parse
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..messages.message import Message, Setting
from ..pictures.writing import cut, write
from ..rng import preserved_rng
from ..runs import checkpoints
from ..runs.folders import config_of
from ..runs.saves import Save, all_saves, weights
from .build import kind_of, make_adapters
from .run import Start

_INK, _FAINT, _TEXT_PX = (40, 40, 48), (90, 90, 100), 14


@dataclasses.dataclass(frozen=True)
class Worn:
    """Adapters ready to be attached; `weights` replaces their values where one set of adapters stands for several saves."""

    label: str
    layers: Mapping[str, nn.Module]
    adapters: AdapterSet
    weights: Mapping[str, torch.Tensor] | None = None


def of_start(
    label: str, backend: Backend, start: Start, embeddings: Mapping[str, Mapping[str, torch.Tensor]] | None = None
) -> Worn:
    """A LoRA given layer by layer, as `convert.starting_point` gives it, and embeddings: word -> vectors (n, width) by text encoder."""
    kinds = {kind_of(name, tensors).name for name, tensors in start.items()}
    if len(kinds) > 1:
        raise LoomError("lora.mixed", label=label, kinds=sorted(kinds), approximate=Setting("approximate"))
    tokens = TokenSet(_token(word, vectors, backend) for word, vectors in (embeddings or {}).items())
    if not start:
        return Worn(label, {}, AdapterSet({}, tokens))
    in_texts = bool({backend.file_name(path) for path in backend.text_layers()} & start.keys())
    every = {
        "algorithm": kinds.pop(),
        "layer_rank": ". = 0",
        "targets": "regex",
        "include": ".",
    }  # the file's layers alone
    layers, adapters = make_adapters(
        parse({"adapter": every, "text_encoder": {"train": in_texts, "targets": "attention and mlp"}}),
        backend,
        "",
        start,
    )
    return Worn(
        label, {name: layers[name] for name in start}, AdapterSet({name: adapters[name] for name in start}, tokens)
    )


def _token(word: str, vectors: Mapping[str, torch.Tensor], backend: Backend) -> TokenVectors:
    tables = {encoder: table for encoder, table in backend.token_tables().items() if encoder in vectors}
    unfit = [encoder for encoder, table in tables.items() if vectors[encoder].shape[1] != table.width]
    if not tables or unfit:
        widths = [_width(encoder, vector.shape[1]) for encoder, vector in vectors.items()]
        known = [_width(encoder, table.width) for encoder, table in backend.token_tables().items()]
        none = [Message.of("embedding.no_encoder")]
        raise LoomError("embedding.other_width", word=word, width=widths, wanted=known or none)
    token = TokenVectors(Token(word, len(next(iter(vectors.values())))), tables, 0, backend.text_device)
    with torch.no_grad():
        for encoder, parameter in token.vectors.items():
            parameter.copy_(vectors[encoder])
    return token


def _width(encoder: str, width: int) -> Message:
    return Message.of("embedding.width", encoder=encoder, width=width)


def of_run(folder: Path, backend: Backend) -> list[Worn]:
    """Every whole save of a run folder, oldest first. Raises LoomError when there is none."""
    saves = [save for save in all_saves(folder) if save.best or checkpoints.read(save.path, verify_only=True)]
    if not saves:
        raise LoomError("run.no_checkpoint_to_sample", run=folder)
    return list(of_saves(folder, saves, backend))


def of_saves(folder: Path, saves: Sequence[Save], backend: Backend) -> Iterator[Worn]:
    """These saves of a run one after the other, each read when its turn comes. They share one set of adapters."""
    config = config_of(folder)
    layers, adapters = make_adapters(config, backend, config.data.trigger)
    shapes, facts = {name: p.shape for name, p in adapters.named_parameters()}, adapters.facts().keys()
    for save in saves:
        values = weights(folder, save)
        if shapes != {k: v.shape for k, v in values.items() if k not in facts}:
            raise LoomError("save.other_model", run=folder.name, save=save.title)
        yield Worn(save.label, layers, adapters, values)


@contextlib.contextmanager
def attached(products: Worn, backend: Backend, strength: float) -> Iterator[None]:
    """The adapters on the model, their change times `strength`."""
    undefined = {str(adapter.title): adapter.title for _, adapter in products.adapters if not adapter.proportional}
    if undefined and strength not in (0.0, 1.0):
        kinds = [undefined[title] for title in sorted(undefined)]
        raise LoomError("strength.undefined", field="strength", strength=f"{strength:g}", kinds=kinds)
    if products.weights is not None:
        products.adapters.load_state_dict(products.weights)
    with backend.training(products.layers, products.adapters):
        products.adapters.prepare()
        with products.adapters.at_strength(strength):
            yield


@torch.no_grad()
def drawn(
    products: Iterable[Worn],
    strengths: Sequence[float],
    jobs: Sequence[SampleJob],
    backend: Backend,
    drew: Callable[[Image.Image], None] = lambda image: None,
) -> list[tuple[str, list[Image.Image]]]:
    """(column's label, one picture a job): the base model first, then each of `worn` at each strength above 0. `drew` is told of each picture."""
    out: list[tuple[str, list[Image.Image]]] = []

    def draw(label: str) -> None:
        out.append((label, []))
        for job in jobs:
            with blamed("sample.failed", "", prompt=repr(job.prompt)):
                out[-1][1].append(backend.sample(job)[0])
            drew(out[-1][1][-1])

    with preserved_rng(0):
        draw("without")
        for one in products:
            for strength in (s for s in strengths if s != 0):
                with attached(one, backend, strength):
                    draw(one.label if len(strengths) == 1 and strength == 1 else f"{one.label} x {strength:g}")
    return out


def sheet(
    columns: Sequence[tuple[str, Sequence[Image.Image]]],
    prompts: Sequence[str],
    notes: Sequence[str] = (),
    largest_px: int = 0,
) -> Image.Image:
    """Columns as drawn, prompts as rows, each row under its prompt; `notes`, one a column, stand under its cells.

    Cells are at most `largest_px` wide (0: any), and at least 192.
    """
    pad, line = 8, 22
    width, height = columns[0][1][0].size
    if 0 < largest_px < width:
        width, height = largest_px, max(1, round(height * largest_px / width))
    cell_w, cell_h, under = max(width, 192), max(height, 192), line if any(notes) else 0
    row_h = cell_h + line + under + pad
    out = Image.new("RGB", (pad + len(columns) * (cell_w + pad), line + len(prompts) * row_h), "white")
    pen = ImageDraw.Draw(out)
    for n, (label, images) in enumerate(columns):
        x = pad + n * (cell_w + pad)
        write(pen, (x, 4), cut(label, _TEXT_PX, cell_w), _INK, _TEXT_PX)
        for row, image in enumerate(images):
            size = (cell_w, round(image.height * cell_w / image.width))
            scaled = image
            if image.size != size:
                larger = image.width < cell_w
                scaled = image.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)
            out.paste(scaled, (x, 2 * line + row * row_h))
            if under:
                write(pen, (x, 2 * line + row * row_h + cell_h + 3), cut(notes[n], _TEXT_PX, cell_w), _INK, _TEXT_PX)
    for row, prompt in enumerate(prompts):
        write(pen, (pad, line + row * row_h), cut(prompt, _TEXT_PX, out.width - 2 * pad), _FAINT, _TEXT_PX)
    return out
