"""Pictures encoded once: decoded and cut in threads, encoded on the caller's thread, kept in a store by content."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as safetensors_load

from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.reading import PictureError
from .buckets import Fit, apply, crops, fits
from .folder import Dataset, Picture
from .masks import on_latent, open_trained, placed
from .store import Memory, Store, Tensors, key_of

THREADS = min(4, os.cpu_count() or 1)
TRANSFORM = 1  # counted up when the same file would be decoded, scaled or cut another way
Item = TypeVar("Item")
Done = TypeVar("Done")


class View(NamedTuple):
    """One way to look at an entry: which of its crops, mirrored or not."""

    entry: int
    crop: int = 0
    flipped: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture in one bucket: one Fit and one pair of store keys (plain, mirrored) for each crop; `pixels`: hash of what is trained."""

    picture: Picture
    fits: tuple[Fit, ...]
    keys: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    pixels: bytes


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What makes latents of pictures. `picture`: (1, H, W, 3) float32 in [0, 1] -> (1, C, [T,] h, w) in the model's units.

    `identity` names it in the cache. `spread`: the same -> (mean, standard deviation); `beside`: what else the network is told about a picture;
    `wired`: latents as other nodes have them -> the model's units. None where the model has no such thing.
    """

    picture: Callable[[torch.Tensor], torch.Tensor]
    identity: str = ""
    spread: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    beside: Callable[[torch.Tensor], torch.Tensor] | None = None
    wired: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A picture cut to one view: `pixels` (H, W, 3) uint8, `mask` as 8-bit grey or None."""

    key: str
    fit: Fit
    pixels: np.ndarray
    mask: Image.Image | None


_Views = list[
    tuple[Fit, list[tuple[str, "_Cut | None"]]]
]  # of a picture: each crop in each bucket, plain and mirrored, with its key


class LatentCache:
    """The latents of a dataset in a store, whatever was not there encoded now. Pictures that break are left out and named in `skipped`."""

    def __init__(
        self, dataset: Dataset, encoder: Encoder, progress: Callable[[int, int], None], store: Store | None = None
    ):
        self.entries: list[Entry] = []
        self.skipped: list[tuple[str, Message]] = []
        self.masked = self.unmasked = 0  # masks that change something, masks that are white everywhere
        self._store, self._encoder = store if store is not None else Memory(), encoder
        pictures = dataset.pictures
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

    def fit(self, view: View) -> Fit:
        how = self.entries[view.entry].fits[view.crop]
        return how.mirrored() if view.flipped else how

    def _prepared(self, picture: Picture) -> _Views | PictureError:
        """Runs in a thread."""
        try:
            return self._prepare(picture)
        except PictureError as error:
            return error

    def _prepare(self, picture: Picture) -> _Views:
        """For every crop in every bucket of a picture: its fit, and (key, the cut picture unless the store has the entry) plain and mirrored.

        Raises PictureError.
        """
        data, config = _bytes(picture.path), picture.data
        of_mask = hashlib.sha256(_bytes(picture.mask)).digest() if picture.mask else config.masks == "alpha"
        made_from = [
            TRANSFORM,
            hashlib.sha256(data).digest(),
            of_mask,
            config.background,
            config.latents,
            self._encoder.identity,
            self._encoder.beside is not None,
        ]
        if picture.is_latent:
            key = key_of(*made_from)
            return [
                (
                    _whole(picture),
                    [
                        (
                            key,
                            None
                            if self._store.get(key)
                            else _Cut(key, _whole(picture), np.frombuffer(data, np.uint8), None),
                        )
                    ],
                )
            ]
        cuts, image, mask = [], None, None
        for base in fits(picture.width_px, picture.height_px, config):
            for how in crops(base, picture.name, config):
                keys = [
                    key_of(*made_from, dataclasses.astuple(how), config.crop == "salient", f)
                    for f in ((False, True) if config.flip else (False,))
                ]
                stored = [self._store.get(key) for key in keys]
                if any(k is None for k in stored) and image is None:
                    image, mask = open_trained(picture, data)
                first = next((k for k in stored if k is not None), None)
                if first is not None:
                    where = dataclasses.replace(how, crop=(int(first["crop"][0]), int(first["crop"][1])))
                else:
                    assert image is not None
                    where = placed(image, mask, how, config)
                views: list[tuple[str, _Cut | None]] = []
                for flipped, (key, latent) in enumerate(zip(keys, stored, strict=True)):
                    views.append(
                        (
                            key,
                            None
                            if latent is not None or image is None
                            else _cut(key, image, mask, where, bool(flipped)),
                        )
                    )
                cuts.append((where, views))
        return cuts

    def _encoded(self, picture: Picture, cuts: _Views) -> list[Entry]:
        """The entries of one picture, crops of one bucket together. A crop without any of the mask is left out; PictureError when none is left."""
        buckets: dict[tuple[int, int], list[tuple[Fit, tuple[str, ...]]]] = {}
        firsts: dict[tuple[int, int], Tensors] = {}
        refused = PictureError("picture.unusable")
        for how, views in cuts:
            try:
                kept = [self._store.get(key) if cut is None else self._kept(key, picture, cut) for key, cut in views]
            except PictureError as error:
                refused = error
                continue
            first = kept[0]
            assert first is not None
            firsts.setdefault(how.bucket, first)
            buckets.setdefault(how.bucket, []).append((how, tuple(key for key, _ in views)))
        if not buckets:
            raise refused
        has_mask = picture.data.masks == "alpha" or picture.mask is not None
        self.masked += any("mask" in t for t in firsts.values())
        self.unmasked += has_mask and not any("mask" in t or "no_alpha" in t for t in firsts.values())
        return [
            Entry(
                picture,
                tuple(f for f, _ in group),
                tuple(k for _, k in group),
                tuple(firsts[bucket]["latent"].shape[1:]),
                firsts[bucket]["pixels"].numpy().tobytes(),
            )
            for bucket, group in buckets.items()
        ]

    def _kept(self, key: str, picture: Picture, cut: _Cut) -> Tensors:
        with blamed("data.picture_failed", "data.folder", memory="data.picture_memory", name=picture.name):
            tensors = self._encode(picture, cut)
        return self._store.put(key, tensors)

    def _encode(self, picture: Picture, cut: _Cut) -> Tensors:
        encoder = self._encoder
        tensors: Tensors = {"crop": torch.tensor(cut.fit.crop), "pixels": _digest(cut.pixels)}
        if picture.is_latent:
            if encoder.wired is None:
                raise LoomError("base.no_wired_latents", name=picture.name)
            tensors["latent"] = encoder.wired(safetensors_load(cut.pixels.tobytes())["samples"])
        else:
            pixels = torch.from_numpy(cut.pixels.astype(np.float32) / 255.0)[None]
            if picture.data.latents == "sampled":
                if encoder.spread is None:
                    raise LoomError("data.latents.no_spread", field="data.latents")
                tensors["latent"], tensors["spread"] = encoder.spread(pixels)
            else:
                tensors["latent"] = encoder.picture(pixels)
            if encoder.beside is not None:
                tensors["beside"] = encoder.beside(pixels)
        tensors = {name: t.detach().float().cpu() if t.is_floating_point() else t for name, t in tensors.items()}
        if not torch.isfinite(tensors["latent"]).all():
            raise LoomError("vae.not_finite", name=picture.name)
        if cut.mask is not None and (weights := on_latent(cut.mask, tensors["latent"])) is not None:
            tensors["mask"] = weights
        elif picture.data.masks == "alpha" and cut.mask is None:
            tensors["no_alpha"] = torch.zeros(1)
        return tensors


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


def _cut(key: str, image: Image.Image, mask: Image.Image | None, how: Fit, flipped: bool) -> _Cut:
    parts = [apply(i, how) if i is not None else None for i in (image, mask)]
    if flipped:
        parts = [i.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i is not None else None for i in parts]
    return _Cut(key, how, np.asarray(parts[0]), parts[1])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PictureError("picture.unopened", reason=error.strerror) from error


def _digest(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(
        np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest(), np.uint8).copy()
    )


def _whole(picture: Picture) -> Fit:
    """A latent from elsewhere is taken as it is."""
    size = (picture.width_px, picture.height_px)
    return Fit(size, size, (0, 0), size)
