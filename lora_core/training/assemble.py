"""How a run comes together: layers, adapters, pictures and captions encoded, for training, for finding a learning rate, for a dry run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..adapters import AdapterSet
from ..adapters.tokens import TokenSet
from ..backends.base import Backend
from ..backends.encoder import encoder_of
from ..config import TrainConfig
from ..data.batches import Batches
from ..data.captions import with_trigger
from ..data.folder import Dataset, Picture
from ..data.latents import LatentCache
from ..data.lengths import WINDOW
from ..data.store import Disk, Memory, open_store
from ..events import Listener
from ..messages.errors import LoomError
from ..messages.message import Message
from ..objectives import check_prediction
from ..optim.ema import Ema
from ..optim.groups import make_groups
from ..optim.optimizers import check_installed, filled, make_optimizer
from ..processes import ALONE, World
from ..rng import derive, preserved_rng
from .build import make_adapters
from .fitting import Measured, as_chosen, fit
from .prior import CLASS_PICTURES, class_dataset
from .run import Material, Run, Start
from .validation import Probes, split

MAX_TEXTS_AHEAD = 2000


@contextlib.contextmanager
def assembled(
    config: TrainConfig, backend: Backend, dataset: Dataset, cache: Path, listener: Listener, start: Start | None = None,
    check: Callable[[AdapterSet], None] = lambda adapters: None, first_step: int = 0, world: World = ALONE,
) -> Iterator[Run]:  # fmt: skip
    """A run ready for step `first_step`, on the lent model, which gets everything back when the block ends.

    `cache`: below it class pictures and what was encoded are kept. `check`: a last look at what will be trained, before anything is encoded.
    """
    with preserved_rng(config.seed):
        m = _gathered(config, backend, dataset, cache, listener, start, check, first_step, world)
        if m.config.auto_fit and world.size > 1:
            raise LoomError("auto_fit.several_processes", field="auto_fit")
        if m.config.auto_fit:
            config, measured = fit(m.config, backend, m.layers, m.adapters, m.all_batches(), m.objective)
            listener.on_note(Message.of("fit.dry_run", measured=measured.message(config.steps)))
            m = dataclasses.replace(
                m, config=config, batches=m.batches.with_config(config), prior=m.prior.with_config(_of_class(config)) if m.prior else None
            )
        config = m.config
        with backend.training(m.layers, m.adapters, config.recomputed, (config.batch_size, *m.largest())):
            m.adapters.prepare()
            optimizer = make_optimizer(make_groups(config, m.adapters), config.optimizer)
            scaler = torch.amp.GradScaler(backend.device.type, init_scale=2.0**12, enabled=backend.dtype == torch.float16)
            ema = Ema(m.adapters, config.ema_decay) if config.ema_decay else None
            yield Run(config, backend, m.adapters, m.batches, m.objective, optimizer, scaler, ema, m.prior, m.probes, world=world)


def dry_run(config: TrainConfig, backend: Backend, dataset: Dataset, cache: Path, listener: Listener) -> tuple[TrainConfig, Measured]:
    """(the job with what fits into memory, what one pass takes). Nothing is trained; class pictures are left out; only what was encoded is kept."""
    bare = dataclasses.replace(config, prior=dataclasses.replace(config.prior, weight=0.0))
    with preserved_rng(config.seed):
        m = _gathered(bare, backend, dataset, cache, listener, None, lambda adapters: None)
        chosen, measured = fit(m.config, backend, m.layers, m.adapters, m.all_batches(), m.objective)
    return as_chosen(config, chosen), measured


def _gathered(
    config: TrainConfig, backend: Backend, dataset: Dataset, cache: Path, listener: Listener, start: Start | None, check: Callable[[AdapterSet], None],
    first_step: int = 0, world: World = ALONE,
) -> Material:  # fmt: skip
    config = filled(config.for_pictures(len(dataset.pictures)))
    check_installed(config.optimizer.name)
    if config.recomputed and config.recomputed not in backend.recomputes:
        if not backend.recomputes:
            raise LoomError("checkpointing.impossible", field="checkpointing")
        raise LoomError("recompute.impossible", field="recompute", asked=config.recompute, allowed=backend.recomputes)
    layers, adapters = make_adapters(config, backend, dataset.trigger, start or {})
    check(adapters)
    named = with_tokens(dataset, adapters.tokens)
    held_in = (lambda found: with_tokens(found, adapters.tokens)) if named is not dataset else (lambda found: found)
    dataset, held_out = split(named, config, held_in)
    objective = backend.objective(config.objective)
    check_prediction(config.objective, objective.kind)
    if config.objective.weighting != "none" and objective.kind not in ("epsilon", "v"):
        weighting = config.objective.weighting
        listener.on_warning(Message.of("weighting.idle", field="objective.weighting", weighting=weighting, kind=objective.kind))
    if dataset.trigger and not len(adapters.tokens) and any(len(t.rows(dataset.trigger)) == 1 for t in backend.token_tables().values()):
        listener.on_warning(Message.of("trigger.known_word", field="data.trigger", trigger=repr(dataset.trigger)))
    store = open_store(cache, config.cache.disk, config.cache.limit_gb)
    backend.keep_texts(store)
    latents = _encoded(dataset, backend, store, listener, "progress.pictures", world)
    _check_masks(dataset, latents, listener)
    batches = Batches(latents, config, backend.device, world)
    prior = _class_batches(config, backend, dataset, adapters.tokens, cache / CLASS_PICTURES, store, listener, world)
    probes = None
    if held_out is not None:
        probes = Probes(config, latents, _encoded(held_out, backend, store, listener, "progress.held_out_pictures", world), backend.device)
    if not adapters.changes_text:
        ahead = captions_ahead(batches, config, first_step) + (captions_ahead(prior, config, first_step) if prior else [])
        ahead = list(dict.fromkeys(ahead + (probes.captions() if probes else [])))
        with world.main_first():
            backend.encode_texts(ahead, lambda n, of: listener.on_progress("progress.captions", n, of))
        for message in long_captions(ahead, backend):
            listener.on_warning(message)
    if isinstance(store, Disk) and world.main:
        store.tidy()
    if store.problem:
        listener.on_warning(store.problem)
    return Material(config, layers, adapters, objective, batches, prior, probes)


def _of_class(config: TrainConfig) -> TrainConfig:
    """The config of the class pictures: an order of their own."""
    return dataclasses.replace(config, seed=derive(config.seed, "class"))


def _encoded(dataset: Dataset, backend: Backend, store: Disk | Memory, listener: Listener, what: str, world: World = ALONE) -> LatentCache:
    """Each of several processes first encodes its share into the common store, then finds the rest there."""
    mine = dataset.pictures[world.rank :: world.size]
    if world.size > 1 and isinstance(store, Disk):
        if mine:
            with contextlib.suppress(LoomError):  # what is wrong with a picture is said below
                LatentCache(dataclasses.replace(dataset, pictures=mine), encoder_of(backend), lambda n, of: None, store)
        world.barrier()
    for picture in (p for p in dataset.pictures if p.is_latent):
        backend.know_text(picture.caption, picture.path)
    cache = LatentCache(dataset, encoder_of(backend), lambda n, of: listener.on_progress(what, n, of), store)
    for name, reason in cache.skipped:
        listener.on_warning(Message.of("data.skipped", name=name, reason=reason))
    return cache


def _check_masks(dataset: Dataset, cache: LatentCache, listener: Listener) -> None:
    asked = next((p.data.masks for p in dataset.pictures if p.data.masks != "none"), None)
    if asked and not cache.masked:
        raise LoomError("data.masks.none_found", field="data.masks", masks=asked, count=cache.unmasked)
    if cache.unmasked:
        listener.on_warning(Message.of("data.masks.white", count=cache.unmasked))


def with_tokens(dataset: Dataset, tokens: TokenSet) -> Dataset:
    """The dataset with the first token in front of every caption, when no caption has any; pictures without it are meant to be when some do."""
    if not len(tokens) or any(tokens.names_in(c.text) for p in dataset.pictures for c in p.captions):
        return dataset
    first = next(iter(tokens)).token.placeholder

    def named(picture: Picture) -> Picture:
        return dataclasses.replace(picture, captions=tuple(dataclasses.replace(c, text=with_trigger(c.text, first)) for c in picture.captions))

    return dataclasses.replace(dataset, pictures=tuple(map(named, dataset.pictures)))


def _class_batches(
    config: TrainConfig, backend: Backend, dataset: Dataset, tokens: TokenSet, place: Path, store: Disk | Memory, listener: Listener, world: World
) -> Batches | None:
    """The class pictures as batches with an order of their own; None without prior preservation."""
    with world.main_first():
        found = class_dataset(config, backend, dataset, tokens, place, lambda n, of: listener.on_progress("progress.drawing_class_pictures", n, of))
    if found is None:
        return None
    own = _of_class(config)
    return Batches(_encoded(found, backend, store, listener, "progress.class_pictures", world), own, backend.device, world)


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
    lengths = {caption: backend.text_length(caption) for caption in captions if len(caption.encode()) > WINDOW}  # a token has at least one byte
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
