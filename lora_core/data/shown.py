"""What a network is shown of a picture beside its latent and caption: control pictures, cut so that they stay consistent with their target."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..config import DataConfig
from ..config.data import ALWAYS, AUTO, HALF, NEVER
from ..pictures.reading import PictureError, open_rgb
from .buckets import Fit, apply, fit, resolutions
from .input_masks import hidden

SAME_SHAPE = 0.01  # difference of two aspects, relative, up to which a control picture is cut as its target is
LATENT, PIXELS, DIGEST = "shown.latent.", "shown.pixels.", "shown.digest"  # names of tensors in the store
CLEAN = "shown.clean"
MASK, MASKED = (
    "shown.mask.",
    "shown.masked.",
)  # the same of each input mask: the mask, and the latents of what it leaves


@dataclasses.dataclass(frozen=True)
class Showing:
    """How a model takes control pictures.

    `limit`: how many of them. `needed`: a picture without one cannot be trained. `as_target`: they are cut to the size of the target, whatever their own
    shape. `to_text`: the text encoder sees them too. `filled`: it is shown no control picture, but the target without what an input mask fills, and that mask.
    `of_film`: none are taken, it is shown the first frame of each clip; `last`: whether it can be shown the last frame too; `unseen`: whether it also reads
    what an image encoder sees of them, and there is none. `usual`: whether it was made to be shown something, by the name of its file: first frames where
    the set leaves it open, control pictures.
    """

    limit: int
    needed: bool = False
    as_target: bool = False
    to_text: bool = False
    filled: bool = False
    of_film: bool = False
    usual: bool = False
    last: bool = False
    unseen: bool = False

    def share(self, config: DataConfig) -> float:
        """Of how many of its passes a clip is shown its first frame."""
        if not self.of_film:
            return 0.0
        choice = config.first_frame
        if choice == AUTO:
            choice = ALWAYS if self.needed or self.usual else NEVER
        return {NEVER: 0.0, HALF: 0.5, ALWAYS: 1.0}[choice]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the network is shown of one sample.

    `latents`: of its control pictures in order, each (1, C, [T,] h, w) float32 of a size of its own, as the backend's `encode_shown` gives them.
    `pixels`: the same pictures (1, H, W, 3) uint8 on the CPU, where the text encoder sees them too. `mask` (1, 1, H, W) float32, in px, 0 or 1: what an
    inpainting model fills; `latents` is then the picture without it. For a model that is shown the first frame of a clip they are what
    `encode_first_frame` gives. `identity`: names what is shown; empty for nothing. `clean`: as `OfFrames.clean`.
    """

    latents: tuple[torch.Tensor, ...] = ()
    pixels: tuple[torch.Tensor, ...] = ()
    identity: str = ""
    mask: torch.Tensor | None = None
    clean: torch.Tensor | None = None

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Shown:
        """With `change` made to what goes to the training device."""
        mask, clean = (None if tensor is None else change(tensor) for tensor in (self.mask, self.clean))
        return dataclasses.replace(self, latents=tuple(map(change, self.latents)), mask=mask, clean=clean)


NOTHING = Shown()


class OfFrames(NamedTuple):
    """What a network is shown of a clip's first frame, and of its last one.

    `latents`: what the backend makes its further inputs of. `clean` (1, C, n, h, w), in the model's units: the first n latent frames of the target as the
    network has them in place of noisy ones, encoded without what follows, as when a clip is made; nothing is asked of them. None where it has none so.
    """

    latents: tuple[torch.Tensor, ...]
    clean: torch.Tensor | None = None


def kept(
    controls: Sequence[np.ndarray], showing: Showing, encode: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the store keeps of control pictures (H, W, 3) uint8: their latents, their pixels where the text encoder sees them, a hash of all."""
    tensors: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256()
    for n, control in enumerate(controls):
        whole = torch.from_numpy(np.array(control))[None]
        digest.update(f"{whole.shape}".encode() + control.tobytes())
        tensors[f"{LATENT}{n}"] = encode(whole.float() / 255.0)
        if showing.to_text:
            tensors[f"{PIXELS}{n}"] = whole
    if controls:
        tensors[DIGEST] = torch.from_numpy(np.frombuffer(digest.digest(), np.uint8).copy())
    return tensors


def shown_picture(
    picture: Image.Image,
    size_px: tuple[int, int],
    step_px: int,
    showing: Showing,
    encode: Callable[[torch.Tensor], torch.Tensor],
) -> Shown:
    """A picture as what an edit of `size_px` (width, height) is made from: of that size where the model wants it, else of its own shape and as many pixels."""
    wide, high = size_px
    target = Fit(size_px, size_px, (0, 0), size_px)
    area = DataConfig(resolution=round(math.sqrt(wide * high)), bucket_step_px=step_px, upscale=True)
    how = control_fit(picture.size, target, area, showing.as_target)
    return shown_of(kept([cut_control(picture, how, flipped=False)], showing, encode))


def kept_of_clip(frames: Sequence[np.ndarray], shown: OfFrames) -> dict[str, torch.Tensor]:
    """The same for a clip of which these frames (H, W, 3) uint8 are shown."""
    data = b"".join(np.ascontiguousarray(frame).tobytes() for frame in frames)
    digest = hashlib.sha256(f"{frames[0].shape}".encode() + data).digest()
    tensors = {f"{LATENT}{n}": latent.detach().float().cpu() for n, latent in enumerate(shown.latents)}
    if shown.clean is not None:
        tensors[CLEAN] = shown.clean.detach().float().cpu()
    return {**tensors, DIGEST: torch.from_numpy(np.frombuffer(digest, np.uint8).copy())}


def kept_masked(
    pixels: np.ndarray, masks: Sequence[np.ndarray], encode: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the store keeps of a picture (H, W, 3) uint8 for an inpainting model: each mask (H, W) uint8, and the latents of what it leaves."""
    tensors: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256()
    for n, mask in enumerate(masks):
        digest.update(mask.tobytes())
        left = hidden(pixels.astype(np.float32) / 255.0, mask)
        tensors[f"{MASKED}{n}"] = encode(torch.from_numpy(np.ascontiguousarray(left))[None])
        tensors[f"{MASK}{n}"] = torch.from_numpy((mask >= 128).astype(np.uint8))
    tensors[DIGEST] = torch.from_numpy(np.frombuffer(digest.digest(), np.uint8).copy())
    return tensors


def shown_of(tensors: Mapping[str, torch.Tensor], draw: float = 0.0) -> Shown:
    """What an entry of the store says is shown of its picture; `draw` in [0, 1) chooses among its input masks."""
    if DIGEST not in tensors:
        return NOTHING
    masks = sum(key.startswith(MASK) for key in tensors)
    if masks:
        n = int(draw * masks)
        name = f"{tensors[DIGEST].numpy().tobytes().hex()} {n}"
        return Shown((tensors[f"{MASKED}{n}"],), (), name, tensors[f"{MASK}{n}"].float()[None, None])
    name = tensors[DIGEST].numpy().tobytes().hex()
    return Shown(_numbered(tensors, LATENT), _numbered(tensors, PIXELS), name, clean=tensors.get(CLEAN))


def _numbered(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, ...]:
    numbers = range(sum(key.startswith(name) for key in tensors))
    return tuple(tensors[f"{name}{n}"] for n in numbers)


def open_control(path: Path, background: str) -> Image.Image:
    """Raises PictureError that names the control picture."""
    try:
        return open_rgb(path, background)
    except PictureError as error:
        raise PictureError("control.unreadable", control=path.name, reason=error) from error


def control_fit(size: tuple[int, int], target: Fit, config: DataConfig, as_target: bool) -> Fit:
    """How a control picture of `size` (width, height) is cut beside a target that is cut as `target` says.

    One of the target's shape is cut at the same place. Another one keeps its own shape, at the area of `control_resolution`, or else of the target;
    where the model wants the target's size it is cut to it around its centre.
    """
    (width, height), (wide, high) = size, target.bucket
    if same_shape(size, target.original):
        return _at_the_same_place(size, target, config, as_target)
    if as_target:
        cover = max(wide / width, high / height)
        scaled = (max(wide, round(width * cover)), max(high, round(height * cover)))
        return Fit(size, scaled, ((scaled[0] - wide) // 2, (scaled[1] - high) // 2), target.bucket)
    side = config.control_resolution or round(_side(target, config))
    return fit(width, height, side, config.bucket_step_px, upscale=True)


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have one aspect, but for a hundredth."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= SAME_SHAPE * size[1] * other[0]


def _side(target: Fit, config: DataConfig) -> float:
    """The side in px of a square as large as the target is asked to be, before its sides were made multiples of a step."""
    area = target.bucket[0] * target.bucket[1]
    side = min((r for r in resolutions(config) if r * r >= area), default=math.sqrt(area))
    return side if config.upscale else min(side, math.sqrt(target.original[0] * target.original[1]))


def _at_the_same_place(size: tuple[int, int], target: Fit, config: DataConfig, as_target: bool) -> Fit:
    if as_target or not config.control_resolution:
        return dataclasses.replace(target, original=size)
    step, factor = config.bucket_step_px, config.control_resolution / _side(target, config)
    wide, high = (max(step, int(side * factor + 1e-6) // step * step) for side in target.bucket)
    grown = max(wide / target.bucket[0], high / target.bucket[1])
    scaled = (max(wide, round(target.scaled[0] * grown)), max(high, round(target.scaled[1] * grown)))
    left = min(scaled[0] - wide, round(target.crop[0] * grown))
    top = min(scaled[1] - high, round(target.crop[1] * grown))
    return Fit(size, scaled, (left, top), (wide, high))


def cut_control(image: Image.Image, how: Fit, flipped: bool) -> np.ndarray:
    """(H, W, 3) uint8, mirrored as its target is."""
    part = apply(image, how)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else part)
