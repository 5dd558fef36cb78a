"""Train LoRA: MODEL, CLIP, VAE and a dataset in; the trained MODEL and CLIP, the LoRA and its file out."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from PIL import Image

from ..convert import FormatError, products, trained
from ..convert.detect import declared_family
from ..convert.disk import header
from ..convert.jobs import free_path, write_card
from ..convert.report import triggers
from ..lora_core.adapters.targets import choose_targets, weight_shape
from ..lora_core.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, SampleConfig, SaveConfig, ScheduleConfig, TrainConfig, as_dict, parse
from ..lora_core.data.folder import Dataset as FoundDataset
from ..lora_core.data.folder import scan
from ..lora_core.errors import LoomError
from ..lora_core.events import Control, Listeners
from ..lora_core.files import sha256, write_bytes, write_json
from ..lora_core.names import check_name
from ..lora_core.reports import FileLog
from ..lora_core.rundirs import last_run, new_run, remove_if_untrained
from ..lora_core.trainer import Result, train
from .host.api import io, make_input, make_output, schema
from .host.backend import HostBackend
from .host.check import require_matched
from .host.live import LiveNode, registered
from .host.paths import runs_root
from .presets import PRESETS, fitted
from .previews import write_preview
from .sockets import CATEGORY, Dataset, DatasetSocket, LoraWeights, widget

log = logging.getLogger(__name__)


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomTrainLora",
            display_name="Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on the wired MODEL as it is loaded. Cancel and stop both keep what was trained.",
            search_aliases=["kohya", "lora training", "fine-tune", "dreambooth", "train"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                make_input(io.Model, "model", tooltip="The base model. It is not copied and not changed."),
                make_input(io.Clip, "clip", tooltip="The text encoder of the base model."),
                make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
                make_input(Dataset, "dataset", tooltip="From Load Training Folder."),
                widget("name"),
                make_input(io.Combo, "preset", options=list(PRESETS), default="concept", tooltip="Fills in what you leave at 0 or auto."),
                widget("steps", default=0, min=0, tooltip="Weight updates; 0 takes the preset's."),
                widget("adapter.rank", default=0, min=0, tooltip="Size of the LoRA; 0 takes the preset's."),
                widget("optimizer.lr", "learning_rate", default=0.0, step=0.00001, round=0.0000001, tooltip="Learning rate; 0 takes the preset's."),
                widget("data.resolution", default=0, min=0, step=8, tooltip="Training resolution in px; 0 takes what the model was made for."),
                widget("samples.prompt", "sample_prompt", multiline=True),
                widget("seed"),
                widget("batch_size", advanced=True),
                widget("grad_accum", advanced=True),
                widget("adapter.alpha", advanced=True),
                widget("adapter.dropout", advanced=True),
                widget("adapter.init", advanced=True),
                widget("adapter.targets", advanced=True),
                widget("adapter.include", advanced=True),
                widget("adapter.exclude", advanced=True),
                make_input(
                    io.Combo, "scheduler", options=["auto", "constant", "linear", "cosine", "cosine_with_restarts", "polynomial"], default="auto",
                    advanced=True, tooltip="Course of the learning rate; auto takes the preset's.",
                ),
                widget("schedule.warmup_steps", advanced=True),
                widget("optimizer.weight_decay", advanced=True),
                widget("optimizer.max_grad_norm", advanced=True),
                widget("objective.timesteps", advanced=True),
                widget("objective.shift", advanced=True),
                widget("objective.min_timestep", advanced=True),
                widget("objective.max_timestep", advanced=True),
                widget("checkpointing", advanced=True),
                widget("save.every", "save_every", advanced=True),
                widget("samples.every", "sample_every", advanced=True),
                widget("samples.cfg", "sample_cfg", advanced=True),
                make_input(
                    io.Combo, "resume", options=["new run", "continue last"], default="new run", advanced=True,
                    tooltip="continue last goes on where the latest run of this name was saved, exactly as if it had never stopped.",
                ),
                widget("loss", advanced=True),
                widget("huber_delta", advanced=True),
                widget("huber_schedule", advanced=True),
                widget("objective.weighting", advanced=True),
                widget("objective.min_snr_gamma", advanced=True),
                widget("objective.p2_gamma", advanced=True),
                widget("objective.noise_offset", advanced=True),
                widget("objective.multires_iterations", advanced=True),
                widget("objective.multires_discount", advanced=True),
                widget("objective.input_perturbation", advanced=True),
            ],
            outputs=[
                make_output(io.Model, "model", tooltip="The base model with the LoRA."),
                make_output(io.Clip, "clip"),
                make_output(io.LoraModel, "lora"),
                make_output(io.LossMap, "loss_map"),
                make_output(io.String, "path", tooltip="The written file."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, resume: str = "new run", **_: Any) -> str:
        """A new run with equal inputs is not trained again; continuing always does something."""
        return str(time.time_ns()) if resume == "continue last" else ""

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, dataset: DatasetSocket, resume: str, **widgets: Any) -> io.NodeOutput:
        check_name("name", widgets["name"])
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            config, found = config_from(widgets, dataset, backend)
            require_matched(trained(_empty_lora(backend, config), backend.family), model)
            result = _run(cls.hidden.unique_id, backend, config, found, resume == "continue last")
        path = publish(result.file)
        require_matched(result.tensors, model)
        tuned, _ = comfy.sd.load_lora_for_models(model, None, result.tensors, 1.0, 0.0)
        lora = LoraWeights(result.tensors, backend.family, result.facts)
        return io.NodeOutput(tuned, clip, lora, {"loss": result.losses}, str(path))


def _empty_lora(backend: HostBackend, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The names this run will write, with empty weights: what the host cannot read back is found before training."""
    layers, state = backend.layers(), {}
    for path in choose_targets(layers, config.adapter):
        shape, name = weight_shape(layers[path]), backend.file_name(path)
        state[f"{name}.lora_down"], state[f"{name}.lora_up"] = torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *[1] * (len(shape) - 2))
    return state


def _run(node_id: str | None, backend: HostBackend, config: TrainConfig, found: FoundDataset, resume: bool) -> Result:
    if resume:
        folder = last_run(runs_root(), config.name)
        if folder is None:
            raise LoomError(f"resume: there is no run named {config.name!r} to continue; choose new run.")
    else:
        folder = new_run(runs_root(), config.name, lambda name: (loras_folder() / f"{name}.safetensors").exists())

    def export(state: dict[str, torch.Tensor], facts: dict[str, Any]) -> dict[str, Any]:
        return products(state, folder.name, backend.family, facts)

    control = Control()
    try:
        config = dataclasses.replace(config, name=folder.name)
        with FileLog(folder / "run.log") as file_log, registered(node_id, control):
            listeners = Listeners([file_log, LiveNode(node_id, config.steps)])
            for warning in found.warnings:
                listeners.on_message(warning)
            return train(config, backend, found, folder, export, listeners, control, resume)
    except BaseException:
        _keep_or_remove(folder, resume)
        raise


def _keep_or_remove(folder: Path, resume: bool) -> None:
    """After a cancel or an error: a result is published like that of a finished run; a new run that trained nothing leaves no folder."""
    file = folder / f"{folder.name}.safetensors"
    try:
        if file.exists():
            publish(file)
        elif not resume:
            remove_if_untrained(folder)
    except (OSError, LoomError):
        log.exception("The result stays in %s; it could not be copied to the LoRA folder", folder)


def config_from(widgets: dict[str, Any], dataset: DatasetSocket, backend: HostBackend) -> tuple[TrainConfig, FoundDataset]:
    """The run's config (widgets, with 0 and auto filled in from the preset and the model) and the pictures it will train on."""
    w, preset = widgets, PRESETS[widgets["preset"]]
    data = fitted(dataset.config, w["resolution"], backend)
    found = scan(data)
    values = TrainConfig(
        name=w["name"], base="ComfyUI", steps=w["steps"] or preset.steps(len(found.pictures)), batch_size=w["batch_size"], grad_accum=w["grad_accum"],
        seed=w["seed"], checkpointing=w["checkpointing"], data=data, loss=w["loss"], huber_delta=w["huber_delta"], huber_schedule=w["huber_schedule"],
        adapter=AdapterConfig(
            rank=w["rank"] or preset.rank, alpha=w["alpha"], dropout=w["dropout"], init=w["init"], targets=w["targets"], include=w["include"],
            exclude=w["exclude"],
        ),
        optimizer=OptimizerConfig(lr=w["learning_rate"] or preset.lr, weight_decay=w["weight_decay"], max_grad_norm=w["max_grad_norm"]),
        schedule=ScheduleConfig(name=preset.schedule if w["scheduler"] == "auto" else w["scheduler"], warmup_steps=w["warmup_steps"]),
        objective=ObjectiveConfig(
            timesteps=w["timesteps"], shift=w["shift"], min_timestep=w["min_timestep"], max_timestep=w["max_timestep"], weighting=w["weighting"],
            min_snr_gamma=w["min_snr_gamma"], p2_gamma=w["p2_gamma"], noise_offset=w["noise_offset"], multires_iterations=w["multires_iterations"],
            multires_discount=w["multires_discount"], input_perturbation=w["input_perturbation"],
        ),
        save=SaveConfig(every=w["save_every"]),
        samples=SampleConfig(prompt=w["sample_prompt"], every=w["sample_every"], cfg=w["sample_cfg"]),
    )  # fmt: skip
    return parse(as_dict(values)), found


def publish(file: Path) -> Path:
    """Copies a run's result to where the host lists LoRAs. A file there that is not an earlier result of this run is never overwritten."""
    record = file.parent / "published.json"
    earlier = json.loads(record.read_text()) if record.exists() else {}
    target = free_path(loras_folder(), file.stem, taken=lambda path: path.exists() and sha256(path) != earlier.get(path.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, file.read_bytes())
    write_json(record, {target.name: sha256(target)})
    _dress(target, file.parent)
    return target


def _dress(target: Path, folder: Path) -> None:
    """What galleries show beside a LoRA: the card with its trigger words, and the latest sample as its picture where there is none."""
    try:
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
