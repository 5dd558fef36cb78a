"""Needed Blocks: which blocks the LoRA of a finished run needs, and the LoRA without those that it does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..convert import Lora
from ..lora_core.training.usefulness import usefulness
from .host.access.api import io, make_input, make_output, schema, ui
from .host.engine.backend import HostBackend
from .host.web.live import LiveNode
from .jobs.blocks import chart, finished_job, layers_by_block, lora_for, needed
from .run_checkpoints import LATEST, after_input, base_of_run, folder_of, run_input, state_of
from .run_export import result_of
from .sockets import CATEGORY, LoraWeights, in_english, in_words, lora_output, on_the_wire, plain_errors, report_output
from .train_node import VISION


class NeededBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomNeededBlocks",
            display_name="Needed Blocks",
            category=CATEGORY,
            description="Measures which blocks a finished LoRA needs, on the pictures of its run, and gives the LoRA without the others.",
            search_aliases=["block weight", "lora block", "prune lora", "shrink lora", "layer usefulness", "mbw"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *base_of_run(),
                run_input(),
                make_input(
                    io.Float,
                    "bound",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Percent of the LoRA's effect that may be lost by what is left out, all of it together.",
                ),
                after_input(),
                VISION,
            ],
            outputs=[
                lora_output("The LoRA without the blocks that it does not need, for Save LoRA."),
                make_output(io.Image, "chart", tooltip="What is lost without each block, in percent of the effect."),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str = LATEST, **_: Any) -> str:
        return state_of(run)

    @classmethod
    @plain_errors("run")
    def execute(
        cls, model: Any, clip: Any, vae: Any, run: str, bound: float = 1.0, after: Any = None, clip_vision: Any = None
    ) -> io.NodeOutput:
        folder = folder_of(run)
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae, vision=clip_vision)
            job, file = finished_job(folder, backend)
            live = LiveNode(cls.hidden.unique_id, 1)
            use = usefulness(dataclasses.replace(job, listener=live), layers_by_block(file, backend), bound / 100)
        lora = needed(lora_for(file, backend.family), use.idle)
        picture = torch.from_numpy(np.asarray(chart(use), np.float32) / 255.0)[None]
        lines = use.messages()
        live.on_note(lines[-1])  # in place of what it did last
        return io.NodeOutput(
            _wire(lora, result_of(folder)[0]),
            picture,
            in_english(lines),
            ui=in_words(lines, **ui.PreviewImage(picture, cls=cls).as_dict()),
        )


def _wire(lora: Lora, whole: LoraWeights) -> LoraWeights:
    """What is left of a result, with what is known of the run it is from."""
    return LoraWeights(on_the_wire(lora), whole.base, whole.facts)
