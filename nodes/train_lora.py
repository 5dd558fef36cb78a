"""Train LoRA: MODEL, CLIP, VAE and a dataset in; the trained MODEL and CLIP, the LoRA and its file out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..convert import trained
from ..convert.embedding import read_embedding
from ..convert.loaders import readers_of
from ..lora_core.algebra.kinds import KINDS
from ..lora_core.algebra.walk import weight_shape
from ..lora_core.config import TrainConfig
from ..lora_core.data.folder import Dataset
from ..lora_core.messages.errors import LoomError
from ..lora_core.names import check_name
from ..lora_core.training.build import chosen_layers
from ..lora_core.training.trainer import Result
from .host.access.api import io, make_input, make_output, schema
from .host.access.check import require_matched
from .host.access.loras import with_lora
from .host.engine.backend import HostBackend
from .host.engine.tokens import with_embeddings
from .host.web.panel import shown
from .jobs.datasets import Base, PictureSets
from .jobs.presets import PRESETS
from .settings import Settings, SettingsSocket, optimizer_of
from .sockets import (
    CATEGORY,
    Embedding,
    EmbeddingSocket,
    LoraWeights,
    dataset_input,
    lora_output,
    loss_output,
    path_output,
    plain_errors,
)
from .training import job_of, run, started_from
from .widgets import inputs, job, row
from .widgets import settings as values_of

INPUTS = (
    make_input(io.Model, "model", tooltip="The base model. It is not copied and not changed."),
    make_input(io.Clip, "clip", tooltip="The text encoder of the base model."),
    make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
    dataset_input(),
    row("name"),
    make_input(io.Combo, "preset", options=list(PRESETS), default="concept", tooltip="Fills in what you leave at 0 or auto."),
    row("steps", automatic=True, default=0, min=0, tooltip="Weight updates; 0 takes the preset's."),
    row("adapter.rank", automatic=True, default=0, min=0, tooltip="Size of the LoRA; 0 takes the preset's."),
    row("optimizer.lr", "learning_rate", automatic=True, default=0.0, step=0.00001, round=0.0000001, tooltip="Learning rate; 0 takes the preset's."),
    row("data.resolution", automatic=True, default=0, min=0, step=8, tooltip="Training resolution in px; 0 takes what the model was made for."),
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
        "schedule.name", "scheduler", advanced=True, automatic=True, default="auto", tooltip="Course of the learning rate; auto takes the preset's.",
        options=["auto", "constant", "linear", "cosine", "cosine_with_restarts", "polynomial"],
    ),
    row("schedule.warmup_steps", advanced=True),
    row("optimizer.weight_decay", advanced=True),
    row("optimizer.max_grad_norm", advanced=True),
    row("objective.timesteps", advanced=True),
    row("objective.shift", advanced=True),
    row("objective.min_timestep", advanced=True),
    row("objective.max_timestep", advanced=True),
    row("checkpointing", advanced=True),
    row("save.every", "save_every", advanced=True),
    row("samples.every", "sample_every", advanced=True),
    row("samples.cfg", "sample_cfg", advanced=True),
    make_input(
        io.Combo, "resume", options=["new run", "continue last"], default="new run", advanced=True,
        tooltip="continue last goes on where the latest run of this name was saved, exactly as if it had never stopped.",
    ),
    row("loss", advanced=True),
    row("huber_delta", advanced=True),
    row("huber_schedule", advanced=True),
    row("objective.weighting", advanced=True),
    row("objective.min_snr_gamma", advanced=True),
    row("objective.p2_gamma", advanced=True),
    row("objective.noise_offset", advanced=True),
    row("objective.multires_iterations", advanced=True),
    row("objective.multires_discount", advanced=True),
    row("objective.input_perturbation", advanced=True),
    row("objective.timestep_bias", advanced=True, optional=True),
    row("auto_fit", advanced=True, optional=True),
    row("epochs", advanced=True, optional=True),
    make_input(Settings, "settings", optional=True, tooltip="From the settings nodes: optimizer, adapter, text encoders, tokens, class pictures."),
    make_input(io.LoraModel, "lora", optional=True, tooltip="A LoRA to go on from instead of starting at zero. Its ranks are kept."),
)  # fmt: skip


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomTrainLora",
            display_name="Train LoRA",
            category=CATEGORY,
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
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=inputs(INPUTS),
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
    def fingerprint_inputs(cls, resume: str = "new run", **_: Any) -> str:
        """A new run with equal inputs is not trained again; continuing always does something."""
        return str(time.time_ns()) if resume == "continue last" else ""

    @classmethod
    @shown
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
        **widgets: Any,
    ) -> io.NodeOutput:
        check_name("name", widgets["name"])
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            config, pictures = config_from(widgets, dataset, backend, settings)
            if not config.trains_lora:
                raise LoomError("settings.embedding_alone", field="settings")
            start = started_from(lora, backend, config)
            require_matched(trained(_empty_lora(backend, config), backend.family), model, clip)
            result, paths = run(cls.hidden, job_of(backend, config, pictures, start), resume == "continue last")
        require_matched(result.tensors, model, clip)
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


def embeddings_of(result: Result, paths: list[Path]) -> dict[str, EmbeddingSocket]:
    """The word of each embedding a run has written -> its vectors."""
    stems = list(result.products)[-len(paths) :] if paths else []
    return {
        path.stem: EmbeddingSocket(read_embedding(result.products[stem][0]))
        for stem, path in zip(stems, paths, strict=True)
    }


def _empty_lora(backend: HostBackend, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The names this run will write, with empty weights: what the host cannot read back is found before training. Raises LoomError for kinds it never reads."""
    layers, texts = chosen_layers(config, backend)
    kind = KINDS[config.adapter.algorithm]
    readers = readers_of(kind.name)
    if readers and "ComfyUI" not in readers:
        raise LoomError("adapter.not_in_comfyui", field="adapter.algorithm", kind=kind.title, readers=readers)
    state = {}
    for name, layer in {**layers, **texts}.items():
        shape = weight_shape(layer)
        if len(shape) == 1:
            state[f"{name}.diff"] = torch.zeros(shape)
        else:
            state[f"{name}.lora_down"], state[f"{name}.lora_up"] = (
                torch.zeros(1, *shape[1:]),
                torch.zeros(shape[0], 1, *[1] * (len(shape) - 2)),
            )
    return state


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
    if widgets.get("epochs") and widgets["steps"]:
        raise LoomError("length.several", field="epochs", given=["steps", "epochs"])
    return job(values, settings.values if settings else {}, **sets.parts()), pictures
