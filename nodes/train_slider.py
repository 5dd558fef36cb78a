"""Train Slider: a LoRA from prompts alone, of which the MODEL itself says where they lead, or from pairs of pictures."""

from __future__ import annotations

from typing import Any

import torch

from ..lora_core.config import TrainConfig
from ..lora_core.data.dataset import Dataset
from ..lora_core.data.folder import open_sets
from ..lora_core.messages.errors import LoomError
from ..lora_core.names import check_name
from .host.access.api import io, make_input, make_output
from .host.access.loras import with_lora
from .host.engine.backend import HostBackend
from .host.web.panel import on_panel
from .jobs.datasets import Base, PictureSets
from .jobs.settings import SLIDER
from .settings import Settings, SettingsSocket, optimizer_of
from .sockets import LoraWeights, dataset_input, lora_output, loss_output, path_output, plain_errors
from .train_node import CONTINUED, RESOLUTION, RESUME, VISION, TrainNode, base_inputs, run_of_lora, train_schema
from .widgets import job, row
from .widgets import settings as values_of

INPUTS = (
    *base_inputs(),
    row("name", default="my_slider"),
    row("slider.mode", "mode"),
    row("slider.target", "target", multiline=True),
    row("slider.positive", "positive", multiline=True),
    row("slider.negative", "negative", multiline=True),
    row("slider.preserve", "preserve", multiline=True),
    row("steps", automatic=True, default=0, min=0, zero="auto", tooltip="Weight updates; 0 takes 500."),
    row("adapter.rank", automatic=True, default=0, min=0, zero="auto", tooltip="Size of the LoRA; 0 takes 8."),
    row(
        "optimizer.lr", "learning_rate", automatic=True, default=0.0, step=0.00001, round=0.0000001,
        tooltip="Learning rate; 0 takes 2e-4, or the optimizer's.",
    ),
    RESOLUTION,
    row("slider.guidance", "guidance"),
    row("slider.strengths", "strengths"),
    row(
        "samples.prompt", "sample_prompt", multiline=True,
        tooltip="Prompt of the sample pictures; several separated by new lines. Empty: the target and what is preserved.",
    ),
    row("seed"),
    row("slider.across", "across", multiline=True, advanced=True),
    row("slider.both_ways", "both_ways", advanced=True),
    row("slider.preserve_weight", "preserve_weight", advanced=True),
    row("slider.sampler_steps", "sampler_steps", advanced=True),
    row("slider.cfg", "drawing_cfg", advanced=True),
    row("batch_size", advanced=True),
    row("grad_accum", advanced=True),
    row("adapter.alpha", advanced=True),
    row("adapter.targets", advanced=True),
    row("adapter.include", advanced=True),
    row("adapter.exclude", advanced=True),
    row("schedule.name", "scheduler", advanced=True),
    row("schedule.warmup_steps", advanced=True),
    row("checkpointing", advanced=True),
    row("save.every", "save_every", advanced=True),
    row("samples.every", "sample_every", advanced=True),
    row("samples.cfg", "sample_cfg", advanced=True),
    RESUME,
    row("memory", optional=True),
    row("slider.unchanged", "unchanged", optional=True),
    dataset_input(
        optional=True,
        tooltip="Pictures whose latents are used instead of latents that the model draws itself; captions are not read. "
        "With pairs: the pictures with their control pictures.",
    ),
    make_input(Settings, "settings", optional=True, tooltip="From the settings nodes: optimizer, adapter, loss and noise."),
    CONTINUED,
    VISION,
)  # fmt: skip


class TrainSlider(TrainNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return train_schema(
            INPUTS,
            node_id="LoraLoomTrainSlider",
            display_name="Train Slider",
            description="Trains a LoRA from prompts alone, without pictures: a slider between two prompts, or one that erases a concept; "
            "or a slider from pairs of pictures. Cancel and stop keep it.",
            search_aliases=[
                "concept slider",
                "leco",
                "esd",
                "erase",
                "train",
                "slider",
                "without pictures",
                "unlearn",
                "visual slider",
                "pairs",
                "addift",
            ],
            outputs=[
                make_output(io.Model, "model", tooltip="The base model with the LoRA at strength 1."),
                lora_output(),
                loss_output(),
                path_output(),
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
        resume: str,
        dataset: PictureSets | None = None,
        settings: SettingsSocket | None = None,
        lora: dict | None = None,
        clip_vision: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        check_name("name", widgets["name"])
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae, vision=clip_vision)
            config, pictures = config_from(widgets, dataset, backend, settings)
            if not config.trains_slider:
                raise LoomError("settings.pivotal_elsewhere", field="settings")
            result, paths = run_of_lora(cls.hidden, (model, clip), backend, (config, pictures), resume, lora)
        tuned, _ = with_lora(model, None, result.tensors)
        wired = LoraWeights(result.tensors, backend.family, result.facts)
        return io.NodeOutput(tuned, wired, {"loss": result.losses}, str(paths[0]))


def config_from(
    widgets: dict[str, Any], dataset: PictureSets | None, base: Base, settings: SettingsSocket | None = None
) -> tuple[TrainConfig, Dataset]:
    """The run's config (widgets, with 0 filled in, wired settings over them), and its pictures, which may be none."""
    sets = (dataset or PictureSets.none()).sized(widgets["resolution"], base)
    automatic = {**SLIDER, "data.resolution": sets.parts()["data"].resolution}
    if optimizer_of(settings) != "adamw":
        automatic["optimizer.lr"] = 0.0
    values = {**values_of(INPUTS, widgets, automatic), "method": "slider"}
    config = job(values, settings.values if settings else {}, **sets.parts())
    return config, sets.opened() if dataset else open_sets(config)
