"""From step number to batch: a pure function of (seed, step, micro), so a resumed run sees what the unbroken one saw. Batches never mix buckets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from ..config import TrainConfig
from ..errors import LoomError
from ..rng import python_rng
from . import buckets
from .captions import vary
from .folder import Dataset, Picture
from .masks import latent_mask, open_mask
from .pictures import PictureError, open_rgb


@dataclasses.dataclass(frozen=True)
class Batch:
    """Latents (B, C, [T,] H, W) float32 on the training device in the model's units; one caption, fit and name per sample; weight (B,).

    `mask` (B, 1, [1,] H, W): weights of places, or None. `beside` (B, ...): what else the network is told about each picture, or None.
    """

    latents: torch.Tensor
    captions: Sequence[str]
    fits: Sequence[buckets.Fit]
    names: Sequence[str]
    weight: torch.Tensor
    mask: torch.Tensor | None = None
    beside: torch.Tensor | None = None


Encode = Callable[[torch.Tensor], torch.Tensor]  # (1, H, W, 3) float32 in [0, 1] -> (1, C, [T,] h, w)


class LatentCache:
    """Latents of every picture of a dataset, plain and mirrored, encoded once and held in CPU memory."""

    def __init__(self, dataset: Dataset, config: TrainConfig, encode: Encode, progress: Callable[[int, int], None], beside: Encode | None = None):
        self.fits: list[buckets.Fit] = []
        self.pixels: list[bytes] = []  # sha256 of each picture as it is trained
        self.kept: list[Picture] = []
        self.skipped: list[tuple[str, str]] = []
        self.masked = self.unmasked = 0  # masks that change something, masks that are white everywhere
        self._latents: dict[tuple[int, bool], torch.Tensor] = {}
        self._masks: dict[tuple[int, bool], torch.Tensor] = {}
        self._beside: dict[tuple[int, bool], torch.Tensor] = {}
        flips = (False, True) if config.data.flip else (False,)
        for done, picture in enumerate(dataset.pictures):
            progress(done, len(dataset.pictures))
            try:
                image, mask = open_rgb(picture.path), open_mask(picture, config.data.masks)
            except PictureError as error:
                self.skipped.append((picture.name, str(error)))
                continue
            how = buckets.fit(*image.size, config.data.resolution, config.data.bucket_step_px)
            cut = buckets.apply(image, how)
            masks: dict[bool, torch.Tensor | None] = {}
            for flipped in flips:
                shown = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cut
                pixels = torch.from_numpy(np.asarray(shown, np.float32) / 255.0)[None]
                latent = encode(pixels).detach().float().cpu().clone()
                if not torch.isfinite(latent).all():
                    raise LoomError(f"{picture.name}: the VAE returns numbers that are not finite for it; use a VAE that runs in fp32 or bf16.")
                self._latents[len(self.kept), flipped] = latent
                if beside is not None:
                    self._beside[len(self.kept), flipped] = beside(pixels).detach().float().cpu().clone()
                try:
                    masks[flipped] = None if mask is None else latent_mask(mask, how, flipped, latent, config.data.mask_floor)
                except PictureError as error:
                    self.skipped.append((picture.name, str(error)))
                    break
            if len(masks) < len(flips):
                continue
            self._masks |= {(len(self.kept), flipped): m for flipped, m in masks.items() if m is not None}
            self.masked += masks[False] is not None
            self.unmasked += mask is not None and masks[False] is None
            self.pixels.append(hashlib.sha256(cut.tobytes()).digest())
            self.kept.append(picture)
            self.fits.append(how)
        progress(len(dataset.pictures), len(dataset.pictures))
        if not self.kept:
            name, why = self.skipped[0]
            raise LoomError(f"data.folder: no picture could be opened, the first is {name}: {why}; replace the files.")

    def __getitem__(self, key: tuple[int, bool]) -> torch.Tensor:
        return self._latents[key]

    def beside(self, keys: Sequence[tuple[int, bool]]) -> torch.Tensor | None:
        """What the network is told about these pictures apart from their captions."""
        return torch.cat([self._beside[key] for key in keys]) if self._beside else None

    def mask(self, key: tuple[int, bool]) -> torch.Tensor | None:
        """Weights of places, where the picture has a mask that says anything."""
        return self._masks.get(key)


class Batches:
    """`at(step, micro)` is the batch of that pass. An epoch shows every picture `repeats` times, in an order drawn from the seed."""

    def __init__(self, cache: LatentCache, config: TrainConfig, device: torch.device | str):
        self._cache, self._config, self._device = cache, config, device
        self._plan = functools.lru_cache(maxsize=2)(self._plan_epoch)
        self.per_epoch = len(self._plan(0))

    @property
    def pictures(self) -> list[Picture]:
        return self._cache.kept

    def shapes(self) -> list[tuple[int, ...]]:
        """The latent shapes that occur, largest first."""
        return sorted({tuple(self._cache[i, False].shape[1:]) for i in range(len(self._cache.kept))}, key=lambda s: -int(np.prod(s)))

    def largest(self, count: int) -> Batch:
        """`count` times the picture of the largest bucket, for a dry run."""
        sizes = [int(np.prod(self._cache[i, False].shape)) for i in range(len(self.pictures))]
        index = sizes.index(max(sizes))
        latents = self._cache[index, False].repeat(count, *[1] * (self._cache[index, False].ndim - 1)).to(self._device)
        picture = self.pictures[index]
        return Batch(
            latents, [picture.caption] * count, [self._cache.fits[index]] * count, [picture.name] * count, torch.ones(count, device=self._device),
            beside=self._cache.beside([(index, False)] * count),
        )  # fmt: skip

    def with_config(self, config: TrainConfig) -> Batches:
        """The same pictures under another batch size."""
        return Batches(self._cache, config, self._device)

    def fingerprint(self) -> str:
        """Identifies pictures, captions, repeats and sizes, by content."""
        digest = hashlib.sha256()
        for index, picture in enumerate(self.pictures):
            facts = (picture.name, picture.caption, picture.repeats, self._cache.fits[index])
            digest.update("\x1f".join(map(str, facts)).encode())
            digest.update(self._cache.pixels[index])
            if (mask := self._cache.mask((index, False))) is not None:
                digest.update(mask.numpy().tobytes())
        return digest.hexdigest()[:32]

    def at(self, step: int, micro: int) -> Batch:
        number = step * self._config.grad_accum + micro
        chosen = self._plan(number // self.per_epoch)[number % self.per_epoch]
        rng, data = python_rng(self._config.seed, step, micro, "captions"), self._config.data
        latents, captions, masks, keys = [], [], [], []
        for index in chosen:
            flipped = rng.random() < 0.5 and data.flip
            keys.append((index, flipped))
            latents.append(self._cache[index, flipped])
            masks.append(self._cache.mask((index, flipped)))
            captions.append(vary(self.pictures[index].caption, rng, data.shuffle_tags, data.keep_tokens, data.caption_dropout))
        return Batch(
            latents=torch.cat(latents).to(self._device),
            captions=captions,
            fits=[self._cache.fits[i] for i in chosen],
            names=[self.pictures[i].name for i in chosen],
            weight=torch.ones(len(chosen), device=self._device),
            mask=_stacked(masks, latents, self._device),
            beside=self._cache.beside(keys),
        )

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        """Picture indices of each batch. The last batch of a bucket is filled up from the bucket, so every batch has the same size."""
        rng, size = python_rng(self._config.seed, epoch, "order"), self._config.batch_size
        groups: dict[tuple[int, int], list[int]] = {}
        for index, picture in enumerate(self.pictures):
            groups.setdefault(self._cache.fits[index].bucket, []).extend([index] * picture.repeats)
        batches = []
        for bucket in sorted(groups):
            order = groups[bucket]
            rng.shuffle(order)
            order += [order[k % len(order)] for k in range(-len(order) % size)]
            batches += [order[k : k + size] for k in range(0, len(order), size)]
        rng.shuffle(batches)
        return batches


def _stacked(masks: Sequence[torch.Tensor | None], latents: Sequence[torch.Tensor], device: torch.device | str) -> torch.Tensor | None:
    """The masks of a batch, ones for pictures without; None when there is none at all."""
    if all(m is None for m in masks):
        return None
    return torch.cat([torch.ones_like(latent[:, :1]) if m is None else m for m, latent in zip(masks, latents, strict=True)]).to(device)
