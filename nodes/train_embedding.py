"""Train Embedding: textual inversion on the wired MODEL and CLIP. The CLIP that comes out knows the new word at once."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..lora_core.config import EmbeddingConfig, OptimizerConfig, SampleConfig, SaveConfig, ScheduleConfig, TrainConfig, as_dict, parse
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Message
from ..lora_core.names import check_name
from .host.access.api import io, make_input, make_output, schema
from .host.engine.backend import HostBackend
from .host.engine.tokens import with_embeddings
from .host.web.panel import shown
from .presets import opened
from .settings import Settings, SettingsSocket, optimizer_of
from .sockets import CATEGORY, Dataset, DatasetSocket, Embedding, in_words, loss_output, path_output, plain_errors, widget
from .train_lora import embeddings_of
from .training import published, run

USUAL_LR = 5e-3
STEPS_PER_PICTURE = 100


class TrainEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomTrainEmbedding",
            display_name="Train Embedding",
            category=CATEGORY,
            description="Textual inversion: learns a new word from pictures. Nothing but the word's vectors is trained. Cancel and stop both keep them.",
            search_aliases=["textual inversion", "train", "embedding", "ti", "train embedding", "finetune", "new word"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                make_input(io.Model, "model", tooltip="The base model. It is not copied and not changed."),
                make_input(io.Clip, "clip", tooltip="The text encoder of the base model: CLIP-L, CLIP-G, or the CLIP-L beside a T5."),
                make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
                make_input(Dataset, "dataset", tooltip="From Load Training Folder. Its trigger stands for the word; captions without it get it in front."),
                widget("name", default="my_emb", tooltip="Name of the file, and the word: embedding:name here, just the name in A1111 and Forge."),
                widget("embedding.init", "init_text", default="", tooltip="What the word starts from, such as person or painting; empty: random."),
                widget("embedding.vectors", default=4),
                widget("steps", default=0, min=0, tooltip="Weight updates; 0 takes 100 for each picture, 500 to 3000."),
                widget("optimizer.lr", "learning_rate", default=0.0, step=0.0001, round=0.0000001, tooltip="Learning rate; 0 takes 5e-3, or the optimizer's."),
                widget("data.resolution", default=0, min=0, step=8, tooltip="Training resolution in px; 0 takes what the model was made for."),
                widget("samples.prompt", "sample_prompt", multiline=True),
                widget("seed"),
                widget("embedding.tokens", advanced=True, multiline=True),
                widget("embedding.keep_norm", advanced=True),
                widget("batch_size", advanced=True),
                widget("grad_accum", advanced=True),
                widget("schedule.name", "scheduler", default="constant", advanced=True),
                widget("schedule.warmup_steps", advanced=True),
                widget("embedding.weight_decay", advanced=True),
                widget("checkpointing", advanced=True),
                widget("save.every", "save_every", advanced=True),
                widget("samples.every", "sample_every", advanced=True),
                widget("samples.cfg", "sample_cfg", advanced=True),
                make_input(
                    io.Combo, "resume", options=["new run", "continue last"], default="new run", advanced=True,
                    tooltip="continue last goes on where the latest run of this name was saved, exactly as if it had never stopped.",
                ),
                make_input(Settings, "settings", optional=True, tooltip="Optimizer Settings and the like."),
            ],
            outputs=[
                make_output(io.Clip, "clip", tooltip="The text encoder that knows the word: write embedding:<name> in a prompt."),
                make_output(Embedding, "embedding", tooltip="The vectors of the word, for Save Embedding or Save LoRA."),
                loss_output(),
                path_output(),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, resume: str = "new run", **_: Any) -> str:
        """A new run with equal inputs is not trained again; continuing always does something."""
        return str(time.time_ns()) if resume == "continue last" else ""

    @classmethod
    @shown
    @plain_errors("embedding")
    def execute(
        cls, model: Any, clip: Any, vae: Any, dataset: DatasetSocket, resume: str, settings: SettingsSocket | None = None, **w: Any
    ) -> io.NodeOutput:
        check_name("name", w["name"])
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            parts, found = opened(dataset, w["resolution"], backend)
            values = TrainConfig(
                name=w["name"], base="ComfyUI", method="embedding", steps=w["steps"] or min(3000, max(500, STEPS_PER_PICTURE * len(found.pictures))),
                batch_size=w["batch_size"], grad_accum=w["grad_accum"], seed=w["seed"], checkpointing=w["checkpointing"], **parts,
                embedding=EmbeddingConfig(
                    tokens=w["tokens"], vectors=w["vectors"], init=w["init_text"], keep_norm=w["keep_norm"], weight_decay=w["weight_decay"]
                ),
                optimizer=OptimizerConfig(lr=w["learning_rate"] or (USUAL_LR if optimizer_of(settings) == "adamw" else 0.0)),
                schedule=ScheduleConfig(name=w["scheduler"], warmup_steps=w["warmup_steps"]),
                save=SaveConfig(every=w["save_every"]),
                samples=SampleConfig(prompt=w["sample_prompt"], every=w["sample_every"], cfg=w["sample_cfg"]),
            )  # fmt: skip
            config = parse(settings.over(as_dict(values)) if settings else as_dict(values))
            if config.trains_lora:
                raise LoomError("settings.pivotal_elsewhere", field="settings")
            result = run(cls.hidden, backend, config, found, resume == "continue last")
        paths = published(cls.hidden.unique_id, result.files)
        embeddings = embeddings_of(result, paths)
        known = with_embeddings(clip, {name: e.embedding.vectors.get for name, e in embeddings.items()})
        words = ", ".join(f"embedding:{name}" for name in embeddings)
        use = in_words([Message.of("embedding.write", words=words)])
        return io.NodeOutput(known, next(iter(embeddings.values())), {"loss": result.losses}, str(paths[0]), ui=use)
