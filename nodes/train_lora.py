"""Train LoRA: MODEL, CLIP, VAE and a dataset in; the trained MODEL and CLIP, the LoRA and its file out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import comfy.sd
import torch

from ..convert import trained
from ..convert.embedding import read_embedding
from ..lora_core.algebra.kinds import KINDS
from ..lora_core.algebra.walk import weight_shape
from ..lora_core.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, SampleConfig, SaveConfig, ScheduleConfig, TrainConfig, as_dict, parse
from ..lora_core.data.folder import Dataset as FoundDataset
from ..lora_core.messages.errors import LoomError
from ..lora_core.names import check_name
from ..lora_core.training.build import chosen_layers
from ..lora_core.training.trainer import Result
from .host.access.api import io, make_input, make_output, schema
from .host.access.check import require_matched
from .host.engine.backend import HostBackend
from .host.engine.tokens import with_embeddings
from .host.web.panel import shown
from .presets import PRESETS, opened
from .settings import Settings, SettingsSocket, optimizer_of
from .sockets import (
    CATEGORY,
    DatasetSocket,
    Embedding,
    EmbeddingSocket,
    LoraWeights,
    dataset_input,
    lora_output,
    loss_output,
    path_output,
    plain_errors,
    widget,
)
from .training import published, run, started_from


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomTrainLora",
            display_name="Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on the wired MODEL as it is loaded. Cancel and stop both keep what was trained.",
            search_aliases=["kohya", "dreambooth", "train", "lora training", "finetune", "fine-tune", "lora trainer", "sd-scripts", "locon", "pivotal tuning"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                make_input(io.Model, "model", tooltip="The base model. It is not copied and not changed."),
                make_input(io.Clip, "clip", tooltip="The text encoder of the base model."),
                make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
                dataset_input(),
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
                widget("objective.timestep_bias", advanced=True, optional=True),
                widget("auto_fit", advanced=True, optional=True),
                make_input(Settings, "settings", optional=True, tooltip="From the settings nodes: optimizer, adapter, text encoders, tokens, class pictures."),
                make_input(io.LoraModel, "lora", optional=True, tooltip="A LoRA to go on from instead of starting at zero. Its ranks are kept."),
            ],
            outputs=[
                make_output(io.Model, "model", tooltip="The base model with the LoRA."),
                make_output(io.Clip, "clip", tooltip="The text encoder with its part of the LoRA, and with the embeddings: write embedding:<name>_emb."),
                lora_output(),
                loss_output(),
                path_output(),
                make_output(Embedding, "embedding", tooltip="The first embedding of a pivotal tuning; nothing without one."),
            ],
        )  # fmt: skip

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
        dataset: DatasetSocket,
        resume: str,
        settings: SettingsSocket | None = None,
        lora: dict | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        check_name("name", widgets["name"])
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            config, found = config_from(widgets, dataset, backend, settings)
            if not config.trains_lora:
                raise LoomError("settings: this node trains a LoRA; for an embedding alone use Train Embedding.")
            start = started_from(lora, backend, config)
            require_matched(trained(_empty_lora(backend, config), backend.family), model, clip)
            result = run(cls.hidden, backend, config, found, resume == "continue last", start)
        paths = published(cls.hidden.unique_id, result.files)
        require_matched(result.tensors, model, clip)
        tuned, tuned_clip = comfy.sd.load_lora_for_models(model, clip if config.text_encoder.train else None, result.tensors, 1.0, 1.0)
        embeddings = embeddings_of(result, paths[1:])
        wired = LoraWeights(result.tensors, backend.family, {**result.facts, "triggers": list(embeddings)})
        first = next(iter(embeddings.values()), None)
        known = with_embeddings(tuned_clip or clip, {n: e.embedding.vectors.get for n, e in embeddings.items()}) if embeddings else tuned_clip or clip
        return io.NodeOutput(
            tuned, known, wired, {"loss": result.losses}, str(paths[0]), first,
        )  # fmt: skip


def embeddings_of(result: Result, paths: list[Path]) -> dict[str, EmbeddingSocket]:
    """The word of each embedding a run has written -> its vectors."""
    stems = list(result.products)[-len(paths) :] if paths else []
    return {path.stem: EmbeddingSocket(read_embedding(result.products[stem][0])) for stem, path in zip(stems, paths, strict=True)}


def _empty_lora(backend: HostBackend, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The names this run will write, with empty weights: what the host cannot read back is found before training. Raises LoomError for kinds it never reads."""
    own, texts = chosen_layers(config, backend)
    kind = KINDS[config.adapter.algorithm]
    if kind.read_by is not None and "ComfyUI" not in kind.read_by:
        readers = " and ".join(kind.read_by)
        raise LoomError(f"adapter.algorithm: ComfyUI does not load {kind.title} files; choose another kind, or train it in the terminal for {readers}.")
    state = {}
    for name, layer in {**own, **texts}.items():
        shape = weight_shape(layer)
        if len(shape) == 1:
            state[f"{name}.diff"] = torch.zeros(shape)
        else:
            state[f"{name}.lora_down"], state[f"{name}.lora_up"] = torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *[1] * (len(shape) - 2))
    return state


def config_from(
    widgets: dict[str, Any], dataset: DatasetSocket, backend: HostBackend, settings: SettingsSocket | None = None
) -> tuple[TrainConfig, FoundDataset]:
    """The run's config (widgets, with 0 and auto filled in from the preset and the model, wired settings over them) and the pictures it will train on."""
    w, preset = widgets, PRESETS[widgets["preset"]]
    lr = w["learning_rate"] or (preset.lr if optimizer_of(settings) == "adamw" else 0.0)
    parts, found = opened(dataset, w["resolution"], backend)
    values = TrainConfig(
        name=w["name"], base="ComfyUI", steps=w["steps"] or preset.steps(len(found.pictures)), batch_size=w["batch_size"], grad_accum=w["grad_accum"],
        seed=w["seed"], checkpointing=w["checkpointing"], auto_fit=w.get("auto_fit", False), **parts, loss=w["loss"],
        huber_delta=w["huber_delta"], huber_schedule=w["huber_schedule"],
        adapter=AdapterConfig(
            rank=w["rank"] or preset.rank, alpha=w["alpha"], dropout=w["dropout"], init=w["init"], targets=w["targets"], include=w["include"],
            exclude=w["exclude"],
        ),
        optimizer=OptimizerConfig(lr=lr, weight_decay=w["weight_decay"], max_grad_norm=w["max_grad_norm"]),
        schedule=ScheduleConfig(name=preset.schedule if w["scheduler"] == "auto" else w["scheduler"], warmup_steps=w["warmup_steps"]),
        objective=ObjectiveConfig(
            timesteps=w["timesteps"], shift=w["shift"], min_timestep=w["min_timestep"], max_timestep=w["max_timestep"], weighting=w["weighting"],
            min_snr_gamma=w["min_snr_gamma"], p2_gamma=w["p2_gamma"], noise_offset=w["noise_offset"], multires_iterations=w["multires_iterations"],
            multires_discount=w["multires_discount"], input_perturbation=w["input_perturbation"], timestep_bias=w.get("timestep_bias", 0.0),
        ),
        save=SaveConfig(every=w["save_every"]),
        samples=SampleConfig(prompt=w["sample_prompt"], every=w["sample_every"], cfg=w["sample_cfg"]),
    )  # fmt: skip
    return parse(settings.over(as_dict(values)) if settings else as_dict(values)), found
