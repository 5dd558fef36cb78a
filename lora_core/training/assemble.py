"""How a run comes together: layers, adapters, what it learns from and is measured on, for training, for finding a learning rate, for a dry run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from .. import compat
from ..adapters import AdapterSet
from ..adapters.tokens import TokenSet
from ..backends.base import Backend, CompilesBlocks, EncodesBeside, EncodesClips, Remarks, showing_of
from ..backends.base_model import BaseModel
from ..config import ObjectiveConfig, TrainConfig
from ..config.data import ALWAYS, AUTO, HALF, PROMPT_START
from ..config.slider import lines_of
from ..data.batches import Batches, NoPictures
from ..data.captions import PLACEHOLDER, named, with_trigger
from ..data.clips import require_lengths
from ..data.dataset import Dataset, Picture, require_captions
from ..data.latents import LatentCache
from ..data.shown import Showing
from ..disk import files
from ..events import Listener
from ..losses import Distance
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..messages.message import Message
from ..objectives import Objective, SharedObjective
from ..optim.ema import Ema
from ..optim.groups import make_groups
from ..optim.optimizers import make_optimizer
from ..rng import derive, preserved_rng
from .build import make_adapters, with_fixed
from .concepts import ConceptProbes, require_concepts
from .encoding import Encoding
from .fitting import Measured, as_chosen, first_fitting
from .job import Job
from .pairs import Pairs
from .prior import Held, class_dataset
from .run import Material, Run, Source
from .settling import settled
from .slider import Slider
from .validation import Probes, split

SYSTEM_PROMPTED = ("lumina2",)  # families that are usually asked with a system prompt before the caption


@contextlib.contextmanager
def assembled(job: Job, first_step: int = 0, folder: Path | None = None) -> Iterator[Run]:
    """A run ready for step `first_step`, on the lent model, which gets everything back when the block ends.

    `folder`: the run folder, whose disk must have room for the checkpoints; None for a trial of which nothing is kept.
    """
    with preserved_rng(job.config.seed):
        material = gathered(job, first_step, folder)
        if material.config.auto_fit:
            material = _fitted(material, job.listener)
        config = material.config
        with material.lent(material.largest()):
            pass_on_remarks(job)
            material.adapters.prepare()
            with blamed("optimizer.failed", "optimizer.name", name=config.optimizer.name):
                optimizer = make_optimizer(make_groups(config, material.adapters), config.optimizer)
            half = job.backend.dtype == torch.float16
            scaler = compat.GradScaler(job.backend.device.type, init_scale=2.0**12, enabled=half)
            ema = Ema(material.adapters, config.ema_decay) if config.ema_decay else None
            run = Run(material, optimizer, scaler, ema)
            run.untouched -= set(job.start or ())  # these hold more than nothing from the beginning
            yield run


def pass_on_remarks(job: Job) -> None:
    """Tells what the lent model's backend has to say about how it is trained."""
    for message in job.backend.remarks() if isinstance(job.backend, Remarks) else ():
        job.listener.on_warning(message)
    if job.config.compile and not isinstance(job.backend, CompilesBlocks):
        job.listener.on_warning(Message.of("compile.elsewhere", field="compile"))


def dry_run(job: Job) -> tuple[TrainConfig, Measured]:
    """(the job with what fits into memory, what one pass takes). Nothing is trained; class pictures are left out; only what was encoded is kept."""
    config = job.config
    bare = dataclasses.replace(config, prior=dataclasses.replace(config.prior, weight=0.0))
    with preserved_rng(config.seed):
        chosen, measured = first_fitting(gathered(dataclasses.replace(job, config=bare, start=None)))
    return as_chosen(config, chosen), measured


def gathered(job: Job, first_step: int = 0, folder: Path | None = None) -> Material:
    """Everything a run needs before the model is lent to it, step by step. Raises LoomError for what cannot be trained."""
    job = job.with_config(settled(job))
    base = base_of(job)
    layers, adapters = adapters_of(job)
    if folder is not None:
        require_room(job.config, adapters, folder)
    training, held_out = held_apart(job, adapters.tokens)
    require_concepts(job.config, training, adapters.tokens)
    objective = objective_of(job)
    warn_of_trigger(job, adapters.tokens)
    note_of_system_prompt(job)
    encoding = Encoding.of(job)
    sources = [training_source(encoding, training, base, objective)]
    sources += class_pictures(encoding, training, adapters.tokens)
    if job.config.prior.without_pictures:
        held = Held.of(job.config.prior, training, adapters.tokens)
        sources.append(Source(sources[0].batches, job.config.prior.weight, lesson=held))
    probes = None if held_out is None else probes_of(encoding, sources[0], held_out)
    concepts = None if probes is None else concepts_of(job.config, sources[0], probes, adapters.tokens)
    if not adapters.changes_text:
        asked = [*(probes.asked() if probes else []), *(concepts.all_asked() if concepts else [])]
        encoding.texts_ahead(sources, asked, first_step)
    encoding.close()
    material = Material(job.config, job.backend, base, layers, adapters, objective, sources, probes, job.processes)
    return dataclasses.replace(material, concepts=concepts, fixed=None if job.fixed is None else job.fixed.as_json())


def adapters_of(job: Job) -> tuple[dict[str, nn.Module], AdapterSet]:
    """(layers, what is trained on them, with what is fixed below it); says what of the fixed LoRA is left out. Raises LoomError."""
    layers, adapters = make_adapters(job.config, job.backend, job.dataset.trigger, job.start)
    if job.fixed is None:
        return layers, adapters
    layers, adapters, left_out = with_fixed(layers, adapters, job.backend, job.fixed)
    if left_out:
        values = {"file": job.fixed.name, "count": len(left_out), "layer": left_out[0]}
        job.listener.on_warning(Message.of("fixed.text_left_out", field="adapter.fixed", **values))
    return layers, adapters


def base_of(job: Job) -> BaseModel:
    """What the base model is, told before anything is done with it. Raises LoomError for what has to be said of it and is not."""
    objective = job.config.objective
    base = job.backend.base_model(objective)
    job.listener.on_note(base.message())
    for warning in base.warnings(objective, job.fixed is not None):
        job.listener.on_warning(warning)
    return base


def require_room(config: TrainConfig, adapters: AdapterSet, folder: Path) -> None:
    """Raises LoomError when the disk has no room for the checkpoints of a run: weights and two moments each, fp32."""
    files.require_room(files.existing(folder), adapters.count() * 4 * 3 * (config.save.keep + 2))


def held_apart(job: Job, tokens: TokenSet) -> tuple[Dataset, Dataset | None]:
    """(pictures to train on, pictures to validate on or None), both with the first token where no caption of the former has one."""
    named = with_tokens(job.dataset, tokens)
    if not job.config.trains_slider:
        require_captions(named)
    training, held_out = split(named, job.config)
    require_clips([training, *([held_out] if held_out else [])], job.backend)
    if job.config.validation.folder and held_out is not None and named is not job.dataset:
        held_out = with_tokens(held_out, tokens)
    return training, held_out


def require_clips(datasets: Sequence[Dataset], backend: Backend) -> None:
    """Refuses clips that the model cannot take. Raises LoomError."""
    near = backend.clip_lengths_near if isinstance(backend, EncodesClips) else None
    takes_clips = near is not None and near(1) is not None
    require_lengths(datasets, (lambda frames: (near and near(frames)) or (1, 1)) if takes_clips else None)


def objective_of(job: Job) -> Objective:
    """The model's objective, of which each of several processes draws its share; says what of the settings has no effect with it."""
    objective = job.backend.objective(job.config.objective)
    weighting = job.config.objective.weighting
    if weighting != "none" and objective.kind not in ("epsilon", "v"):
        job.listener.on_warning(
            Message.of("weighting.idle", field="objective.weighting", weighting=weighting, kind=objective.kind)
        )
    for message in idle(job.config.objective, objective.kind):
        job.listener.on_warning(message)
    return SharedObjective.of(objective, job.processes)


def idle(config: ObjectiveConfig, kind: str) -> list[Message]:
    """What to say about settings that have no effect on a model of this kind (epsilon, v, x0, flow)."""
    messages = []
    if config.shift and kind != "flow":
        messages.append(Message.of("objective.shift_idle", field="objective.shift", kind=kind))
    uniform = config.timesteps == "uniform" or (config.timesteps == "auto" and kind != "flow")
    for name in ("logit_mean", "logit_std"):
        if uniform and getattr(config, name) != getattr(ObjectiveConfig, name):
            messages.append(Message.of("objective.logit_idle", field=f"objective.{name}"))
    return messages


def warn_of_trigger(job: Job, tokens: TokenSet) -> None:
    """Says so when the trigger is a word that the text encoder has a meaning for."""
    trigger = job.dataset.trigger
    if (
        trigger
        and not len(tokens)
        and any(len(table.rows(trigger)) == 1 for table in job.backend.token_tables().values())
    ):
        job.listener.on_warning(Message.of("trigger.known_word", field="data.trigger", trigger=repr(trigger)))


def note_of_system_prompt(job: Job) -> None:
    """Says so where a model is usually asked with a system prompt, and no caption has one."""
    captions = (caption.text for picture in job.dataset.pictures for caption in picture.captions)
    if job.backend.family in SYSTEM_PROMPTED and not any(PROMPT_START in text for text in captions):
        job.listener.on_note(Message.of("caption.system_prompt", field="data.prefix", mark=PROMPT_START))


def training_source(encoding: Encoding, dataset: Dataset, base: BaseModel, objective: Objective) -> Source:
    """What a run learns from: pictures, or the prompts of a slider on pictures or on none."""
    job = encoding.job
    if not job.config.trains_slider:
        return training_pictures(encoding, dataset)
    drawn = not job.config.needs_pictures
    slider = Slider.of(job.config.slider, base, Distance.of(job.config), drawn)
    if job.config.slider.of_pairs:
        require_pairs(job, dataset)
        return dataclasses.replace(training_pictures(encoding, dataset), lesson=Pairs(slider))
    if not drawn:
        return dataclasses.replace(training_pictures(encoding, dataset), lesson=slider)
    names = ", ".join(lines_of(job.config.slider.target)) or lines_of(job.config.slider.positive)[0]
    return Source(room_for_pictures(job, names), lesson=slider)


def require_pairs(job: Job, dataset: Dataset) -> None:
    """Refuses a slider from pairs where there are none, and for a model that is shown pictures itself. Raises LoomError."""
    if not any(picture.controls for picture in dataset.pictures):
        raise LoomError("slider.pairs.none", field="data.controls", count=len(dataset.pictures))
    showing = showing_of(job.backend)
    if showing is not None and (showing.needed or not showing.of_film):
        raise LoomError("slider.pairs.shown", field="slider.mode", family=job.backend.family)


def room_for_pictures(job: Job, name: str) -> NoPictures:
    """Batches of latents of zeros, of the shape that a picture of the training resolution has. Raises LoomError where the network is told of a picture."""
    backend, step = job.backend, job.backend.latent_step_px
    showing = showing_of(backend)
    if isinstance(backend, EncodesBeside) or (showing is not None and showing.needed):
        raise LoomError("slider.needs_folder", field="data.folder", family=backend.family)
    side = max(step, job.config.data.resolution // step * step)
    with blamed("data.picture_failed", "data.resolution", memory="data.picture_memory", name=f"{side} x {side}"):
        shape = backend.encode_picture(torch.full((1, side, side, 3), 0.5)).shape[1:]
    return NoPictures(tuple(shape), side, name, job.config, backend.device)


def training_pictures(encoding: Encoding, dataset: Dataset) -> Source:
    """The pictures to learn from, encoded. Raises LoomError when masks are asked for and none leaves anything out."""
    cache = encoding.pictures(dataset, "progress.pictures")
    _check_masks(dataset, cache, encoding.job.listener)
    showing, listener = showing_of(encoding.job.backend), encoding.job.listener
    for message in (*of_first_frames(cache.pictures, showing), *of_missing_controls(cache.pictures, showing)):
        listener.on_warning(message)
    for message in of_open_frames(cache.pictures, showing):
        listener.on_note(message)
    return Source(encoding.batches(cache, encoding.job.config))


def of_first_frames(pictures: Sequence[Picture], showing: Showing | None) -> list[Message]:
    """What to say about the first frames that the sets ask for."""
    moving = [picture for picture in pictures if picture.moves]
    films = showing is not None and showing.of_film
    idle = sorted({picture.data.first_frame for picture in (pictures if films else moving)} & {HALF, ALWAYS})
    if idle and not (films and moving):
        code = "data.first_frame.no_clips" if films else "data.first_frame.idle"
        return [Message.of(code, field="data.first_frame", value=idle[0])]
    if showing is None or not films:
        return []
    unseen = showing.unseen and any(showing.share(picture.data) for picture in moving)
    return [Message.of("vision.not_wired", field="clip_vision")] if unseen else []


def of_missing_controls(pictures: Sequence[Picture], showing: Showing | None) -> list[Message]:
    """What to say of sets without control pictures on a model that was made to edit them and draws from text alone too."""
    edits = showing is not None and showing.usual and not showing.of_film and not showing.needed
    if not edits or any(picture.controls or picture.is_latent for picture in pictures):
        return []
    return [Message.of("data.controls.of_edits", field="data.controls")]


def of_open_frames(pictures: Sequence[Picture], showing: Showing | None) -> list[Message]:
    """What becomes of the clips of sets that leave it open, on a model that films from text as well as from a picture."""
    any_open = any(picture.moves and picture.data.first_frame == AUTO for picture in pictures)
    if not any_open or showing is None or not showing.of_film or showing.needed:
        return []
    code = "data.first_frame.by_name" if showing.usual else "data.first_frame.from_text"
    return [Message.of(code, field="data.first_frame")]


def class_pictures(encoding: Encoding, subject: Dataset, tokens: TokenSet) -> list[Source]:
    """The class pictures, made where they are missing, with an order and random streams of their own; none without prior preservation."""
    job = encoding.job
    with job.processes.main_first():
        dataset = class_dataset(job, subject, tokens)
    if dataset is None:
        return []
    class_config = dataclasses.replace(job.config, seed=derive(job.config.seed, "class"))
    return [
        Source(
            encoding.batches(encoding.pictures(dataset, "progress.class_pictures"), class_config),
            job.config.prior.weight,
            "class ",
        )
    ]


def probes_of(encoding: Encoding, training: Source, held_out: Dataset) -> Probes:
    """Fixed measurements on held-out pictures and as many trained ones."""
    job = encoding.job
    assert isinstance(training.batches, Batches)  # a run without pictures validates nothing
    return Probes(
        job.config,
        training.batches.cache,
        encoding.pictures(held_out, "progress.held_out_pictures"),
    )


def concepts_of(config: TrainConfig, training: Source, probes: Probes, tokens: TokenSet) -> ConceptProbes | None:
    """Fixed measurements of each concept under every word; None where they are not wanted."""
    if not config.validation.concepts or probes.held_out is None:
        return None
    assert isinstance(training.batches, Batches)  # a run without pictures validates nothing
    return ConceptProbes.of(config, training.batches.cache, probes.held_out, tokens)


def _fitted(material: Material, listener: Listener) -> Material:
    """With a batch size, accumulation and checkpointing that fit into memory."""
    if material.processes.size > 1:
        raise LoomError("auto_fit.several_processes", field="auto_fit")
    listener.on_progress("progress.fitting", 0, 1)
    config, measured = first_fitting(material)
    listener.on_note(Message.of("fit.dry_run", measured=measured.message(config.steps)))
    return material.with_config(config)


def _check_masks(dataset: Dataset, cache: LatentCache, listener: Listener) -> None:
    masks = next((p.data.masks for p in dataset.pictures if p.data.masks != "none"), None)
    if masks and not cache.masked:
        raise LoomError("data.masks.none_found", field="data.masks", masks=masks, count=cache.unmasked)
    if cache.unmasked:
        listener.on_warning(Message.of("data.masks.white", count=cache.unmasked))


def with_tokens(dataset: Dataset, tokens: TokenSet) -> Dataset:
    """The dataset with the first token in front of every caption, when no caption has any; pictures without it are meant to be when some do.

    It stands for [trigger] too, where the set has no trigger of its own.
    """
    if len(tokens) and any(PLACEHOLDER.search(c.text) for p in dataset.pictures for c in p.captions):
        dataset = _with_captions(dataset, lambda text: named(text, next(iter(tokens)).token.placeholder))
    if not len(tokens) or any(tokens.names_in(c.text) for p in dataset.pictures for c in p.captions):
        return dataset
    first = next(iter(tokens)).token.placeholder
    return _with_captions(dataset, lambda text: with_trigger(text, first))


def _with_captions(dataset: Dataset, change: Callable[[str], str]) -> Dataset:
    """The dataset with each caption changed, with and without its separators."""

    def changed(picture: Picture) -> Picture:
        captions = (
            dataclasses.replace(c, text=change(c.text), marked=change(c.marked) if c.marked else "")
            for c in picture.captions
        )
        return dataclasses.replace(picture, captions=tuple(captions))

    return dataclasses.replace(dataset, pictures=tuple(map(changed, dataset.pictures)))
