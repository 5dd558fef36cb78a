"""What the training nodes do around a session: ComfyUI's folders, panel and progress bar, stop and cancel."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..convert import read
from ..convert.files.jobs import open_lora
from ..lora_core.backends.base import Backend, CompilesBlocks
from ..lora_core.config import TrainConfig
from ..lora_core.data.dataset import Dataset
from ..lora_core.disk.files import write_bytes
from ..lora_core.events import Control, Listener, Listeners
from ..lora_core.messages.errors import LoomError, Problem
from ..lora_core.messages.message import Message
from ..lora_core.processes import ALONE
from ..lora_core.runs.listing import MAX_WORKFLOW_BYTES, WORKFLOW
from ..lora_core.training.job import Job
from ..lora_core.training.length import planned
from ..lora_core.training.run import Start
from ..lora_core.training.session import Session, run_folder
from ..lora_core.training.trainer import Result
from .host.access.api import host_version
from .host.access.paths import embedding_folders, model_file, runs_root
from .host.engine.backend import HostBackend
from .host.web.live import Cancelled, LiveNode, free_memory, registered
from .host.web.panel import panel_of, workflow_of
from .jobs.formats import exporter, fixed_of, start_of
from .jobs.panel import RESULT_STAYS, Panel, PanelListener
from .jobs.publishing import Publisher, Shelf

log = logging.getLogger(__name__)


def shelf() -> Shelf:
    """Where this ComfyUI lists results; embeddings in the first folder it reads them from, so `embedding:<name>` works at once."""
    return Shelf(runs_root().parent / "loras", next(iter(embedding_folders().values())))


def train(hidden: Any, job: Job, resume: bool) -> tuple[Result, list[Path]]:
    """Trains below a run folder of the job's name, or goes on with the latest. Returns (result, its files where the host lists them).

    Cancel publishes what there is and passes on; what a run leaves that failed stays in its folder.
    `hidden`: what the host tells a node of itself; the graph in it goes into the run folder.
    """
    node_id, config, place = hidden.unique_id, planned(job.config, job.dataset), shelf()
    folder = run_folder(
        job.root, config.name, resume, ALONE, lambda name: place.holds(name, config, job.dataset.trigger)
    )
    panel = panel_of(node_id)
    listeners: list[Listener] = [Publisher(place, panel), WorkflowKeeper(folder, workflow_of(hidden))]
    if panel is not None:
        panel.run = folder.name
        listeners.insert(0, PanelListener(panel))
    listeners.append(LiveNode(node_id, config.steps, bar_only=panel is not None))
    job = dataclasses.replace(
        job, config=dataclasses.replace(config, name=folder.name), listener=Listeners(listeners), control=Control()
    )
    paths: list[Path] = []

    def deliver(files: Sequence[Path], cancelled: bool) -> None:
        try:
            paths.extend(place.publish_all(files, panel))
        except (OSError, Problem):
            if not cancelled:
                raise
            log.exception("The result stays in %s; it could not be copied to where ComfyUI lists it", folder)

    session = Session(
        job,
        folder,
        exporter(folder.name, job.backend.family),
        resume,
        job.dataset.warnings,
        host_version(),
        (Cancelled,),
        deliver,
    )
    try:
        with registered(node_id, job.control):
            result = session.train()
    except Cancelled:
        raise
    except Exception:
        _tell_where_it_stays(folder, panel)
        raise
    if result.outcome == "paused":  # nothing behind this node runs on half a result
        free_memory()
        raise Cancelled()
    return result, paths


def _tell_where_it_stays(folder: Path, panel: Panel | None) -> None:
    """Says where the file of a failed run lies, where it left one."""
    files = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if panel is not None and files:
        panel.say(Message.of(RESULT_STAYS, folder=f"output/{runs_root().name}/{folder.name}", files=files))


def started_from(lora: Mapping[str, torch.Tensor] | None, backend: HostBackend, config: TrainConfig) -> Start | None:
    """A wired LoRA as the starting point of a run on this model."""
    return (
        None
        if lora is None
        else start_of(lambda family: read(dict(lora), family=family), backend, backend.family, config)
    )


def job_of(backend: Backend, config: TrainConfig, dataset: Dataset, start: Start | None = None) -> Job:
    """A job of this ComfyUI, whose runs lie below its output folder, with the LoRA that acts in training alone. Raises LoomError."""
    if config.compile and isinstance(backend, CompilesBlocks):
        backend.compile_blocks()
    job, name = Job(config, backend, dataset, runs_root(), start=start), config.adapter.fixed
    if not name or not config.trains_lora:
        return job
    file = model_file("loras", name)
    return dataclasses.replace(job, fixed=fixed_of(lambda known: open_lora(file, known), backend, config))


class WorkflowKeeper(Listener):
    """Puts the graph of a run into its folder once the run is known to go, so that it can be opened again from there."""

    def __init__(self, folder: Path, workflow: Any):
        self._file, self._workflow = folder / WORKFLOW, workflow

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        try:
            data = json.dumps(self._workflow).encode() if self._workflow else b""
            if 0 < len(data) <= MAX_WORKFLOW_BYTES:
                write_bytes(self._file, data)
        except (LoomError, TypeError, ValueError):
            log.exception("The workflow was not kept in the run folder")
