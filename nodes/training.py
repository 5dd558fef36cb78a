"""What every training node does around the engine: run folder, listeners, stop and cancel, and copies of the results where the host lists them."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..convert import FormatError, products, read
from ..convert.detect import declared_family
from ..convert.embedding import is_embedding
from ..convert.families import UNKNOWN, known_family
from ..convert.files.disk import header
from ..convert.files.jobs import free_path, write_card
from ..convert.report import triggers
from ..convert.results import starting_point, token_stems
from ..lora_core.adapters.tokens import wanted_tokens
from ..lora_core.config import TrainConfig
from ..lora_core.data.folder import Dataset as FoundDataset
from ..lora_core.disk.files import sha256, write_bytes, write_json
from ..lora_core.events import Control, Listener, Listeners
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Message
from ..lora_core.pictures.previews import write_preview
from ..lora_core.runs.folders import last_run, new_run, remove_if_untrained
from ..lora_core.runs.listing import MAX_WORKFLOW_BYTES, WORKFLOW
from ..lora_core.runs.state import recorded
from ..lora_core.training.build import chosen_layers
from ..lora_core.training.run import Start
from ..lora_core.training.trainer import Result, train
from .host.access.api import host_version
from .host.access.paths import embedding_folders, runs_root
from .host.engine.backend import HostBackend
from .host.web.live import Cancelled, LiveNode, free_memory, registered
from .host.web.panel import Panel, PanelListener, panel_of, workflow_of

log = logging.getLogger(__name__)


def run(hidden: Any, backend: HostBackend, config: TrainConfig, found: FoundDataset, resume: bool, start: Start | None = None) -> Result:
    """Trains below a run folder of the job's name, or goes on with the latest. Cancel and errors publish what there is and pass on.

    `hidden`: what the host tells a node of itself; the graph in it goes into the run folder.
    """
    node_id, config = hidden.unique_id, config.for_pictures(len(found.pictures))
    if resume:
        folder = last_run(runs_root(), config.name)
        if folder is None:
            raise LoomError("resume.no_run", field="resume", name=repr(config.name))
    else:
        places = loras_folder(), embeddings_folder()
        tokens = [t.placeholder for t in wanted_tokens(config.embedding, found.trigger)] if config.trains_tokens else []

        def taken(name: str) -> bool:
            stems = [*([name] if config.trains_lora else []), *token_stems(name, tokens, config.trains_lora).values()]
            return any((place / f"{stem}.safetensors").exists() for place in places for stem in stems)

        folder = new_run(runs_root(), config.name, taken)

    def export(state: dict[str, torch.Tensor], facts: dict[str, Any]) -> dict[str, Any]:
        return products(state, folder.name, backend.family, facts)

    control, panel = Control(), panel_of(node_id)
    try:
        config = dataclasses.replace(config, name=folder.name)
        with recorded(folder, host_version(), (Cancelled,)) as record, registered(node_id, control):
            live = LiveNode(node_id, config.steps, bar_only=panel is not None)
            listeners = Listeners([record, _Publisher(panel), _WorkflowKeeper(folder, workflow_of(hidden)), live])
            if panel is not None:
                panel.run = folder.name
                listeners.members.insert(1, PanelListener(panel))
            for warning in found.warnings:
                listeners.on_warning(warning)
            result = train(config, backend, found, folder, export, listeners, control, resume, start)
        if result.outcome == "paused":  # nothing behind this node runs on half a result
            free_memory()
            raise Cancelled()
        return result
    except BaseException:
        _keep_or_remove(folder, resume, panel)
        raise


def started_from(lora: Mapping[str, torch.Tensor] | None, backend: HostBackend, config: TrainConfig) -> Start | None:
    """A wired LoRA as the starting point of a run on this model."""
    if lora is None:
        return None
    own, texts = chosen_layers(config, backend)
    try:
        found = read(dict(lora), family=known_family(backend.family))
    except FormatError:  # a family without a table, or a model of unusual shape: the names are the model's own
        found = read(dict(lora), family=UNKNOWN)
    return starting_point(found, [*own, *texts], config.adapter.algorithm)


def _keep_or_remove(folder: Path, resume: bool, panel: Panel | None) -> None:
    """After a cancel or an error: a result is published like that of a finished run; a new run that trained nothing leaves no folder."""
    written = sorted(folder.glob("*.safetensors"))
    try:
        published = [publish(file) for file in written]
        if panel is not None and published:
            panel.result = prompts_for(published)
        if not written and not resume:
            remove_if_untrained(folder)
    except (OSError, LoomError):
        log.exception("The result stays in %s; it could not be copied to where ComfyUI lists it", folder)


def published(node_id: str | None, files: list[Path]) -> list[Path]:
    """Copies a finished run's files to where the host lists them, and tells the node's panel."""
    paths, panel = [publish(file) for file in files], panel_of(node_id)
    if panel is not None:
        panel.result = prompts_for(paths)
    return paths


class _Publisher(Listener):
    """A save on request is listed by the loaders at once."""

    def __init__(self, panel: Panel | None):
        self._panel = panel

    def on_result(self, step: int, files: list[Path]) -> None:
        try:
            published = [publish(file) for file in files]
        except (OSError, LoomError):
            log.exception("What was saved after step %s stays in the run folder", step)
            return
        if self._panel is not None:
            self._panel.result = prompts_for(published)
            self._panel.say(Message.of("run.saved", step=step, files=[p.name for p in published]))


class _WorkflowKeeper(Listener):
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


def prompts_for(published: list[Path]) -> dict[str, Any]:
    """What to tell of published files: their names, the trigger, and what to write in ComfyUI and in A1111."""
    comfy_words: list[str] = []
    a1111_words: list[str] = []
    found: list[str] = []
    for path in published:
        tensors, metadata = header(path)
        if is_embedding(tensors):
            comfy_words.append(f"embedding:{path.stem}")
            a1111_words.append(path.stem)
        else:
            found = list(triggers(metadata))[:1]
            a1111_words.append(f"<lora:{path.stem}:1>")
    words = [] if comfy_words else found  # the trigger of a pivotal tuning is its embedding
    return {
        "files": [path.name for path in published], "lora": any(word.startswith("<lora:") for word in a1111_words), "trigger": ", ".join(found),
        "comfyui": ", ".join([*words, *comfy_words]), "a1111": ", ".join([*words, *a1111_words]),
    }  # fmt: skip


def publish(file: Path) -> Path:
    """Copies a run's result to where the host lists such files. A file there that is not an earlier result of this run is never overwritten."""
    record = file.parent / "published.json"
    earlier = json.loads(record.read_text()) if record.exists() else {}
    embedding = is_embedding(header(file)[0])
    place = embeddings_folder() if embedding else loras_folder()
    target = free_path(place, file.stem, taken=lambda path: path.exists() and sha256(path) != earlier.get(path.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, file.read_bytes())
    write_json(record, {**earlier, target.name: sha256(target)})
    _dress(target, file.parent, card=not embedding)
    return target


def _dress(target: Path, folder: Path, card: bool) -> None:
    """What galleries show beside a file: the card with its trigger words, and the latest sample as its picture where there is none."""
    try:
        if card:
            metadata = header(target)[1]
            write_card(target, declared_family(metadata), triggers(metadata))
        picture = target.with_suffix(".preview.png")
        samples = sorted((folder / "samples").glob("*.png"), key=lambda p: p.stat().st_mtime_ns)
        if samples and not picture.exists():
            write_preview(picture, Image.open(samples[-1]))
    except (FormatError, OSError):
        log.exception("%s is written, but not its card or picture", target)


def loras_folder() -> Path:
    return runs_root().parent / "loras"


def embeddings_folder() -> Path:
    """The first folder the host reads embeddings from, so `embedding:<name>` works at once."""
    return next(iter(embedding_folders().values()))
