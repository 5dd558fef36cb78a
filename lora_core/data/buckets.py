"""Sizes: which bucket a picture goes to, and what is cropped of it. Pure arithmetic; nothing is scaled up unless a set asks for it."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
from PIL import Image

from ..config import DataConfig
from ..messages.errors import LoomError

CENTRE = (0.5, 0.5)
SEEN_PX = 96  # longest side of the small picture on which a salient crop is chosen


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a picture becomes a bucket: scaled to `scaled`, then cut at `crop` (left, top) to `bucket`. All (width, height) in px."""

    original: tuple[int, int]
    scaled: tuple[int, int]
    crop: tuple[int, int]
    bucket: tuple[int, int]

    @property
    def slack(self) -> tuple[int, int]:
        """How far the crop can move, in px."""
        return self.scaled[0] - self.bucket[0], self.scaled[1] - self.bucket[1]

    def at(self, place: tuple[float, float]) -> Fit:
        """The same size, cut at `place`: (0, 0) is the left top, (1, 1) the right bottom."""
        return dataclasses.replace(self, crop=(round(self.slack[0] * place[0]), round(self.slack[1] * place[1])))

    def mirrored(self) -> Fit:
        """As the mirrored picture is cut."""
        return dataclasses.replace(self, crop=(self.slack[0] - self.crop[0], self.crop[1]))


def fit(
    width: int,
    height: int,
    resolution: int,
    step: int,
    aspect: bool = True,
    min_side: int = 0,
    max_side: int = 0,
    upscale: bool = False,
) -> Fit:
    """The largest bucket of the picture's shape with sides in multiples of `step` and at most resolution^2 pixels, centre-cropped.

    Without `aspect` a square. Sides stay within `min_side` and `max_side` (0: no limit). Raises ValueError when a side is below one step.
    """
    if min(width, height) < step and not upscale:
        raise ValueError(f"{width} x {height} px is below one step of {step} px")
    low, high = max(step, -(-min_side // step) * step), max_side // step * step or 2**30
    if aspect:
        scale = math.sqrt(resolution * resolution / (width * height))
        scale = scale if upscale else min(1.0, scale)
        sides = [min(high, max(low, int(side * scale + 1e-6) // step * step)) for side in (width, height)]
    else:
        sides = [min(high, max(low, resolution // step * step))] * 2
    if not upscale:
        sides = [min(length, side // step * step) for length, side in zip(sides, (width, height), strict=True)]
        sides = sides if aspect else [min(sides)] * 2
    longest = max(
        low, resolution * resolution // min(sides) // step * step
    )  # a panorama's short side may have been raised to one step
    bucket = (min(sides[0], longest), min(sides[1], longest))
    cover = max(bucket[0] / width, bucket[1] / height)
    scaled = (max(bucket[0], round(width * cover)), max(bucket[1], round(height * cover)))
    crop = ((scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)
    return Fit((width, height), scaled, crop, bucket)


def whole_number(text: str, low: int, high: int) -> int | None:
    """The number that a text is, within bounds; None for everything else. Python refuses to read more than some thousand digits."""
    if not text.isdecimal() or len(text) > len(str(high)):
        return None
    return int(text) if low <= int(text) <= high else None


def resolutions(config: DataConfig) -> list[int]:
    """Those a set is trained at, the main one first. Raises LoomError for what is not a list of numbers."""
    more = []
    for part in filter(None, (part.strip() for part in config.also_resolutions.split(","))):
        resolution = whole_number(part, 16, 8192)
        if resolution is None:
            raise LoomError("data.also_resolutions.unreadable", field="data.also_resolutions", part=repr(part[:40]))
        more.append(resolution)
    return list(dict.fromkeys([config.resolution, *more]))


def fits(width: int, height: int, config: DataConfig) -> list[Fit]:
    """The bucket of a picture at each resolution of its set, the same bucket once."""
    every = [
        fit(
            width,
            height,
            r,
            config.bucket_step_px,
            config.aspect_buckets,
            config.min_side_px,
            config.max_side_px,
            config.upscale,
        )
        for r in resolutions(config)
    ]
    return list({f.bucket: f for f in every}.values())


def crops(how: Fit, name: str, config: DataConfig) -> list[Fit]:
    """The places a picture of that name is cut at: one, or for random ones spread evenly along its slack, the same on every machine."""
    if config.crop != "random" or how.slack == (0, 0):
        return [how]
    rng = random.Random(name)
    places = [((k + rng.random()) / config.crops, (k + rng.random()) / config.crops) for k in range(config.crops)]
    down = [y for _, y in places]
    rng.shuffle(down)
    return list(dict.fromkeys(how.at((x, y)) for (x, _), y in zip(places, down, strict=True)))


def salient(image: Image.Image, how: Fit, mask: Image.Image | None = None) -> Fit:
    """The crop that keeps most of what is to be seen: of the mask where there is one, else of the edges, those near the middle counting twice."""
    if how.slack == (0, 0):
        return how
    grey = (mask or image).convert("L")
    scale = SEEN_PX / max(grey.size)
    small = np.asarray(
        grey.resize((max(2, round(grey.width * scale)), max(2, round(grey.height * scale))), Image.Resampling.BOX),
        np.float64,
    )
    if mask is None:
        down, across = np.gradient(small)
        small = np.hypot(down, across)
        y, x = (np.linspace(-1, 1, side) for side in small.shape)
        small = small * (2 - np.maximum(np.abs(y)[:, None], np.abs(x)[None]))
    places = []
    for axis in (0, 1):  # along the width, along the height
        along = small.sum(axis)
        window = max(1, round(len(along) * how.bucket[axis] / how.scaled[axis]))
        sums = np.convolve(along, np.ones(window), "valid")
        best = np.flatnonzero(sums >= sums.max() - 1e-9 * max(1.0, sums.max()))
        middle = best[np.abs(best - (len(sums) - 1) / 2).argmin()]
        places.append(middle / (len(sums) - 1) if len(sums) > 1 else 0.5)
    return how.at((places[0], places[1]))


def apply(image: Image.Image, how: Fit) -> Image.Image:
    """The picture scaled (Lanczos) and cropped as `how` says."""
    if image.size != how.scaled:
        image = image.resize(how.scaled, Image.Resampling.LANCZOS)
    left, top = how.crop
    return image.crop((left, top, left + how.bucket[0], top + how.bucket[1]))
