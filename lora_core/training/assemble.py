"""How a run comes together: layers, adapters, pictures and captions encoded, for training, for finding a learning rate, for a dry run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from .. import compat
from ..adapters import AdapterSet
from ..adapters.tokens import TokenSet
from ..backends.base import Backend, Remarks, SkipsLayers
from ..backends.base_model import BaseModel
from ..backends.encoder import encoder_of
from ..config import ObjectiveConfig, TrainConfig
from ..data.batches import Batches
from ..data.captions import PLACEHOLDER, named, with_trigger
from ..data.folder import Dataset, Picture, require_captions
from ..data.latents import LatentCache
from ..data.lengths import WINDOW
from ..data.store import Disk, Memory, open_store
from ..disk import files
from ..events import Listener
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..messages.message import Message, Setting
from ..objectives import Objective, SharedObjective
from ..optim.ema import Ema
from ..optim.groups import make_groups
from ..optim.optimizers import check_installed, filled, make_optimizer
from ..rng import derive, preserved_rng
from .build import make_adapters
from .fitting import Measured, as_chosen, fit
from .job import Job
from .length import planned, told
from .prior import class_dataset, require_class_pictures
from .prompts import require_drawable, unknown_options
from .run import Material, Run, Source
from .validation import Probes, split

MAX_TEXTS_AHEAD = 2000


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


def dry_run(job: Job) -> tuple[TrainConfig, Measured]:
    """(the job with what fits into memory, what one pass takes). Nothing is trained; class pictures are left out; only what was encoded is kept."""
    config = job.config
    bare = dataclasses.replace(config, prior=dataclasses.replace(config.prior, weight=0.0))
    with preserved_rng(config.seed):
        chosen, measured = fit(gathered(dataclasses.replace(job, config=bare, start=None)))
    return as_chosen(config, chosen), measured


def gathered(job: Job, first_step: int = 0, folder: Path | None = None) -> Material:
    """Everything a run needs before the model is lent to it, step by step. Raises LoomError for what cannot be trained."""
    job = job.with_config(settled(job))
    base = base_of(job)
    layers, adapters = make_adapters(job.config, job.backend, job.dataset.trigger, job.start)
    if folder is not None:
        require_room(job.config, adapters, folder)
    training, held_out = held_apart(job, adapters.tokens)
    objective = objective_of(job)
    warn_of_trigger(job, adapters.tokens)
    encoding = Encoding.of(job)
    sources = [training_pictures(encoding, training)]
    sources += class_pictures(encoding, training, adapters.tokens)
    probes = None if held_out is None else probes_of(encoding, sources[0], held_out)
    if not adapters.changes_text:
        encoding.captions(captions_of(sources, probes, job.config, first_step))
    encoding.close()
    return Material(job.config, job.backend, base, layers, adapters, objective, sources, probes, job.processes)


def base_of(job: Job) -> BaseModel:
    """What the base model is, told before anything is done with it. Raises LoomError for what has to be said of it and is not."""
    asked = job.config.objective
    base = job.backend.base_model(asked)
    job.listener.on_note(base.told())
    for warning in base.warnings(asked):
        job.listener.on_warning(warning)
    return base


def settled(job: Job) -> TrainConfig:
    """The settings with what they leave open filled in. Raises LoomError for what this model or these processes cannot do."""
    config, ways = filled(planned(job.config, job.dataset, job.processes.size)), job.backend.recomputes
    if (length := told(config, job.dataset)) is not None:
        job.listener.on_note(length)
    if (options := unknown_options(config)) is not None:
        job.listener.on_warning(options)
    for message in require_drawable(config, job.backend):
        job.listener.on_warning(message)
    skip, followed = (
        config.text_encoder.clip_skip,
        job.backend.clip_skip if isinstance(job.backend, SkipsLayers) else None,
    )
    if skip not in (1, followed):
        job.listener.on_warning(Message.of("text_encoder.clip_skip_idle", field="text_encoder.clip_skip", skip=skip))
    require_class_pictures(config.prior, job.dataset)
    check_installed(config.optimizer.name)
    if config.recomputed and not ways:
        raise LoomError("checkpointing.impossible", field="checkpointing")
    if config.recomputed and config.recomputed not in ways:
        raise LoomError("recompute.impossible", field="recompute", asked=config.recompute, allowed=" or ".join(ways))
    return config


def require_room(config: TrainConfig, adapters: AdapterSet, folder: Path) -> None:
    """Raises LoomError when the disk has no room for the checkpoints of a run: weights and two moments each, fp32."""
    files.require_room(files.existing(folder), adapters.count() * 4 * 3 * (config.save.keep + 2))


def held_apart(job: Job, tokens: TokenSet) -> tuple[Dataset, Dataset | None]:
    """(pictures to train on, pictures to validate on or None), both with the first token where no caption of the former has one."""
    named = with_tokens(job.dataset, tokens)
    require_captions(named)
    training, held_out = split(named, job.config)
    if job.config.validation.folder and held_out is not None and named is not job.dataset:
        held_out = with_tokens(held_out, tokens)
    return training, held_out


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
            timesteps = Setting("objective.timesteps")
            messages.append(Message.of("objective.logit_idle", field=f"objective.{name}", timesteps=timesteps))
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


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Pictures and captions of a job on their way through the model's encoders, by a store of what was encoded earlier."""

    job: Job
    store: Disk | Memory

    @staticmethod
    def of(job: Job) -> Encoding:
        store = open_store(job.root, job.config.cache.disk, job.config.cache.limit_gb)
        job.backend.keep_texts(store)
        return Encoding(job, store)

    def pictures(self, dataset: Dataset, what: str) -> LatentCache:
        """The pictures encoded; `what` is the code of the progress they make. Each of several processes first encodes its share into the common store."""
        backend, listener = self.job.backend, self.job.listener
        self._share(dataset)
        for picture in (p for p in dataset.pictures if p.is_latent):
            backend.know_text(picture.caption, picture.path)
        encoder = encoder_of(backend)
        cache = LatentCache(dataset, encoder, lambda n, of: listener.on_progress(what, n, of), self.store)
        for name, reason in cache.skipped:
            listener.on_warning(Message.of("data.skipped", name=name, reason=reason))
        return cache

    def _share(self, dataset: Dataset) -> None:
        processes = self.job.processes
        if processes.size == 1 or not isinstance(self.store, Disk):
            return
        mine = dataset.pictures[processes.rank :: processes.size]
        if mine:
            with contextlib.suppress(LoomError):  # what is wrong with a picture is said when all are encoded
                LatentCache(
                    dataclasses.replace(dataset, pictures=mine),
                    encoder_of(self.job.backend),
                    lambda n, of: None,
                    self.store,
                )
        processes.barrier()

    def batches(self, cache: LatentCache, config: TrainConfig) -> Batches:
        return Batches(cache, config, self.job.backend.device, self.job.processes)

    def captions(self, captions: Sequence[str]) -> None:
        """Encodes captions ahead of the first step, and says which are long."""
        backend, listener = self.job.backend, self.job.listener
        with self.job.processes.main_first():
            backend.encode_texts(captions, lambda n, of: listener.on_progress("progress.captions", n, of))
        for message in long_captions(captions, backend):
            listener.on_warning(message)

    def close(self) -> None:
        """Brings the store below its limit, and says what was wrong with it."""
        if isinstance(self.store, Disk) and self.job.processes.main:
            self.store.tidy()
        if self.store.problem:
            self.job.listener.on_warning(self.store.problem)


def training_pictures(encoding: Encoding, dataset: Dataset) -> Source:
    """The pictures to learn from, encoded. Raises LoomError when masks are asked for and none leaves anything out."""
    cache = encoding.pictures(dataset, "progress.pictures")
    _check_masks(dataset, cache, encoding.job.listener)
    return Source(encoding.batches(cache, encoding.job.config))


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
    return Probes(
        job.config,
        training.batches.cache,
        encoding.pictures(held_out, "progress.held_out_pictures"),
        job.backend.device,
    )


def captions_of(sources: Sequence[Source], probes: Probes | None, config: TrainConfig, first_step: int) -> list[str]:
    """Every caption worth encoding before the first step, once."""
    captions = [caption for source in sources for caption in captions_ahead(source.batches, config, first_step)]
    return list(dict.fromkeys(captions + (probes.captions() if probes else [])))


def _fitted(material: Material, listener: Listener) -> Material:
    """With a batch size, accumulation and checkpointing that fit into memory."""
    if material.processes.size > 1:
        raise LoomError("auto_fit.several_processes", field="auto_fit")
    config, measured = fit(material)
    listener.on_note(Message.of("fit.dry_run", measured=measured.message(config.steps)))
    return material.with_config(config)


def _check_masks(dataset: Dataset, cache: LatentCache, listener: Listener) -> None:
    asked = next((p.data.masks for p in dataset.pictures if p.data.masks != "none"), None)
    if asked and not cache.masked:
        raise LoomError("data.masks.none_found", field="data.masks", masks=asked, count=cache.unmasked)
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


def captions_ahead(batches: Batches, config: TrainConfig, first_step: int = 0) -> list[str]:
    """Captions worth encoding before the first step: each picture's own and the empty one when captions are dropped; where captions vary,

    those the coming steps will draw, so text encoder and model need not take turns on a small card.
    """
    captions: dict[str, None] = {}
    if not batches.vary():
        captions = dict.fromkeys(p.caption for p in batches.pictures)
        captions |= dict.fromkeys("" for p in batches.pictures if p.data.caption_dropout)
        return list(captions)[:MAX_TEXTS_AHEAD]
    for step in range(first_step, config.steps):
        for micro in range(config.grad_accum):
            captions |= dict.fromkeys(batches.captions(step, micro))
        if len(captions) >= MAX_TEXTS_AHEAD:
            break
    return list(captions)[:MAX_TEXTS_AHEAD]


def long_captions(captions: Sequence[str], backend: Backend) -> Iterator[Message]:
    """A message about captions that do not fit into a text encoder's window, and whether anything of them is lost."""
    lengths = {
        caption: backend.text_length(caption) for caption in captions if len(caption.encode()) > WINDOW
    }  # a token has at least one byte
    longer = [caption for caption, length in lengths.items() if length.pieces > 1]
    cut = [caption for caption, length in lengths.items() if length.cut]
    if longer:
        worst = max(longer, key=lambda caption: lengths[caption].tokens)
        yield Message.of(
            "captions.in_pieces",
            count=len(longer),
            window=lengths[worst].window,
            tokens=lengths[worst].tokens,
            pieces=lengths[worst].pieces,
            caption=repr(worst[:60]),
        )
    if cut:
        worst = max(cut, key=lambda caption: lengths[caption].cut)
        yield Message.of("captions.cut", count=len(cut), tokens=lengths[worst].cut, caption=repr(worst[:60]))
