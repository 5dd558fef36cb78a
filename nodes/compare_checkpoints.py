"""Compare Checkpoints: prompts, saves and strengths of a run on one sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..lora_core.backends.base import SampleJob
from ..lora_core.config import TrainConfig
from ..lora_core.data.captions import named
from ..lora_core.data.shown import shown_picture
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.figures import figure
from ..lora_core.messages.message import Message
from ..lora_core.pictures.previews import as_picture
from ..lora_core.runs.folders import config_of
from ..lora_core.runs.saves import Save, all_saves, chosen, loss_without
from ..lora_core.training.prompts import prompts_in
from ..lora_core.training.sampling import drawn, of_saves, sheet
from .host.access.api import io, make_input, make_output, schema, ui
from .host.engine.backend import HostBackend
from .host.web.live import layer_progress
from .run_checkpoints import LATEST, after_input, base_of_run, folder_of, run_input, saves_inputs, state_of
from .sockets import CATEGORY, in_english, in_words, plain_errors

MAX_PICTURES = 400


class CompareCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomCompareCheckpoints",
            display_name="Compare Checkpoints",
            category=CATEGORY,
            description="One sheet: prompts as rows, saves x strengths of a run as columns, the base model first, the loss on validation pictures under each.",
            search_aliases=["xy plot", "compare epochs", "grid", "lora strength", "comparison"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                *base_of_run(),
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
                    zero="samples",
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
                    zero="samples",
                    tooltip="Of a picture, in px; 0: as the run's samples.",
                ),
                make_input(
                    io.Int,
                    "steps",
                    default=0,
                    min=0,
                    max=200,
                    advanced=True,
                    zero="samples",
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
                    zero="samples",
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
                make_input(
                    io.Image,
                    "control",
                    optional=True,
                    tooltip="Pictures to edit, for a run of an edit model: a row for each, under the prompts in turn.",
                ),
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
        control: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        folder, factors = folder_of(run), strengths_in(strengths)
        compared, config = chosen(all_saves(folder), saves, nth), config_of(folder)
        parsed = prompts_in(prompts or config.samples.prompt or config.data.trigger)
        lines = [named(prompt.text, config.data.trigger) for prompt in parsed]
        if not lines:
            raise LoomError("prompts.missing", field="prompts")
        edited = [] if control is None else [as_picture(pixels[..., :3]) for pixels in control]
        lines = [lines[n % len(lines)] for n in range(max(len(lines), len(edited)))]
        total = (1 + len(compared) * len(factors)) * len(lines)
        if total > MAX_PICTURES:
            raise LoomError("saves.many_pictures", field="saves", count=total, limit=MAX_PICTURES)
        jobs = jobs_for(config, lines, negative, width, height, steps, cfg, seed)
        show, done = layer_progress(cls.hidden.unique_id), []

        def drew(image: Image.Image) -> None:
            done.append(image)
            show(len(done), total, "")

        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            jobs = shown_in_turn(jobs, edited, backend)
            columns = [("control", beside(jobs, edited))] if edited else []
            columns += drawn(of_saves(folder, compared, backend), factors, jobs, backend, drew)
        losses = [
            *([None] if edited else []),
            loss_without(folder),
            *(save.held_out if factor == 1 else None for save in compared for factor in factors),
        ]
        image = sheet(
            columns, lines, [f"validation {figure(loss)}" if loss is not None else "" for loss in losses], cell_px
        )
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255.0)[None]
        named_columns = [*([Message.of("compare.control")] if edited else []), *titles_of(compared, factors)]
        titles = [folder.name, *(_column(title, loss) for title, loss in zip(named_columns, losses))]
        return io.NodeOutput(
            pixels, in_english(titles), ui=in_words(titles, **ui.PreviewImage(pixels, cls=cls).as_dict())
        )


def titles_of(saves: Sequence[Save], strengths: Sequence[float]) -> Iterator[Message]:
    """What each column shows: the model without a LoRA, then each save at each strength."""
    yield Message.of("compare.without")
    for save in saves:
        for strength in strengths:
            plain = len(strengths) == 1 and strength == 1
            yield save.title if plain else Message.of("save.at_strength", save=save.title, strength=f"{strength:g}")


def _column(title: Message, loss: float | None) -> Message:
    return title if loss is None else Message.of("save.held_out", save=title, loss=figure(loss))


def strengths_in(text: str) -> list[float]:
    """The strengths above or below 0 in a list such as 0.6, 0.8, 1. Raises LoomError."""
    try:
        strengths = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        strengths = []
    if not strengths or not all(-10 <= value <= 10 for value in strengths):
        raise LoomError("strengths.unreadable", field="strengths", text=repr(text[:80]))
    return [value for value in dict.fromkeys(strengths) if value != 0]


def beside(jobs: list[SampleJob], pictures: list[Image.Image]) -> list[Image.Image]:
    """The pictures in turn, as large as what is made of them."""
    return [ImageOps.pad(pictures[n % len(pictures)], (job.width_px, job.height_px)) for n, job in enumerate(jobs)]


def shown_in_turn(jobs: list[SampleJob], pictures: list[Image.Image], backend: HostBackend) -> list[SampleJob]:
    """The jobs as edits of the pictures in turn. Raises LoomError for a model that takes none, and for one that needs what is not given."""
    showing = backend.showing()
    takes = showing is not None and not showing.filled and not showing.of_film
    if pictures and not takes:
        raise LoomError("compare.no_edit_model", field="control")
    if not pictures:
        if showing is not None and showing.needed:
            raise LoomError("compare.control_missing" if takes else "compare.cannot_show", field="control")
        return jobs
    step = backend.latent_step_px
    controls = [
        shown_picture(picture, (jobs[0].width_px, jobs[0].height_px), step, showing, backend.encode_shown)
        for picture in pictures
    ]
    return [dataclasses.replace(job, shown=controls[n % len(controls)]) for n, job in enumerate(jobs)]


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
