"""Jobs outside of a host: the base model and the pictures of a job file, for one process or several."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ...convert.files.jobs import open_lora
from ...convert.results import kohya_name
from ...lora_core.backends.base import Splits
from ...lora_core.backends.diffusers_backend import DiffusersBackend
from ...lora_core.backends.headless import Headless
from ...lora_core.backends.opening import open_backend
from ...lora_core.backends.threads import suit_threads
from ...lora_core.compat import needed
from ...lora_core.config import AS_SET, MEASURE, TrainConfig
from ...lora_core.data.sources import brought_in
from ...lora_core.messages.errors import LoomError
from ...lora_core.processes import ALONE, Processes
from ...lora_core.training.job import Job
from ...lora_core.training.memory import Weights, narrowed
from ...lora_core.training.run import Start
from .formats import by_layer, fixed_of, start_of


def open_base(config: TrainConfig, device: str = "") -> Headless:
    """The base model a job names, whose layers have the names that files give them. Raises LoomError."""
    if config.compile and config.offload:
        raise LoomError("compile.with_offload", field="compile")
    narrow = config.storage != "auto" or bool(config.offload)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sized = target != "cpu" and config.memory not in (AS_SET, MEASURE)
    place = "cpu" if narrow or sized else device
    backend = open_backend(
        config.base, config.companion, config.precision, place, config.base_config, folder_in_hub_cache
    )
    suit_threads(backend.network, backend.device)
    if config.base_vae:
        backend.use_vae(Path(config.base_vae))
    if isinstance(backend, DiffusersBackend):
        backend.name_layers(kohya_name)
        if backend.clip_skip is not None:
            backend.skip_layers(config.text_encoder.clip_skip)
    if sized:
        config = narrowed(config, backend.family, Weights.of(backend.network))
        if config.storage == "auto" and not config.offload:
            return open_base(dataclasses.replace(config, memory=AS_SET), device)
    if narrow or sized:
        backend.store(config.storage, config.offload, target)
    if config.compile:
        backend.compile_blocks()
    return backend


def folder_in_hub_cache(repo: str) -> str | None:
    """The folder of a repository that was downloaded earlier; asks nobody."""
    hub, errors = needed("huggingface_hub"), needed("huggingface_hub.utils")
    try:
        return hub.snapshot_download(repo, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        return None


def prepared(config: TrainConfig, root: Path, backend: Headless | None = None, processes: Processes = ALONE) -> Job:
    """A job with its pictures found and its base model loaded, unless `backend` is there already. Of several processes the first one goes ahead."""
    with processes.main_first():  # what a job brings in is brought in once
        config, dataset = brought_in(config, root)
        backend = backend or open_base(config, "cpu" if processes.sharded else processes.device)
    if processes.sharded:
        _shard(backend, processes)
    return with_fixed(Job(config, backend, dataset, root, processes=processes))


def _shard(backend: Headless, processes: Processes) -> None:
    """Splits the model over the processes, where its backend can."""
    if backend.stored:
        raise LoomError("accelerate.stored", field="accelerate")
    if not isinstance(backend, Splits):
        raise LoomError("accelerate.family", field="accelerate", family=backend.family)
    backend.shard(processes.device)


def with_fixed(job: Job) -> Job:
    """The job with the LoRA that adapter.fixed names, which acts in training alone."""
    file = job.config.adapter.fixed
    if not file or not job.config.trains_lora:
        return job
    fixed = fixed_of(lambda known: open_lora(Path(file), known), job.backend, job.config)
    return dataclasses.replace(job, fixed=fixed)


def with_start(job: Job) -> Job:
    """The job with what adapter.start_from names, for the layers it trains."""
    file, family = job.config.adapter.start_from, job.backend.family
    if not file:
        return job
    start = start_of(lambda known: open_lora(Path(file), known), job.backend, family, job.config)
    return dataclasses.replace(job, start=start)


def lora_of(file: Path, backend: Headless) -> Start:
    """A LoRA file by the layers of the model."""
    names = [backend.file_name(path) for path in (*backend.layers(), *backend.text_layers())]
    return by_layer(lambda family: open_lora(file, family), backend.family, names)
