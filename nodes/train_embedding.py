"""Train Embedding: textual inversion on the wired MODEL and CLIP. The CLIP that comes out knows the new word at once."""

from __future__ import annotations

from typing import Any

import torch

from ..lora_core.config import TrainConfig
from ..lora_core.data.dataset import Dataset as Pictures
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Message
from ..lora_core.names import check_name
from .host.access.api import io, make_input, make_output
from .host.engine.backend import HostBackend
from .host.engine.tokens import with_embeddings
from .host.web.panel import on_panel
from .jobs.datasets import Base, PictureSets
from .settings import Settings, SettingsSocket, optimizer_of
from .sockets import Dataset, Embedding, in_words, loss_output, path_output, plain_errors
from .train_node import LAST, RESOLUTION, RESUME, TrainNode, base_inputs, embeddings_of, train_schema
from .training import job_of, train
from .widgets import job, row
from .widgets import settings as values_of

USUAL_LR = 5e-3
STEPS_PER_PICTURE = 100


INPUTS = (
    *base_inputs("The text encoder of the base model: CLIP-L, CLIP-G, or the CLIP-L beside a T5."),
    make_input(Dataset, "dataset", tooltip="From Load Training Folder. Its trigger stands for the word; captions without it get it in front."),
    row("name", default="my_emb", tooltip="Name of the file, and the word: embedding:name here, just the name in A1111 and Forge."),
    row("embedding.init", "init_text", default="", tooltip="What the word starts from, such as person or painting; empty: random."),
    row("embedding.vectors", default=4),
    row("steps", automatic=True, default=0, min=0, zero="auto", tooltip="Weight updates; 0 takes 100 for each picture, 500 to 3000."),
    row("optimizer.lr", "learning_rate", automatic=True, default=0.0, step=0.0001, round=0.0000001, tooltip="Learning rate; 0 takes 5e-3, or the optimizer's."),
    RESOLUTION,
    row("samples.prompt", "sample_prompt", multiline=True),
    row("seed"),
    row("embedding.tokens", advanced=True, multiline=True),
    row("embedding.keep_norm", advanced=True),
    row("batch_size", advanced=True),
    row("grad_accum", advanced=True),
    row("schedule.name", "scheduler", default="constant", advanced=True),
    row("schedule.warmup_steps", advanced=True),
    row("embedding.weight_decay", advanced=True),
    row("checkpointing", advanced=True),
    row("save.every", "save_every", advanced=True),
    row("samples.every", "sample_every", advanced=True),
    row("samples.cfg", "sample_cfg", advanced=True),
    RESUME,
    row("memory", optional=True),
    make_input(Settings, "settings", optional=True, tooltip="Optimizer Settings and the like."),
)  # fmt: skip


class TrainEmbedding(TrainNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return train_schema(
            INPUTS,
            node_id="LoraLoomTrainEmbedding",
            display_name="Train Embedding",
            description="Textual inversion: learns a new word from pictures. Nothing but the word's vectors is trained. Cancel and stop both keep them.",
            search_aliases=["textual inversion", "train", "embedding", "ti", "train embedding", "finetune", "new word"],
            outputs=[
                make_output(
                    io.Clip, "clip", tooltip="The text encoder that knows the word: write embedding:<name> in a prompt."
                ),
                make_output(
                    Embedding, "embedding", tooltip="The vectors of the word, for Save Embedding or Save LoRA."
                ),
                loss_output(),
                path_output(),
            ],
        )

    @classmethod
    @on_panel
    @plain_errors("embedding")
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: PictureSets,
        resume: str,
        settings: SettingsSocket | None = None,
        **w: Any,
    ) -> io.NodeOutput:
        check_name("name", w["name"])
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            config, pictures = config_from(w, dataset, backend, settings)
            if config.trains_lora:
                raise LoomError("settings.pivotal_elsewhere", field="settings")
            result, paths = train(cls.hidden, job_of(backend, config, pictures), resume == LAST)
        embeddings = embeddings_of(result, paths)
        clip_with_tokens = with_embeddings(clip, {name: e.embedding.vectors.get for name, e in embeddings.items()})
        words = ", ".join(f"embedding:{name}" for name in embeddings)
        use = in_words([Message.of("embedding.write", words=words)])
        return io.NodeOutput(
            clip_with_tokens, next(iter(embeddings.values())), {"loss": result.losses}, str(paths[0]), ui=use
        )


def config_from(
    widgets: dict[str, Any], dataset: PictureSets, base: Base, settings: SettingsSocket | None = None
) -> tuple[TrainConfig, Pictures]:
    """The run's config (widgets, with 0 filled in from the number of pictures and the model, wired settings over them) and its pictures."""
    sets = dataset.sized(widgets["resolution"], base)
    pictures = sets.opened()
    automatic = {
        "steps": min(3000, max(500, STEPS_PER_PICTURE * len(pictures.pictures))),
        "data.resolution": sets.parts()["data"].resolution,
        "optimizer.lr": USUAL_LR if optimizer_of(settings) == "adamw" else 0.0,
    }
    values = values_of(INPUTS, widgets, automatic)
    return job(values, settings.values if settings else {}, method="embedding", **sets.parts()), pictures
