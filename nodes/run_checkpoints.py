"""Run Checkpoints and Save Settings: the saves of a run in one queue, and how many are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..convert import products
from ..convert.embedding import is_embedding, read_embedding
from ..lora_core.config import as_dict
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.figures import figure
from ..lora_core.messages.message import Message
from ..lora_core.runs import listing
from ..lora_core.runs.folders import config_of
from ..lora_core.runs.saves import WHICH, Save, all_saves, chosen, weights
from .host.access.api import io, make_input, make_output, schema
from .host.access.check import require_matched
from .host.access.loras import with_lora
from .host.access.paths import runs_root
from .host.engine.naming import base_family
from .host.engine.tokens import with_embeddings
from .host.web.live import layer_progress
from .jobs.exports import base_of
from .settings import SettingsNode
from .sockets import CATEGORY, Embedding, EmbeddingSocket, LoraWeights, in_words, plain_errors
from .widgets import row

LATEST = "latest run"


def run_input() -> Any:
    return make_input(
        io.Combo,
        "run",
        options=[LATEST, *(run.id for run in listing.listing(runs_root()) if run.saves or run.best_save is not None)],
        default=LATEST,
        tooltip="A run below output/lora_loom that has saves; press R for those that are new.",
    )


def base_of_run() -> list[Any]:
    """What a run was trained on, wired again."""
    return [
        make_input(io.Model, "model", tooltip="The base model of the run."),
        make_input(io.Clip, "clip", tooltip="Its text encoder."),
        make_input(io.Vae, "vae", tooltip="Its VAE."),
    ]


def saves_inputs() -> list[Any]:
    return [
        make_input(
            io.Combo,
            "saves",
            options=list(WHICH),
            default="all",
            tooltip="Which saves of the run. A run keeps its last two and the best; Save Settings makes it keep more.",
        ),
        make_input(
            io.Int,
            "nth",
            default=2,
            min=1,
            max=10_000,
            advanced=True,
            tooltip="For every nth: 2 takes every other save, counted from the last.",
        ),
    ]


def after_input() -> Any:
    return make_input(
        io.AnyType,
        "after",
        optional=True,
        tooltip="Wire an output of Train LoRA here, such as path: this node then waits for it, and latest run is that one.",
    )


def folder_of(run: str) -> Path:
    """The run folder behind a choice. Raises LoomError."""
    if run != LATEST:
        return listing.find(runs_root(), run)
    newest = next((info.id for info in listing.listing(runs_root()) if info.saves or info.best_save is not None), None)
    if newest is None:
        raise LoomError("run.none_with_saves", field="run")
    return runs_root() / newest


def state_of(run: str) -> str:
    """Differs whenever the saves of the chosen run do."""
    try:
        info = listing.read_run(folder_of(run))
    except LoomError:
        return ""
    return f"{info.id} {info.saves} {info.best_save} {info.step} {info.changed}"


def contents(folder: Path, save: Save, base: str = "") -> tuple[LoraWeights, dict[str, EmbeddingSocket]]:
    """A save as a LORA_MODEL value (empty for a run that trains embeddings alone), and its embeddings by the word that calls them."""
    state, config = weights(folder, save), config_of(folder)
    base = base or base_of(folder, state)
    facts = {"config": as_dict(config), "step": save.step}
    results = products(state, folder.name, base, facts)
    embeddings = {
        stem: EmbeddingSocket(read_embedding(tensors))
        for stem, (tensors, _) in results.items()
        if is_embedding(tensors)
    }
    loras = [tensors for tensors, _ in results.values() if not is_embedding(tensors)]
    lora = loras[0] if loras else {}
    return LoraWeights(lora, base, {**facts, "triggers": list(embeddings)}), embeddings


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One save as Run Checkpoints gives it; the fields are the node's outputs, in their order."""

    model: Any
    clip: Any
    lora: LoraWeights
    step: int
    held_out: float
    label: str
    embedding: EmbeddingSocket | None

    @staticmethod
    def columns(saves: Sequence[Loaded]) -> list[list[Any]]:
        """A list for each output."""
        return [[getattr(save, field.name) for save in saves] for field in dataclasses.fields(Loaded)]


class RunCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomRunCheckpoints",
            display_name="Run Checkpoints",
            category=CATEGORY,
            description="The saves of a run, one after the other: what is wired behind it runs once for each, so one press of Run shows them all.",
            search_aliases=["checkpoints", "epochs", "compare epochs", "lora sweep", "xy plot", "load lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                run_input(),
                *saves_inputs(),
                make_input(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of the LoRA on model and clip.",
                ),
                make_input(
                    io.Model,
                    "model",
                    optional=True,
                    tooltip="The base model of the run; without it only lora and the figures come out.",
                ),
                make_input(io.Clip, "clip", optional=True, tooltip="Its text encoder."),
                after_input(),
            ],
            outputs=[
                make_output(io.Model, "model", is_output_list=True, tooltip="The base model with each save."),
                make_output(
                    io.Clip, "clip", is_output_list=True, tooltip="The text encoder with each save and its embeddings."
                ),
                make_output(
                    io.LoraModel,
                    "lora",
                    is_output_list=True,
                    tooltip="Each save as a LoRA, for Save LoRA for WebUI or Load LoRA Model.",
                ),
                make_output(io.Int, "step", is_output_list=True, tooltip="The step of each save."),
                make_output(
                    io.Float,
                    "held_out",
                    is_output_list=True,
                    tooltip="Loss on validation pictures; nan where it was not measured.",
                ),
                make_output(io.String, "label", is_output_list=True, tooltip="Such as: step 500, validation 0.0421."),
                make_output(
                    Embedding,
                    "embedding",
                    is_output_list=True,
                    tooltip="The first embedding of each save; nothing without one.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str = LATEST, **_: Any) -> str:
        return state_of(run)

    @classmethod
    @plain_errors("run")
    def execute(
        cls, run: str, saves: str, nth: int, strength: float, model: Any = None, clip: Any = None, after: Any = None
    ) -> io.NodeOutput:
        folder = folder_of(run)
        saved = chosen(all_saves(folder), saves, nth)
        progress, loaded = layer_progress(cls.hidden.unique_id), []
        for n, save in enumerate(saved):
            lora, embeddings = contents(folder, save, base_family(model.model) if model is not None else "")
            tuned_model, tuned_clip = applied(model, clip, lora, embeddings, strength)
            first = next(iter(embeddings.values()), None)
            loaded.append(Loaded(tuned_model, tuned_clip, lora, save.step, loss_of(save), str(title_of(save)), first))
            progress(n + 1, len(saved), save.label)
        lines = [folder.name, *map(title_of, saved)]
        return io.NodeOutput(*Loaded.columns(loaded), ui=in_words(lines))


def applied(
    model: Any, clip: Any, lora: LoraWeights, embeddings: dict[str, EmbeddingSocket], strength: float
) -> tuple[Any, Any]:
    """MODEL and CLIP with a save; None for what is not wired. Raises LoomError when it does not fit them."""
    tuned = model, clip
    texts = {key for key in lora if key.startswith(("lora_te", "text_encoder"))}
    if lora and model is not None:
        try:
            require_matched(
                {key: value for key, value in lora.items() if clip is not None or key not in texts}, model, clip
            )
        except LoomError as error:
            raise LoomError("saves.other_model", field="model") from error
    if lora and (model is not None or clip is not None):
        tuned_model, tuned_clip = with_lora(model, clip if texts else None, lora, strength)
        tuned = tuned_model, tuned_clip if texts else clip
    if embeddings and clip is not None:
        tuned = tuned[0], with_embeddings(tuned[1], {name: e.embedding.vectors.get for name, e in embeddings.items()})
    return tuned


def loss_of(save: Save) -> float:
    return float("nan") if save.held_out is None else save.held_out


def title_of(save: Save) -> Message:
    if save.held_out is None:
        return save.title
    return Message.of("save.with_loss", save=save.title, loss=figure(save.held_out))


class SaveSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomSaveSettings", "Save Settings"
    DESCRIPTION = "How often a run saves, and how many saves it keeps. Keep more to compare them with Run Checkpoints."
    ALIASES = ("checkpoints", "save every", "keep epochs")
    ROWS = (row("save.every"), row("save.keep", default=10))
