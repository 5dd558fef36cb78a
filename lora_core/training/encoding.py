"""Pictures and captions of a run on their way through the model's encoders, and which texts are worth encoding before the first step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from ..backends.base import Backend, EncodesShownTexts, showing_of
from ..backends.encoder import encoder_of
from ..config import TrainConfig
from ..data.batches import Batches, Feed
from ..data.dataset import Dataset
from ..data.encoder import Encoder
from ..data.latents import LatentCache
from ..data.lengths import WINDOW
from ..data.shown import Shown
from ..data.store import Disk, Memory, open_store
from ..messages.errors import LoomError
from ..messages.message import Message
from .job import Job
from .pairs import in_pairs
from .run import Source
from .validation import Asked

MAX_TEXTS_AHEAD = 2000


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
        encoder = self.encoder
        cache = LatentCache(dataset, encoder, lambda n, of: listener.on_progress(what, n, of), self.store)
        for name, reason in cache.skipped:
            listener.on_warning(Message.of("data.skipped", name=name, reason=reason))
        if cache.crowded and encoder.showing is not None:
            some, limit = cache.crowded[:3], encoder.showing.limit
            listener.on_warning(Message.of("data.controls.too_many", count=len(cache.crowded), names=some, limit=limit))
        return cache

    @property
    def encoder(self) -> Encoder:
        """What makes latents of pictures; of a slider from pairs also of the first ones."""
        encoder, config = encoder_of(self.job.backend), self.job.config
        return in_pairs(encoder) if config.trains_slider and config.slider.of_pairs else encoder

    def _share(self, dataset: Dataset) -> None:
        processes = self.job.processes
        if processes.size == 1 or not isinstance(self.store, Disk):
            return
        mine = dataset.pictures[processes.rank :: processes.size]
        if mine:
            with contextlib.suppress(LoomError):  # what is wrong with a picture is said when all are encoded
                LatentCache(
                    dataclasses.replace(dataset, pictures=mine),
                    self.encoder,
                    lambda n, of: None,
                    self.store,
                )
        processes.barrier()

    def batches(self, cache: LatentCache, config: TrainConfig) -> Batches:
        return Batches(cache, config, self.job.backend.device, self.job.processes)

    def texts_ahead(self, sources: Sequence[Source], asked: Sequence[Asked], first_step: int) -> None:
        """Encodes the texts that the steps from `first_step` on and validation (`asked`) ask for, with the control pictures that a text encoder sees."""
        config = self.job.config
        seen = shown_texts(sources, asked, config, first_step) if self.shows_texts else []
        self.captions(captions_of(sources, asked, config, first_step) if not seen else unseen(seen))
        self.shown_captions([(caption, shown) for caption, shown in seen if shown.identity])

    def captions(self, captions: Sequence[str]) -> None:
        """Encodes captions ahead of the first step, and says which are long."""
        backend, listener = self.job.backend, self.job.listener
        with self.job.processes.main_first():
            backend.encode_texts(captions, lambda n, of: listener.on_progress("progress.captions", n, of))
        for message in long_captions(captions, backend):
            listener.on_warning(message)

    @property
    def shows_texts(self) -> bool:
        """Whether the text encoder sees the control pictures of a caption."""
        showing = showing_of(self.job.backend)
        return showing is not None and showing.to_text

    def shown_captions(self, texts: Sequence[tuple[str, Shown]]) -> None:
        """Encodes captions with the control pictures beside them ahead of the first step."""
        backend, listener = self.job.backend, self.job.listener
        if texts and isinstance(backend, EncodesShownTexts):
            with self.job.processes.main_first():
                backend.encode_shown_texts(texts, lambda n, of: listener.on_progress("progress.captions", n, of))

    def close(self) -> None:
        """Brings the store below its limit, and says what was wrong with it."""
        if isinstance(self.store, Disk) and self.job.processes.main:
            self.store.tidy()
        if self.store.problem:
            self.job.listener.on_warning(self.store.problem)


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


def captions_of(sources: Sequence[Source], asked: Sequence[Asked], config: TrainConfig, first_step: int) -> list[str]:
    """Every caption worth encoding before the first step, once."""
    captions: list[str] = []
    for source in sources:
        drawn = captions_ahead(source.batches, config, first_step)
        captions += drawn if source.lesson is None else source.lesson.captions(drawn)
    return list(dict.fromkeys([*captions, *(one.caption for one in asked)]))


def captions_ahead(batches: Feed, config: TrainConfig, first_step: int = 0) -> list[str]:
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


def shown_texts(
    sources: Sequence[Source], asked: Sequence[Asked], config: TrainConfig, first_step: int
) -> list[tuple[str, Shown]]:
    """Every caption with what is shown beside it that is worth encoding before the first step, once."""
    fed = [source.batches for source in sources if isinstance(source.batches, Batches)]
    texts = [text for batches in fed for text in shown_ahead(batches, config, first_step)]
    return _each_once([*texts, *((one.caption, one.shown) for one in asked)])


def shown_ahead(batches: Batches, config: TrainConfig, first_step: int = 0) -> list[tuple[str, Shown]]:
    """As `captions_ahead`, with the control pictures of each crop, mirrored or not."""
    if batches.vary():
        passes = ((step, micro) for step in range(first_step, config.steps) for micro in range(config.grad_accum))
        texts: dict[tuple[str, str], tuple[str, Shown]] = {}
        for step, micro in passes:
            texts |= {
                (caption, shown.identity): (caption, shown) for caption, shown in batches.shown_texts(step, micro)
            }
            if len(texts) >= MAX_TEXTS_AHEAD:
                break
        return [*texts.values()][:MAX_TEXTS_AHEAD]
    out = []
    for entry, shown in batches.all_shown():
        dropped = [""] if entry.picture.data.caption_dropout else []
        out += [(caption, shown) for caption in (entry.picture.caption, *dropped)]
    return _each_once(out)[:MAX_TEXTS_AHEAD]


def unseen(texts: Sequence[tuple[str, Shown]]) -> list[str]:
    """The captions of those beside which nothing is shown."""
    return [caption for caption, shown in texts if not shown.identity]


def _each_once(texts: Sequence[tuple[str, Shown]]) -> list[tuple[str, Shown]]:
    return [*{(caption, shown.identity): (caption, shown) for caption, shown in texts}.values()]
