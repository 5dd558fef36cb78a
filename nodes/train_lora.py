"""Train LoRA: MODEL, CLIP, VAE and a dataset in; the trained MODEL and CLIP, the LoRA and its file out."""

from __future__ import annotations

from typing import Any

import torch

from ..lora_core.config import ObjectiveConfig, TrainConfig
from ..lora_core.data.dataset import Dataset
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Setting
from ..lora_core.names import check_name
from .host.access.api import io, make_input, make_output
from .host.access.loras import with_lora
from .host.engine.backend import HostBackend
from .host.engine.tokens import with_embeddings
from .host.web.panel import on_panel
from .jobs.datasets import Base, Loaded, PictureSets
from .jobs.presets import PRESETS
from .jobs.settings import left_open, measured
from .settings import Settings, SettingsSocket, optimizer_of
from .sockets import Embedding, LoraWeights, dataset_input, lora_output, loss_output, path_output, plain_errors
from .train_node import (
    CONTINUED,
    RESOLUTION,
    RESUME,
    VISION,
    TrainNode,
    base_inputs,
    embeddings_of,
    run_of_lora,
    train_schema,
)
from .widgets import job, paths_set, row
from .widgets import settings as values_of

INPUTS = (
    *base_inputs(),
    dataset_input(),
    row("name"),
    make_input(
        io.Combo, "preset", options=list(PRESETS), default="concept",
        tooltip="What you train; fills in what you leave at 0 or auto. character: a person or figure. style: a look. concept: a thing, animal or anything "
        "else. quick test: 100 steps, to see that all works. Wan 2.2, SDXL refiner: that part of the model. auto: asks nothing, measures.",
    ),
    row("steps", automatic=True, default=0, min=0, zero="auto", tooltip="Weight updates; 0 takes the preset's."),
    row("adapter.rank", automatic=True, default=0, min=0, zero="auto", tooltip="Size of the LoRA; 0 takes the preset's."),
    row("optimizer.lr", "learning_rate", automatic=True, default=0.0, step=0.00001, round=0.0000001, tooltip="Learning rate; 0 takes the preset's."),
    RESOLUTION,
    row("samples.prompt", "sample_prompt", multiline=True),
    row("seed"),
    row("batch_size", advanced=True),
    row("grad_accum", advanced=True),
    row("adapter.alpha", advanced=True),
    row("adapter.dropout", advanced=True),
    row("adapter.init", advanced=True),
    row("adapter.targets", advanced=True),
    row("adapter.include", advanced=True),
    row("adapter.exclude", advanced=True),
    row(
        "schedule.name", "scheduler", advanced=True, automatic=True, default="auto",
        tooltip="How the learning rate changes during the run; auto takes the preset's.",
        options=["auto", "constant", "linear", "cosine", "cosine_with_restarts", "polynomial"],
    ),
    row("schedule.warmup_steps", advanced=True),
    row("optimizer.weight_decay", advanced=True),
    row("optimizer.max_grad_norm", advanced=True),
    row("objective.timesteps", moved=True),
    row("objective.shift", moved=True),
    row("objective.min_timestep", moved=True),
    row("objective.max_timestep", moved=True),
    row("checkpointing", advanced=True),
    row("save.every", "save_every", advanced=True),
    row("samples.every", "sample_every", advanced=True),
    row("samples.cfg", "sample_cfg", advanced=True),
    RESUME,
    row("loss", moved=True),
    row("huber_delta", moved=True),
    row("huber_schedule", moved=True),
    row("objective.weighting", moved=True),
    row("objective.min_snr_gamma", moved=True),
    row("objective.p2_gamma", moved=True),
    row("objective.noise_offset", moved=True),
    row("objective.multires_iterations", moved=True),
    row("objective.multires_discount", moved=True),
    row("objective.input_perturbation", moved=True),
    row("objective.timestep_bias", moved=True, optional=True),
    row("auto_fit", advanced=True, optional=True),
    row("epochs", advanced=True, optional=True),
    row("memory", optional=True),
    row("samples.frames", "sample_frames", advanced=True, optional=True),
    row("compile", advanced=True, optional=True),
    make_input(Settings, "settings", optional=True, tooltip="From the settings nodes: optimizer, adapter, text encoders, tokens, class pictures."),
    CONTINUED,
    VISION,
)  # fmt: skip


class TrainLora(TrainNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return train_schema(
            INPUTS,
            node_id="LoraLoomTrainLora",
            display_name="Train LoRA",
            description="Trains a LoRA on the wired MODEL as it is loaded. Cancel and stop both keep what was trained.",
            search_aliases=[
                "kohya",
                "dreambooth",
                "train",
                "lora training",
                "finetune",
                "fine-tune",
                "lora trainer",
                "sd-scripts",
                "locon",
                "pivotal tuning",
            ],
            outputs=[
                make_output(io.Model, "model", tooltip="The base model with the LoRA."),
                make_output(
                    io.Clip,
                    "clip",
                    tooltip="The text encoder with its part of the LoRA, and with the embeddings: write embedding:<name>_emb.",
                ),
                lora_output(),
                loss_output(),
                path_output(),
                make_output(
                    Embedding, "embedding", tooltip="The first embedding of a pivotal tuning; nothing without one."
                ),
            ],
        )

    @classmethod
    @on_panel
    @plain_errors("lora")
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: PictureSets,
        resume: str,
        settings: SettingsSocket | None = None,
        lora: dict | None = None,
        clip_vision: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        check_name("name", widgets["name"])
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae, vision=clip_vision)
            config, pictures = config_from(widgets, dataset, backend, settings)
            if not config.trains_lora:
                raise LoomError("settings.embedding_alone", field="settings")
            result, paths = run_of_lora(cls.hidden, (model, clip), backend, (config, pictures), resume, lora)
        tuned, tuned_clip = with_lora(model, clip if config.text_encoder.train else None, result.tensors)
        embeddings = embeddings_of(result, paths[1:])
        wired = LoraWeights(result.tensors, backend.family, {**result.facts, "triggers": list(embeddings)})
        first = next(iter(embeddings.values()), None)
        clip_with_tokens = (
            with_embeddings(tuned_clip or clip, {n: e.embedding.vectors.get for n, e in embeddings.items()})
            if embeddings
            else tuned_clip or clip
        )
        return io.NodeOutput(
            tuned,
            clip_with_tokens,
            wired,
            {"loss": result.losses},
            str(paths[0]),
            first,
        )


def config_from(
    widgets: dict[str, Any], dataset: PictureSets, base: Base, settings: SettingsSocket | None = None
) -> tuple[TrainConfig, Dataset]:
    """The run's config (widgets, with 0 and auto filled in from the preset and the model, wired settings over them) and the pictures it will train on."""
    sets = dataset.sized(widgets["resolution"], base)
    pictures = sets.opened()
    preset = PRESETS[widgets["preset"]]
    automatic = {
        "steps": preset.steps(len(pictures.pictures)),
        "adapter.rank": preset.rank,
        "schedule.name": preset.schedule,
        "optimizer.lr": preset.lr if optimizer_of(settings) == "adamw" else 0.0,
        "data.resolution": sets.parts()["data"].resolution,
    }
    values = values_of(INPUTS, widgets, automatic)
    values["name"] = preset.named(values["name"])
    values |= measured(widgets["preset"], paths_set(INPUTS, widgets, settings.values if settings else {}))
    if preset.part and isinstance(base, Loaded):
        values |= left_open(preset.timesteps(base.base_model(ObjectiveConfig())), values)
    if widgets.get("epochs") and widgets["steps"]:
        raise LoomError("length.several", field="epochs", given=[Setting("steps"), Setting("epochs")])
    return job(values, settings.values if settings else {}, **sets.parts()), pictures
