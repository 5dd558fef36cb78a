"""Sizes: which bucket a picture goes to, and how it is cropped to it. Pure integer arithmetic; nothing is ever scaled up."""

from __future__ import annotations

import dataclasses
import math

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a picture becomes a bucket: scaled to `scaled`, then cut at `crop` (left, top) to `bucket`. All (width, height) in px."""

    original: tuple[int, int]
    scaled: tuple[int, int]
    crop: tuple[int, int]
    bucket: tuple[int, int]


def fit(width: int, height: int, resolution: int, step: int) -> Fit:
    """The largest bucket of the picture's shape with sides in multiples of `step` and at most resolution^2 pixels, centre-cropped.

    Raises ValueError when a side is below one step.
    """
    if min(width, height) < step:
        raise ValueError(f"{width} x {height} px is below one step of {step} px")
    scale = min(1.0, math.sqrt(resolution * resolution / (width * height)))
    bucket = tuple(min(side // step * step, max(step, int(side * scale + 1e-6) // step * step)) for side in (width, height))
    longest = max(step, resolution * resolution // min(bucket) // step * step)  # a panorama's short side may have been raised to one step
    bucket = tuple(min(side, longest) for side in bucket)
    cover = max(bucket[0] / width, bucket[1] / height)
    scaled = tuple(max(b, round(side * cover)) for b, side in zip(bucket, (width, height), strict=True))
    crop = ((scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)
    return Fit((width, height), (scaled[0], scaled[1]), crop, (bucket[0], bucket[1]))


def apply(image: Image.Image, how: Fit) -> Image.Image:
    """The picture scaled (Lanczos) and cropped as `how` says."""
    if image.size != how.scaled:
        image = image.resize(how.scaled, Image.Resampling.LANCZOS)
    left, top = how.crop
    return image.crop((left, top, left + how.bucket[0], top + how.bucket[1]))
