"""What makes latents, and what it is handed: one view of a picture, or of a clip of a film, cut."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..messages.errors import LoomError
from .buckets import Fit
from .clips import Clip
from .dataset import Picture
from .shown import OfFrames, Showing
from .store import Tensors

TRANSFORM = 1  # counted up when the same file would be decoded, scaled or cut another way


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What makes latents of pictures. `picture`: (1, H, W, 3) float32 in [0, 1] -> (1, C, [T,] h, w) in the model's units.

    For clips (frames, H, W, 3). `identity` names it in the cache. `spread`: the same -> (mean, standard deviation); `beside`: what else the network
    is told about a picture; `wired`: latents as other nodes have them -> the model's units; `shown`: a control picture as `picture` takes it ->
    (1, C, [T,] h, w) as the network is shown it, in the way that `showing` says; `guide`: a clip, and whether its last frame is shown too -> what the
    network is shown of it. None where the model has no such thing.
    """

    picture: Callable[[torch.Tensor], torch.Tensor]
    identity: str = ""
    spread: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    beside: Callable[[torch.Tensor], torch.Tensor] | None = None
    wired: Callable[[torch.Tensor], torch.Tensor] | None = None
    shown: Callable[[torch.Tensor], torch.Tensor] | None = None
    showing: Showing | None = None
    guide: Callable[[torch.Tensor, bool], OfFrames] | None = None


@dataclasses.dataclass(frozen=True)
class Cut:
    """A picture cut to one view: `pixels` (H, W, 3) uint8, `mask` as 8-bit grey or None, `controls` (H, W, 3) uint8, each of its own size.

    What a clip shows is decoded later.
    """

    key: str
    fit: Fit
    pixels: np.ndarray | None
    mask: Image.Image | None
    controls: tuple[np.ndarray, ...] = ()
    flipped: bool = False
    input_masks: tuple[np.ndarray, ...] = ()


class Crop(NamedTuple):
    """One crop in one bucket: (key, the cut picture unless the store has it) plain and mirrored. `clip`: the frames it is of."""

    fit: Fit
    views: list[tuple[str, Cut | None]]
    clip: Clip = ()


Views = list[Crop]


def encode_pixels(encoder: Encoder, picture: Picture, pixels: torch.Tensor, into: Tensors) -> None:
    """What the encoder makes of (1 or frames, H, W, 3), on the CPU."""
    made: Tensors = {}
    if picture.data.latents == "sampled":
        if encoder.spread is None:
            raise LoomError("data.latents.no_spread", field="data.latents")
        made["latent"], made["spread"] = encoder.spread(pixels)
    else:
        made["latent"] = encoder.picture(pixels)
    if encoder.beside is not None:
        made["beside"] = encoder.beside(pixels)
    into |= {name: t.detach().float().cpu() if t.is_floating_point() else t for name, t in made.items()}


def as_stored(how: Fit, stored: Tensors) -> Fit:
    """Cut where it was when it was encoded."""
    return dataclasses.replace(how, crop=(int(stored["crop"][0]), int(stored["crop"][1])))


def require_finite(picture: Picture, tensors: Tensors) -> None:
    if not torch.isfinite(tensors["latent"]).all():
        raise LoomError("vae.not_finite", name=picture.name)


def digest(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(
        np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest(), np.uint8).copy()
    )
