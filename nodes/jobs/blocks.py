"""The blocks of a finished run's LoRA: measured on the run's own base and pictures, and a file without some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from ...convert import FormatError, Lora
from ...convert.families import UNKNOWN, known_family
from ...convert.files.jobs import Options, open_lora, write_lora
from ...convert.merge import block_of
from ...convert.report import inspect
from ...lora_core.backends.base import Backend
from ...lora_core.config import AS_SET
from ...lora_core.data.sources import brought_in
from ...lora_core.messages.errors import LoomError
from ...lora_core.pictures.plots import bars
from ...lora_core.runs.folders import config_of
from ...lora_core.runs.reports import ProgressBar
from ...lora_core.training.job import Job
from ...lora_core.training.usefulness import Usefulness, usefulness
from .formats import by_layer
from .headless import prepared, with_start


def finished_job(run: Path, backend: Backend | None = None) -> tuple[Job, Path]:
    """(a job on the base and pictures of a run that starts from what it made, the file of that). Raises LoomError.

    `backend`: the base of the run, where a host has loaded it.
    """
    config = config_of(run)
    file = run / f"{config.name}.safetensors"
    if not config.trains_lora or config.trains_slider or not file.is_file():
        raise LoomError("blocks.no_lora", field="run", run=run.name)
    adapter = dataclasses.replace(config.adapter, start_from=str(file))
    settled = dataclasses.replace(config, adapter=adapter, auto=False, auto_fit=False, memory=AS_SET)
    if backend is None:
        return with_start(prepared(settled, run.parent)), file
    brought, dataset = brought_in(settled, run.parent)
    return with_start(Job(brought, backend, dataset, run.parent)), file


def chart(use: Usefulness) -> Image.Image:
    """What is lost without each block, as bars."""
    return bars(use.bars(), "% of the effect lost without the block")


def measured(job: Job, file: Path, bound: float, bar: ProgressBar) -> Usefulness:
    """What each block of the file is good for. Raises LoomError."""
    blocks = layers_by_block(file, job.backend)
    with bar:
        return usefulness(dataclasses.replace(job, listener=bar), blocks, bound)


def layers_by_block(file: Path, backend: Backend) -> dict[str, list[str]]:
    """Block -> the layers of the model that the file has something for, in the order of the model."""
    lora = lora_for(file, backend.family)
    names = [backend.file_name(path) for path in (*backend.layers(), *backend.text_layers())]

    def layers(block: str) -> list[str]:
        return list(by_layer(lambda family: only(lora, {block}), backend.family, names))

    return {block.name: layers(block.name) for block in inspect(lora).blocks}


def lora_for(file: Path, family: str) -> Lora:
    """A LoRA as one for a model of this family; a model without a table has layers under names of its own. Raises FormatError."""
    try:
        return open_lora(file, known_family(family))
    except FormatError:
        return open_lora(file, UNKNOWN)


def only(lora: Lora, blocks: Collection[str]) -> Lora:
    """The LoRA with what it has for these blocks alone."""
    modules = {name: module for name, module in lora.modules.items() if block_of(lora.family, name) in blocks}
    return dataclasses.replace(lora, modules=modules)


def needed(lora: Lora, idle: Collection[str]) -> Lora:
    """The LoRA without these blocks."""
    return only(lora, {block_of(lora.family, name) for name in lora.modules} - {*idle})


def smaller(file: Path, family: str, idle: Collection[str], target: Path) -> tuple[int, int]:
    """Writes the LoRA, which is for a model of this family, without these blocks. Returns (bytes before, bytes now)."""
    write_lora(needed(lora_for(file, family), idle), target, Options(dtype="fp32"))
    return file.stat().st_size, target.stat().st_size
