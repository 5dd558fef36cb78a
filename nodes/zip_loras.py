"""Zip LoRAs: a subject LoRA and a style LoRA in one, with coefficients learned on the wired MODEL."""

from __future__ import annotations

from typing import Any

import torch

from ..convert import read
from ..convert.families import known_family
from ..lora_core.training.job import Job
from ..lora_core.training.ziplora import zip_config
from .host.access.api import io, make_input, make_output, schema
from .host.access.loras import with_lora
from .host.access.paths import runs_root
from .host.engine.backend import HostBackend
from .host.web.live import LiveNode, registered
from .jobs.datasets import PictureSets
from .jobs.zipping import zipped
from .sockets import (
    CATEGORY,
    Dataset,
    LoraWeights,
    in_english,
    in_words,
    lora_output,
    loss_output,
    plain_errors,
    report_output,
)
from .train_node import VISION
from .widgets import widget


class ZipLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomZipLoras",
            display_name="Zip LoRAs",
            category=CATEGORY,
            description="ZipLoRA: merges a subject and a style LoRA so that each keeps its effect, by learning a coefficient for every column of every layer.",
            search_aliases=["ziplora", "merge subject and style", "learned merge"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                make_input(
                    io.Model,
                    "model",
                    tooltip="The base model both LoRAs were made for. It is not copied and not changed.",
                ),
                make_input(io.Clip, "clip", tooltip="The text encoder of the base model."),
                make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
                make_input(io.LoraModel, "lora_1", tooltip="The first LoRA, from Train LoRA or Inspect."),
                make_input(io.LoraModel, "lora_2", tooltip="The second LoRA."),
                make_input(
                    Dataset,
                    "pictures_1",
                    tooltip="Pictures and captions of what the first LoRA shows, its training set for instance.",
                ),
                make_input(Dataset, "pictures_2", tooltip="The same for the second LoRA."),
                make_input(
                    io.Int, "steps", default=100, min=1, max=10000, tooltip="Weight updates; the paper uses 100."
                ),
                make_input(
                    io.Float,
                    "learning_rate",
                    default=0.01,
                    min=0.00001,
                    max=1.0,
                    step=0.001,
                    round=0.00001,
                    tooltip="The paper uses 0.01; coefficients start at 1.",
                ),
                make_input(
                    io.Float,
                    "similarity",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.000001,
                    tooltip="How strongly the two are kept from using the same columns (lambda in the paper). Lower it when a concept fades.",
                ),
                widget(
                    "data.resolution",
                    default=0,
                    min=0,
                    zero="auto",
                    step=8,
                    tooltip="Resolution in px; 0 takes what the model was made for.",
                ),
                widget("seed"),
                widget("batch_size", advanced=True),
                widget("checkpointing", advanced=True),
                VISION,
            ],
            outputs=[
                make_output(io.Model, "model", tooltip="The base model with the merged LoRA."),
                lora_output(),
                loss_output(),
                report_output(),
            ],
        )

    @classmethod
    @plain_errors("lora")
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        lora_1: dict,
        lora_2: dict,
        pictures_1: PictureSets,
        pictures_2: PictureSets,
        steps: int,
        learning_rate: float,
        similarity: float,
        resolution: int,
        seed: int,
        batch_size: int,
        checkpointing: bool,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae, vision=clip_vision)
            family = known_family(backend.family)
            canonical = [read({k: v.clone() for k, v in lora.items()}, family=family) for lora in (lora_1, lora_2)]
            sets = [pictures.sized(resolution, backend) for pictures in (pictures_1, pictures_2)]
            config = zip_config(sets[0].parts()["data"], steps, learning_rate, batch_size, seed, checkpointing)
            first, second = sets[0].opened(), sets[1].opened()
            job = Job(config, backend, first, runs_root(), LiveNode(node_id, steps))
            with registered(node_id, job.control):
                done = zipped(job, second, canonical, family, similarity)
        tuned, _ = with_lora(model, None, done.tensors)
        weights, losses = LoraWeights(done.tensors, backend.family, {}), {"loss": done.losses}
        return io.NodeOutput(tuned, weights, losses, in_english(done.lines), ui=in_words(done.lines))
