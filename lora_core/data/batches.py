"""From step number to batch: a pure function of (seed, step, micro), so a resumed run sees what the unbroken one saw. Batches never mix buckets."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..config import TrainConfig
from ..processes import ALONE, Processes
from ..rng import generator, python_rng, randn_like
from ..transfer import sent
from . import buckets
from .captions import varies, vary
from .dataset import Picture
from .latents import Entry, LatentCache, View
from .shown import Shown
from .store import Tensors


@dataclasses.dataclass(frozen=True)
class Batch:
    """Latents (B, C, [T,] H, W) float32 on the training device in the model's units; one caption, fit and name per sample; weight (B,).

    `mask` (B, 1, [1,] H, W): weights of places, or None. `beside` (B, ...): what else the network is told about each picture, or None.
    `shown`: the control pictures or the first frame of each sample; empty where no sample has any. `frame_rates`: of each sample, as
    `Picture.frame_rate`; empty for pictures.
    """

    latents: torch.Tensor
    captions: Sequence[str]
    fits: Sequence[buckets.Fit]
    names: Sequence[str]
    weight: torch.Tensor
    mask: torch.Tensor | None = None
    beside: torch.Tensor | None = None
    shown: Sequence[Shown] = ()
    frame_rates: Sequence[float] = ()

    def as_given(self, x_t: torch.Tensor) -> torch.Tensor:
        """Noisy latents with those frames that the network has as they are."""
        if not self._given_frames:
            return x_t
        x_t = x_t.clone()
        for n, shown in enumerate(self.shown):
            if shown.clean is not None:
                x_t[n, :, : shown.clean.shape[2]] = shown.clean[0].to(x_t)
        return x_t

    @property
    def _given_frames(self) -> list[int]:
        """How many of the first latent frames of each sample the network has as they are; an empty list where it is none of all."""
        counts = [0 if shown.clean is None else shown.clean.shape[2] for shown in self.shown]
        return counts if any(counts) else []

    @property
    def learnt(self) -> torch.Tensor | None:
        """(B, 1, T, 1, 1): 0 for the latent frames that the network has as they are; None where all are learnt."""
        counts = self._given_frames
        if not counts:
            return None
        frames = torch.arange(self.latents.shape[2]) >= torch.tensor(counts)[:, None]
        return sent(frames.to(self.latents.dtype)[:, None, :, None, None], self.latents.device)

    @property
    def asked(self) -> torch.Tensor | None:
        """Weights of places in the loss: those of `mask`, 0 where a frame is given; None where all count alike."""
        learnt = self.learnt
        if learnt is None or self.mask is None:
            return self.mask if learnt is None else learnt
        return learnt * self.mask

    def on(self, device: torch.device) -> Batch:
        """On the training device; the copy of pinned memory goes on while the step before still computes."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        return self._changed(torch.Tensor.pin_memory)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        new: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if torch.is_tensor(value)}
        return dataclasses.replace(self, **new, shown=[shown.changed(change) for shown in self.shown])


class Feed(Protocol):
    """What a run's steps are fed with, a pure function of (seed, step, micro): pictures (`Batches`), or the room for some (`NoPictures`)."""

    per_epoch: int

    @property
    def pictures(self) -> list[Picture]: ...

    def shapes(self) -> list[tuple[int, ...]]:
        """The latent shapes that occur, largest first."""

    def largest(self, count: int) -> Batch:
        """`count` times the largest there is, for a dry run."""

    def with_sizes(self, config: TrainConfig) -> Feed:
        """The same, with the batch size and accumulation of `config`."""

    def fingerprint(self) -> str:
        """Identifies all of it by content."""

    def at(self, step: int, micro: int) -> Batch:
        """The batch of that pass."""

    def captions(self, step: int, micro: int) -> list[str]:
        """Those of that pass, without looking at a picture."""

    def vary(self) -> bool:
        """Whether captions differ from pass to pass by more than being left out."""


class NoPictures:
    """Batches of a run without pictures: latents of zeros, `size_px` squared, that say which shape and size is meant. `name` stands for the pictures."""

    per_epoch = 1
    pictures: list[Picture] = []  # noqa: RUF012 - none, ever

    def __init__(self, shape: tuple[int, ...], size_px: int, name: str, config: TrainConfig, device: torch.device):
        self._shape, self._size_px, self._name, self._config, self._device = shape, size_px, name, config, device

    def shapes(self) -> list[tuple[int, ...]]:
        return [self._shape]

    def largest(self, count: int) -> Batch:
        size = self._size_px, self._size_px
        return Batch(
            latents=torch.zeros(count, *self._shape, device=self._device),
            captions=[""] * count,
            fits=[buckets.Fit(size, size, (0, 0), size)] * count,
            names=[self._name] * count,
            weight=torch.ones(count, device=self._device),
        )

    def with_sizes(self, config: TrainConfig) -> NoPictures:
        return NoPictures(self._shape, self._size_px, self._name, config, self._device)

    def fingerprint(self) -> str:
        return f"no pictures, {'x'.join(map(str, self._shape))}"

    def at(self, step: int, micro: int) -> Batch:
        return self.largest(self._config.batch_size)

    def captions(self, step: int, micro: int) -> list[str]:
        return []

    def vary(self) -> bool:
        return False


class Batches:
    """`at(step, micro)` is the batch of that pass. An epoch shows every picture `repeats` times, in an order drawn from the seed.

    Of several processes each draws the pictures of all, and takes its share.
    """

    def __init__(
        self, cache: LatentCache, config: TrainConfig, device: torch.device | str, processes: Processes = ALONE
    ):
        self.cache, self._config, self._device, self._processes = cache, config, torch.device(device), processes
        self._plan = functools.lru_cache(maxsize=4)(self._plan_epoch)
        self._ahead = _Ahead(self._on_cpu) if self._device.type != "cpu" else None
        self.per_epoch = len(self._plan(0))

    @property
    def pictures(self) -> list[Picture]:
        return self.cache.pictures

    def shapes(self) -> list[tuple[int, ...]]:
        """The latent shapes that occur, largest first."""
        return sorted({e.shape for e in self.cache.entries}, key=lambda s: -int(np.prod(s)))

    def largest(self, count: int) -> Batch:
        """`count` times the picture of the largest bucket, for a dry run."""
        sizes = [int(np.prod(e.shape)) for e in self.cache.entries]
        view = View(sizes.index(max(sizes)))
        picture = self.cache.entries[view.entry].picture
        return self._joined([view] * count, [picture.caption] * count, [self.cache[view]["latent"]] * count).on(
            self._device
        )

    def with_sizes(self, config: TrainConfig) -> Batches:
        """The same pictures in the same order, with the batch size and accumulation of `config`."""
        sized = dataclasses.replace(self._config, batch_size=config.batch_size, grad_accum=config.grad_accum)
        return Batches(self.cache, sized, self._device, self._processes)

    def fingerprint(self) -> str:
        """Identifies pictures, captions, repeats, sizes and masks, by content."""
        digest = hashlib.sha256()
        for n, entry in enumerate(self.cache.entries):
            picture = entry.picture
            facts = (picture.name, [(c.text, c.weight) for c in picture.captions], picture.repeats, entry.fits)
            digest.update("\x1f".join(map(str, facts)).encode("utf-8", "surrogateescape"))
            digest.update(entry.pixels)
            if (mask := self.cache[View(n)].get("mask")) is not None:
                digest.update(mask.numpy().tobytes())
        return digest.hexdigest()[:32]

    def at(self, step: int, micro: int) -> Batch:
        """Where the device is not the CPU, the batch was put together in a thread while the step before computed."""
        if self._ahead is None:
            return self._on_cpu(step, micro).on(self._device)
        following = (step, micro + 1) if micro + 1 < self._config.grad_accum else (step + 1, 0)
        return self._ahead.get((step, micro), following).on(self._device)

    def captions(self, step: int, micro: int) -> list[str]:
        """Those of that pass, without looking at a picture."""
        return [caption for _, caption in self._drawn(step, micro)]

    def shown_texts(self, step: int, micro: int) -> list[tuple[str, Shown]]:
        """The captions of that pass, each with what is shown beside it."""
        return [(caption, self.cache.shown(view)) for view, caption in self._drawn(step, micro)]

    def all_shown(self) -> Iterator[tuple[Entry, Shown]]:
        """What is shown beside each entry, at each of its crops, mirrored or not."""
        for n, entry in enumerate(self.cache.entries):
            for crop, keys in enumerate(entry.keys):
                yield from ((entry, self.cache.shown(View(n, crop, bool(f)))) for f in range(len(keys)))

    def vary(self) -> bool:
        """Whether captions differ from pass to pass by more than being left out."""
        return any(varies(p.captions, p.data) for p in self.pictures)

    def _drawn(self, step: int, micro: int) -> list[tuple[View, str]]:
        """Every choice of a pass, of all processes together: picture, crop, mirrored or not, caption."""
        number = step * self._config.grad_accum + micro
        rng = python_rng(self._config.seed, step, micro, "captions")
        out = []
        for index in self._plan(number // self.per_epoch)[number % self.per_epoch]:
            entry = self.cache.entries[index]
            flipped, crop = rng.random() < 0.5, int(rng.random() * len(entry.fits))
            view = View(index, crop, flipped and len(entry.keys[crop]) > 1)
            out.append((view, vary(entry.picture.captions, rng, entry.picture.data)))
        return out

    def _on_cpu(self, step: int, micro: int) -> Batch:
        mine = self._processes.share(self._config.batch_size)
        drawn = self._drawn(step, micro)[mine]
        latents = [
            _sampled(
                self.cache[view],
                generator(self._config.seed, step, micro, slot, "latent"),
                self.cache.entries[view.entry].picture,
            )
            for slot, (view, _) in enumerate(drawn, mine.start)
        ]
        places = range(mine.start, mine.start + len(drawn))
        draws = [python_rng(self._config.seed, step, micro, slot, "input mask").random() for slot in places]
        return self._joined([view for view, _ in drawn], [caption for _, caption in drawn], latents, draws)

    def _joined(
        self,
        views: Sequence[View],
        captions: Sequence[str],
        latents: Sequence[torch.Tensor],
        draws: Sequence[float] = (),
    ) -> Batch:
        parts, entries = [self.cache[view] for view in views], [self.cache.entries[view.entry] for view in views]
        masks = [
            _floored(part.get("mask"), entry.picture.data.mask_floor)
            for part, entry in zip(parts, entries, strict=True)
        ]
        return Batch(
            latents=torch.cat(list(latents)),
            captions=list(captions),
            fits=[self.cache.fit(view) for view in views],
            names=[entry.picture.name for entry in entries],
            weight=torch.tensor([entry.picture.data.loss_weight for entry in entries]),
            mask=_stacked(masks, latents),
            beside=torch.cat([part["beside"] for part in parts]) if all("beside" in part for part in parts) else None,
            shown=self.cache.all_shown(views, draws),
            frame_rates=[entry.picture.frame_rate for entry in entries if entry.moves],
        )

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        """Entries of each batch. The last batch of a bucket is filled up from the bucket, so every batch has the same size."""
        rng = python_rng(self._config.seed, epoch, "order")
        size = self._config.batch_size * self._processes.size
        groups: dict[tuple, list[int]] = {}
        for index, entry in enumerate(self.cache.entries):
            groups.setdefault((entry.fits[0].bucket, entry.shape), []).extend([index] * entry.picture.repeats)
        batches = []
        for bucket in sorted(groups):
            order = groups[bucket]
            rng.shuffle(order)
            order += [order[k % len(order)] for k in range(-len(order) % size)]
            batches += [order[k : k + size] for k in range(0, len(order), size)]
        rng.shuffle(batches)
        return batches


class _Ahead:
    """One thread that makes the next batch while this one is used. What it makes does not depend on when."""

    def __init__(self, make: Callable[[int, int], Batch]):
        self._make, self._lock = make, threading.Lock()
        self._next: dict[tuple[int, int], concurrent.futures.Future[Batch]] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "lora-loom-batches")

    def get(self, now: tuple[int, int], following: tuple[int, int]) -> Batch:
        with self._lock:
            future = self._next.pop(now, None) or self._pool.submit(self._pinned, now)
            self._next = {following: self._next.get(following) or self._pool.submit(self._pinned, following)}
        return future.result()

    def _pinned(self, key: tuple[int, int]) -> Batch:
        batch = self._make(*key)
        return batch.pinned() if torch.cuda.is_available() else batch


def _sampled(tensors: Tensors, rng: torch.Generator, picture: Picture) -> torch.Tensor:
    """The latent that is trained: what the VAE says, or mean + deviation x noise where the set asks for samples."""
    latent = tensors["latent"]
    return (
        latent + tensors["spread"] * randn_like(latent, rng)
        if picture.data.latents == "sampled" and "spread" in tensors
        else latent
    )


def _floored(mask: torch.Tensor | None, floor: float) -> torch.Tensor | None:
    return None if mask is None else floor + (1 - floor) * mask


def _stacked(masks: Sequence[torch.Tensor | None], latents: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The masks of a batch, ones for pictures without; None when there is none at all."""
    if all(m is None for m in masks):
        return None
    whole = [torch.ones_like(latent[:, :1]) if m is None else m for m, latent in zip(masks, latents, strict=True)]
    if len({m.shape for m in whole}) > 1:  # still masks of clips beside moving ones
        whole = [m.expand(-1, -1, *latent.shape[2:]) for m, latent in zip(whole, latents, strict=True)]
    return torch.cat(whole)
