"""Check Training and Find Learning Rate: real passes on the wired model before a run, of which nothing is kept but the figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..lora_core.events import Control, Listeners
from ..lora_core.messages.errors import LoomError
from ..lora_core.training.assemble import dry_run
from ..lora_core.training.fitting import verdict
from ..lora_core.training.job import Job
from ..lora_core.training.lr_range import Trial, lr_range
from .host.access.api import io, make_input, make_output, schema, ui
from .host.engine.backend import HostBackend
from .host.web.live import LiveNode, registered
from .host.web.panel import on_panel, panel_of
from .jobs.datasets import PictureSets
from .jobs.panel import PanelListener
from .settings import Settings, SettingsSocket
from .sockets import CATEGORY, dataset_input, in_english, in_words, report_output
from .train_node import RESOLUTION, VISION, base_inputs
from .training import job_of
from .widgets import inputs, job, row, widget
from .widgets import settings as values_of

SHARED = (
    *base_inputs(),
    dataset_input(),
    row("adapter.rank"),
    row("adapter.targets"),
    RESOLUTION,
    row("batch_size"),
    row("grad_accum", advanced=True),
    row("checkpointing", advanced=True),
    row("seed", advanced=True),
)


def _trial(
    widgets: dict[str, Any], dataset: PictureSets, backend: HostBackend, settings: SettingsSocket | None, **fixed: Any
) -> Job:
    """What will be tried, as the widgets say, with wired settings over them."""
    sets = dataset.sized(widgets["resolution"], backend)
    chosen = values_of(SHARED, widgets, {"data.resolution": sets.parts()["data"].resolution})
    config = job(chosen, settings.values if settings else {}, name="trial", **sets.parts(), **fixed)
    return job_of(backend, config, sets.opened())


class CheckTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomCheck",
            display_name="Check Training",
            category=CATEGORY,
            description="Runs one real step on the largest bucket and says how long a run will take, how much memory it needs, and what to change if it fails.",
            search_aliases=["vram", "memory", "dry run", "estimate", "out of memory", "oom", "train", "how long"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *inputs(SHARED),
                widget("steps"),
                make_input(Settings, "settings", optional=True, tooltip="As they will be wired to Train LoRA."),
                VISION,
            ],
            outputs=[
                report_output(),
                make_output(io.Boolean, "ok", tooltip="Whether it runs with the settings as they are."),
                make_output(io.Float, "peak_gb", tooltip="Peak of memory in GiB."),
                make_output(io.Float, "seconds_per_step", tooltip="How long one weight update takes."),
                make_output(
                    Settings, "settings", tooltip="The same settings with a batch size and checkpointing that fit."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: PictureSets,
        steps: int,
        settings: SettingsSocket | None = None,
        clip_vision: Any = None,
        **w: Any,
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            trial = _trial(w, dataset, HostBackend(model, clip, vae, vision=clip_vision), settings, steps=steps)
            live = LiveNode(cls.hidden.unique_id, 1)
            chosen, measured = dry_run(dataclasses.replace(trial, listener=live))
        ok, message = verdict(trial.config, chosen, measured, steps)
        live.on_note(message)  # in place of what it did last
        lines = [message, *trial.dataset.messages()]
        keep = {"batch_size": chosen.batch_size, "grad_accum": chosen.grad_accum, "checkpointing": chosen.checkpointing}
        passed = SettingsSocket({**(settings.values if settings else {}), **keep})
        seconds = measured.seconds * measured.grad_accum
        return io.NodeOutput(in_english(lines), ok, measured.peak_bytes / 2**30, seconds, passed, ui=in_words(lines))


class FindLearningRate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomFindLearningRate",
            display_name="Find Learning Rate",
            category=CATEGORY,
            description="Trains a few steps at rising rates, measures fixed pictures at fixed noise, and suggests the rate at which their loss falls fastest.",
            search_aliases=["lr finder", "learning rate range test", "train", "learning rate"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                *inputs(SHARED),
                make_input(
                    io.Int,
                    "test_steps",
                    default=60,
                    min=10,
                    max=2000,
                    tooltip="Steps of the test; its weights are thrown away.",
                ),
                make_input(
                    io.Float,
                    "lowest",
                    default=1e-6,
                    min=1e-9,
                    max=1.0,
                    step=1e-7,
                    round=1e-9,
                    advanced=True,
                    tooltip="First rate tried.",
                ),
                make_input(
                    io.Float,
                    "highest",
                    default=1e-1,
                    min=1e-8,
                    max=10.0,
                    step=0.01,
                    round=1e-8,
                    advanced=True,
                    tooltip="Last rate tried.",
                ),
                make_input(Settings, "settings", optional=True, tooltip="As they will be wired to Train LoRA."),
                VISION,
            ],
            outputs=[
                make_output(io.Float, "learning_rate", tooltip="The suggested rate, for learning_rate of Train LoRA."),
                make_output(io.Image, "plot", tooltip="The loss at each rate tried."),
                report_output(),
            ],
        )

    @classmethod
    @on_panel
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: PictureSets,
        test_steps: int,
        lowest: float,
        highest: float,
        settings: SettingsSocket | None = None,
        clip_vision: Any = None,
        **w: Any,
    ) -> io.NodeOutput:
        if lowest >= highest:
            raise LoomError("find_lr.range", field="lowest", low=f"{lowest:g}", high=f"{highest:g}")
        control = Control()
        with torch.inference_mode(False), registered(cls.hidden.unique_id, control):
            trial = _trial(w, dataset, HostBackend(model, clip, vae, vision=clip_vision), settings)
            live = Listeners([LiveNode(cls.hidden.unique_id, test_steps, bar_only=True)])
            if (panel := panel_of(cls.hidden.unique_id)) is not None:
                live.members.append(PanelListener(panel))
            rates = Trial(lowest, highest, test_steps)
            result = lr_range(dataclasses.replace(trial, listener=live, control=control), rates)
        sheet = torch.from_numpy(np.asarray(result.drawn(), np.float32) / 255.0)[None]
        message = result.message()
        return io.NodeOutput(
            result.suggested, sheet, str(message), ui=in_words([message], **ui.PreviewImage(sheet, cls=cls).as_dict())
        )
