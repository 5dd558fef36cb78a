"""Run Checkpoints, Compare Checkpoints and Save Settings: the saves of a run in one queue, on one sheet, and how many are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..convert import is_lora, products
from ..convert.embedding import is_embedding, read_embedding
from ..convert.files.disk import load
from ..lora_core.backends.base import SampleJob
from ..lora_core.config import TrainConfig, as_dict
from ..lora_core.data.captions import named
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Message
from ..lora_core.pictures.reading import PictureError, open_rgb
from ..lora_core.runs import listing
from ..lora_core.runs.folders import config_of
from ..lora_core.runs.owner import exporting
from ..lora_core.runs.saves import WHICH, Save, all_saves, chosen, loss_without, weights
from ..lora_core.training.prompts import prompts_in
from ..lora_core.training.sampling import drawn, of_saves, sheet
from .host.access.api import host_version, io, make_input, make_output, schema, ui
from .host.access.check import require_matched
from .host.access.loras import with_lora
from .host.access.paths import embedding_folders, lora_folders, runs_root
from .host.engine.backend import HostBackend
from .host.engine.naming import base_family
from .host.engine.tokens import with_embeddings
from .host.web.live import layer_progress
from .jobs.exports import base_of, saved
from .save import SaveEmbedding, SaveLora
from .settings import SettingsNode
from .sockets import CATEGORY, Embedding, EmbeddingSocket, LoraWeights, in_english, in_words, plain_errors
from .widgets import row

LATEST = "latest run"
OWN_FOLDER = "output/loras"
MAX_PICTURES = 400


def run_input() -> Any:
    return make_input(
        io.Combo,
        "run",
        options=[LATEST, *(run.id for run in listing.listing(runs_root()) if run.saves or run.best_save is not None)],
        default=LATEST,
        tooltip="A run below output/lora_loom that has saves; press R for those that are new.",
    )


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
                    tooltip="Loss on held-out pictures; nan where it was not measured.",
                ),
                make_output(io.String, "label", is_output_list=True, tooltip="Such as: step 500, held-out 0.0421."),
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
        wanted = chosen(all_saves(folder), saves, nth)
        progress, loaded = layer_progress(cls.hidden.unique_id), []
        for n, save in enumerate(wanted):
            lora, embeddings = contents(folder, save, base_family(model.model) if model is not None else "")
            tuned_model, tuned_clip = applied(model, clip, lora, embeddings, strength)
            first = next(iter(embeddings.values()), None)
            loaded.append(Loaded(tuned_model, tuned_clip, lora, save.step, loss_of(save), label_of(save), first))
            progress(n + 1, len(wanted), save.label)
        lines = [folder.name, *(save.label for save in loaded)]
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


def label_of(save: Save) -> str:
    return save.label if save.held_out is None else f"{save.label}, held-out {save.held_out:.4f}"


class CompareCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomCompareCheckpoints",
            display_name="Compare Checkpoints",
            category=CATEGORY,
            description="One sheet: prompts as rows, saves x strengths of a run as columns, the base model first, the loss on held-out pictures under each.",
            search_aliases=["xy plot", "compare epochs", "grid", "lora strength", "comparison"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                make_input(io.Model, "model", tooltip="The base model of the run."),
                make_input(io.Clip, "clip", tooltip="Its text encoder."),
                make_input(io.Vae, "vae", tooltip="Its VAE."),
                run_input(),
                *saves_inputs(),
                make_input(
                    io.String,
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One a line, each a row. Empty: the sample prompts of the run.",
                ),
                make_input(
                    io.String,
                    "strengths",
                    default="1",
                    tooltip="Strengths of the LoRA, separated by commas, such as 0.6, 0.8, 1.",
                ),
                make_input(
                    io.String,
                    "negative",
                    default="",
                    advanced=True,
                    tooltip="Negative prompt; empty: that of the run's samples.",
                ),
                make_input(
                    io.Int,
                    "width",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Of a picture, in px; 0: as the run's samples.",
                ),
                make_input(
                    io.Int,
                    "height",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Of a picture, in px; 0: as the run's samples.",
                ),
                make_input(
                    io.Int,
                    "steps",
                    default=0,
                    min=0,
                    max=200,
                    advanced=True,
                    tooltip="Sampler steps; 0: as the run's samples.",
                ),
                make_input(
                    io.Float,
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance; 0: as the run's samples.",
                ),
                make_input(
                    io.Int,
                    "seed",
                    default=1,
                    min=0,
                    max=2**53 - 1,
                    tooltip="The same noise for every picture of a row and every row.",
                ),
                make_input(
                    io.Int,
                    "cell_px",
                    default=384,
                    min=192,
                    max=2048,
                    step=8,
                    advanced=True,
                    tooltip="Largest width of a picture on the sheet.",
                ),
                after_input(),
            ],
            outputs=[
                make_output(io.Image, "sheet", tooltip="All pictures with their prompts and losses, as one image."),
                make_output(io.String, "report", tooltip="The columns with their losses."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str = LATEST, **_: Any) -> str:
        return state_of(run)

    @classmethod
    @plain_errors("run")
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        run: str,
        saves: str,
        nth: int,
        prompts: str,
        strengths: str,
        negative: str,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        seed: int,
        cell_px: int,
        after: Any = None,
    ) -> io.NodeOutput:
        folder, factors = folder_of(run), strengths_in(strengths)
        wanted, config = chosen(all_saves(folder), saves, nth), config_of(folder)
        given = prompts_in(prompts or config.samples.prompt or config.data.trigger)
        lines = [named(prompt.text, config.data.trigger) for prompt in given]
        if not lines:
            raise LoomError("prompts.missing", field="prompts")
        total = (1 + len(wanted) * len(factors)) * len(lines)
        if total > MAX_PICTURES:
            raise LoomError("saves.many_pictures", field="saves", count=total, limit=MAX_PICTURES)
        jobs = jobs_for(config, lines, negative, width, height, steps, cfg, seed)
        show, done = layer_progress(cls.hidden.unique_id), []

        def drew(image: Image.Image) -> None:
            done.append(image)
            show(len(done), total, "")

        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            columns = drawn(of_saves(folder, wanted, backend), factors, jobs, backend, drew)
        losses = [
            loss_without(folder),
            *(save.held_out if factor == 1 else None for save in wanted for factor in factors),
        ]
        image = sheet(columns, lines, [f"held-out {loss:.4f}" if loss is not None else "" for loss in losses], cell_px)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255.0)[None]
        titles = [folder.name, *(_column(label, loss) for (label, _), loss in zip(columns, losses))]
        return io.NodeOutput(
            pixels, in_english(titles), ui=in_words(titles, **ui.PreviewImage(pixels, cls=cls).as_dict())
        )


def _column(label: str, loss: float | None) -> Message | str:
    return label if loss is None else Message.of("save.held_out", save=label, loss=f"{loss:.4f}")


def strengths_in(text: str) -> list[float]:
    """The strengths above or below 0 in a list such as 0.6, 0.8, 1. Raises LoomError."""
    try:
        strengths = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        strengths = []
    if not strengths or not all(-10 <= value <= 10 for value in strengths):
        raise LoomError("strengths.unreadable", field="strengths", text=repr(text[:80]))
    return [value for value in dict.fromkeys(strengths) if value != 0]


def jobs_for(
    config: TrainConfig, prompts: list[str], negative: str, width: int, height: int, steps: int, cfg: float, seed: int
) -> list[SampleJob]:
    """One picture a prompt; what is empty or 0 is as in the samples of the run."""
    samples = config.samples
    wide, high = (
        width or samples.width_px or config.data.resolution,
        height or samples.height_px or config.data.resolution,
    )
    settings = dataclasses.replace(
        samples, negative=negative or samples.negative, steps=steps or samples.steps, cfg=cfg or samples.cfg, seed=seed
    )
    return [SampleJob(prompt, wide, high, settings) for prompt in prompts]


def export_run(folder: Path, save: str | int) -> list[str]:
    """Writes a run's result or one of its saves where ComfyUI lists LoRAs and embeddings, by the Save nodes, never over a file. Returns their labels.

    A run that is being trained is read beside its training, which changes no save; for all others the export owns the folder.
    """
    with exporting(folder, host_version()):
        return _exported(folder, save)


def _exported(folder: Path, save: str | int) -> list[str]:
    name = folder.name
    if save == "result":
        lora, embeddings, step = result_of(folder)
    else:
        saves = saved(folder, save)
        name, step = f"{folder.name}_{'best' if saves.best else f'step{saves.step}'}", saves.step
        lora, named = contents(folder, saves)
        embeddings = {name + stem.removeprefix(folder.name): embedding for stem, embedding in named.items()}
    written = []
    if lora:
        place = next((label for label in lora_folders() if label != OWN_FOLDER), OWN_FOLDER)
        written.append((place, SaveLora.execute(lora, name, place, "fp16", preview=picture_of(folder, step)).args[0]))
    for stem, embedding in embeddings.items():
        place = next(iter(embedding_folders()))
        written.append((place, SaveEmbedding.execute(embedding, stem, place, "webui", "new number").args[0]))
    return [f"{place}/{Path(path).name}" for place, path in written]


def result_of(folder: Path) -> tuple[LoraWeights, dict[str, EmbeddingSocket], int]:
    """The result files of a run: its LoRA, its embeddings, the steps it was trained."""
    results = listing.read_run(folder).results
    if not results:
        raise LoomError("save.no_result", field="save", run=folder.name)
    config, lora, embeddings, step = config_of(folder), LoraWeights({}, "", {}), {}, 0
    for file in results:
        tensors, metadata = load(folder / file)
        if is_embedding(tensors):
            embeddings[Path(file).stem] = EmbeddingSocket(read_embedding(tensors))
        elif is_lora(tensors) or not lora:
            number = metadata.get("ss_steps", "")
            step = int(number) if number.isdigit() and len(number) < 13 else 0
            facts = {"config": as_dict(config), "step": step} if step else {}
            pictures = metadata.get("ss_num_train_images", "")
            facts |= {"repeats": [int(pictures)]} if pictures.isdigit() and len(pictures) < 13 else {}
            lora = LoraWeights(tensors, base_of(folder, {}), facts)
    if lora and embeddings:
        lora.facts["triggers"] = list(embeddings)
    return lora, embeddings, step


def picture_of(folder: Path, step: int) -> torch.Tensor | None:
    """The sample picture drawn last up to this step, as an IMAGE; None where there is none that can be read."""
    drawn_until = {at: path for at, path in listing.pictures(folder).items() if 0 < at <= step}
    if not drawn_until:
        return None
    try:
        return torch.from_numpy(np.asarray(open_rgb(drawn_until[max(drawn_until)]), np.float32) / 255.0)[None]
    except PictureError:
        return None


class SaveSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomSaveSettings", "Save Settings"
    DESCRIPTION = "How often a run saves, and how many saves it keeps. Keep more to compare them with Run Checkpoints."
    ALIASES = ("checkpoints", "save every", "keep epochs")
    ROWS = (row("save.every"), row("save.keep", default=10))


RUN_NODES = [RunCheckpoints, CompareCheckpoints, SaveSettings]
