"""Pictures and clips encoded once: pictures decoded and cut in threads, clips one at a time, encoded on the caller's thread, kept in a store by content."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from ..config.data import ALWAYS, AUTO
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.reading import PictureError
from . import clip_latents, picture_latents
from .buckets import Fit
from .clips import Clip
from .dataset import Dataset, Picture
from .encoder import Cut, Encoder, Views
from .shown import DIGEST, NOTHING, Showing, Shown, shown_of
from .store import Memory, Store, Tensors

THREADS = min(4, os.cpu_count() or 1)
Item = TypeVar("Item")
Done = TypeVar("Done")


class View(NamedTuple):
    """One way to look at an entry: which of its crops, mirrored or not."""

    entry: int
    crop: int = 0
    flipped: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture, or a clip of a film, in one bucket: one Fit and one pair of store keys (plain, mirrored) for each crop.

    `pixels`: hash of what is trained, and of what is shown beside it. `shape`: of its latents, without the batch.
    """

    picture: Picture
    fits: tuple[Fit, ...]
    keys: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    pixels: bytes

    @property
    def moves(self) -> bool:
        """Whether it is a clip of several latent frames."""
        return len(self.shape) == 4 and self.shape[1] > 1


class LatentCache:
    """The latents of a dataset in a store, whatever was not there encoded now. Pictures that break are left out and named in `skipped`."""

    def __init__(
        self, dataset: Dataset, encoder: Encoder, progress: Callable[[int, int], None], store: Store | None = None
    ):
        self.entries: list[Entry] = []
        self.skipped: list[tuple[str, Message]] = []
        self.crowded = [
            p.name for p in dataset.pictures if encoder.showing is not None and len(p.controls) > encoder.showing.limit
        ]  # with more control pictures than the model takes
        self.masked = self.unmasked = 0  # masks that change something, masks that are white everywhere
        self._store, self._encoder = store if store is not None else Memory(), encoder
        pictures = dataset.pictures
        require_shown([picture for picture in pictures if not picture.is_latent], encoder.showing)
        progress(0, len(pictures))
        for done, (picture, cuts) in enumerate(ahead(self._prepared, pictures), 1):
            try:
                if isinstance(cuts, PictureError):
                    raise cuts
                self.entries += self._encoded(picture, cuts)
            except PictureError as error:
                self.skipped.append((picture.name, error.message))
            progress(done, len(pictures))
        if not self.entries:
            name, reason = self.skipped[0]
            raise LoomError("data.folder.none_opened", field="data.folder", name=name, reason=reason)
        self.pictures = [
            one.picture for n, one in enumerate(self.entries) if not n or one.picture is not self.entries[n - 1].picture
        ]

    def __getitem__(self, view: View) -> Tensors:
        """latent, and where there are: spread, mask, beside. Raises LoomError when the cache was emptied meanwhile."""
        entry = self.entries[view.entry]
        tensors = self._store.get(entry.keys[view.crop][view.flipped])
        if tensors is None:
            raise LoomError("cache.gone", name=entry.picture.name)
        return tensors

    def shown(self, view: View, draw: float = 0.0) -> Shown:
        """What is shown of a view; `draw` in [0, 1) chooses among its input masks, or says whether a clip is shown its first frame this time."""
        showing = self._encoder.showing
        if showing is None or not showing.of_film:
            return shown_of(self[view], draw)
        unshown = draw >= showing.share(self.entries[view.entry].picture.data)
        return NOTHING if unshown else shown_of(self[view])

    def all_shown(self, views: Sequence[View], draws: Sequence[float] = ()) -> list[Shown]:
        """The same of several; an empty list where it is nothing for all."""
        shown = [self.shown(view, draw) for view, draw in zip(views, draws or [0.0] * len(views), strict=True)]
        return shown if any(one.identity for one in shown) else []

    def fit(self, view: View) -> Fit:
        how = self.entries[view.entry].fits[view.crop]
        return how.mirrored() if view.flipped else how

    def _prepared(self, picture: Picture) -> Views | PictureError:
        """Runs in a thread."""
        try:
            prepared = picture_latents.prepared if picture.film is None else clip_latents.prepared
            return prepared(picture, self._encoder, self._store)
        except PictureError as error:
            return error

    def _encoded(self, picture: Picture, cuts: Views) -> list[Entry]:
        """The entries of one picture, crops of one bucket and clip together. A crop without any of the mask is left out; PictureError when none is left."""
        buckets: dict[tuple[tuple[int, int], Clip], list[tuple[Fit, tuple[str, ...]]]] = {}
        firsts: dict[tuple[tuple[int, int], Clip], Tensors] = {}
        refused = PictureError("picture.unusable")
        for how, views, clip in cuts:
            try:
                kept = [
                    self._store.get(key) if cut is None else self._kept(key, picture, cut, clip) for key, cut in views
                ]
            except PictureError as error:
                refused = error
                continue
            first = kept[0]
            assert first is not None
            firsts.setdefault((how.bucket, clip), first)
            buckets.setdefault((how.bucket, clip), []).append((how, tuple(key for key, _ in views)))
        if not buckets:
            raise refused
        has_mask = picture.data.masks == "alpha" or (picture.data.masks == "file" and picture.mask is not None)
        self.masked += any("mask" in t for t in firsts.values())
        self.unmasked += has_mask and not any("mask" in t or "no_alpha" in t for t in firsts.values())
        return [
            Entry(
                picture,
                tuple(f for f, _ in group),
                tuple(k for _, k in group),
                tuple(firsts[bucket]["latent"].shape[1:]),
                firsts[bucket]["pixels"].numpy().tobytes() + _shown_digest(firsts[bucket]),
            )
            for bucket, group in buckets.items()
        ]

    def _kept(self, key: str, picture: Picture, cut: Cut, clip: Clip = ()) -> Tensors:
        with blamed("data.picture_failed", "data.folder", memory="data.picture_memory", name=picture.name):
            if clip:
                tensors = clip_latents.encoded(picture, cut, clip, self._encoder)
            else:
                tensors = picture_latents.encoded(picture, cut, self._encoder)
        return self._store.put(key, tensors)


def require_shown(pictures: Sequence[Picture], showing: Showing | None) -> None:
    """Raises LoomError where what the sets show of their pictures is not what the model takes."""
    if not pictures:
        return
    filled, of_film = (showing.filled, showing.of_film) if showing is not None else (False, False)
    _require_frames(pictures, showing)
    if (showing is None or filled or of_film) and any(picture.controls for picture in pictures):
        raise LoomError("data.controls.not_taken", field="data.controls")
    needs_controls = showing is not None and showing.needed and not filled and not of_film
    if needs_controls and not any(picture.controls for picture in pictures):
        raise LoomError("data.controls.needed", field="data.controls", count=len(pictures))
    if filled and any(picture.data.input_mask == "none" for picture in pictures):
        raise LoomError("data.input_mask.needed", field="data.input_mask")
    if not filled and any(picture.data.input_mask != "none" for picture in pictures):
        raise LoomError("data.input_mask.not_taken", field="data.input_mask")


def _require_frames(pictures: Sequence[Picture], showing: Showing | None) -> None:
    """Raises LoomError where what the sets say of first and last frames is not what the model takes."""
    if showing is None or not showing.of_film:
        taken = False
    else:
        taken = showing.last
        asked = {picture.data.first_frame for picture in pictures}
        if showing.needed and not any(picture.moves for picture in pictures):
            raise LoomError("data.frames.needed", field="data.frames", count=len(pictures))
        if showing.needed and (less := sorted(asked - {AUTO, ALWAYS})):
            raise LoomError("data.first_frame.needed", field="data.first_frame", value=less[0])
    if not taken and any(picture.data.last_frame for picture in pictures):
        raise LoomError("data.last_frame.not_taken", field="data.last_frame")


def ahead(work: Callable[[Item], Done], items: Iterable[Item], threads: int = THREADS) -> Iterator[tuple[Item, Done]]:
    """(item, work(item)) in order, worked on by threads a little ahead, so memory does not grow with the number of items."""
    pool = concurrent.futures.ThreadPoolExecutor(threads, "lora-loom")
    waiting: deque[tuple[Item, concurrent.futures.Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _shown_digest(tensors: Tensors) -> bytes:
    return tensors[DIGEST].numpy().tobytes() if DIGEST in tensors else b""
