"""Check Dataset: what a good trainer would notice before starting, on one picture sheet and in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..lora_core.config import AdapterConfig, TrainConfig
from ..lora_core.data.lengths import TextLength
from ..lora_core.data.lint import beside_loaded, look
from ..lora_core.data.sheet import sheet
from ..lora_core.messages.message import Message
from ..lora_core.training.assemble import dry_run
from ..lora_core.training.fitting import verdict
from .host.access.api import io, make_input, make_output, schema, ui
from .host.access.shown import as_shown
from .host.engine.backend import HostBackend
from .host.engine.texts import length_of, literal
from .host.web.live import LiveNode, layer_progress
from .jobs.datasets import PictureSets
from .sockets import CATEGORY, dataset_input, in_english, in_words, report_output
from .training import job_of
from .widgets import widget


class CheckDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomCheckDataset",
            display_name="Check Dataset",
            category=CATEGORY,
            description="Finds near-duplicates, blurred and small pictures, what the crop cuts off, captions that are missing, too long or all alike, masks "
            "without effect. With MODEL, CLIP and VAE it also measures one step: time and memory.",
            search_aliases=["lint", "dataset quality", "duplicates", "buckets", "vram estimate"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                widget("data.resolution", step=8, tooltip="Training resolution in px: the one you will train at."),
                widget("data.bucket_step_px", advanced=True),
                make_input(io.Clip, "clip", optional=True, tooltip="To count the tokens of captions."),
                make_input(
                    io.Model, "model", optional=True, tooltip="With clip and vae: to measure one training step."
                ),
                make_input(io.Vae, "vae", optional=True, tooltip="With model and clip: to measure one training step."),
            ],
            outputs=[
                make_output(
                    io.Image,
                    "sheet",
                    tooltip="The pictures as they will be cut, with what was noticed written on them.",
                ),
                report_output(),
                make_output(io.Boolean, "ok", tooltip="Whether there is nothing to look at."),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: PictureSets,
        resolution: int,
        bucket_step_px: int,
        clip: Any = None,
        model: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        measured, base = None, []
        if model is not None and clip is not None and vae is not None:
            with torch.inference_mode(False):
                backend = HostBackend(model, clip, vae)
                sets = dataset.sized(resolution, backend)
                config = TrainConfig(name="trial", base="ComfyUI", adapter=AdapterConfig(), **sets.parts())
                live = LiveNode(node_id, 1)
                job = dataclasses.replace(job_of(backend, config, sets.opened()), listener=live)
                objective = config.objective
                described = backend.base_model(objective)
                base = ["", described.message(), *described.warnings(objective)]
                _, measured = verdict(config, *dry_run(job), config.steps)
                live.on_note(measured)  # in place of what it did last
            pictures = job.dataset
        else:
            pictures = dataset.changed(resolution=resolution, bucket_step_px=bucket_step_px).opened()

        def length(caption: str) -> TextLength:
            return length_of(literal(caption, clip), clip)

        show = layer_progress(node_id)
        report = look(pictures, length if clip is not None else None, lambda n, of: show(n, of, ""))
        report = beside_loaded(report, dataset.opened())
        image = torch.from_numpy(np.asarray(sheet(report, names=as_shown), np.float32) / 255.0)[None]
        lines = report.messages()
        lines += base
        if measured:
            lines += ["", Message.of("lint.measured", rank=AdapterConfig().rank, measured=measured)]
        shown = in_words(lines, **ui.PreviewImage(image, cls=cls).as_dict())
        return io.NodeOutput(image, in_english(lines), report.good, ui=shown)
