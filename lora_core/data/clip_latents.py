"""Clips of films to latents: named by their frames, then decoded, encoded and let go one at a time."""

from __future__ import annotations

import dataclasses
import itertools

import torch

from ..pictures.reading import PictureError
from .buckets import crops, fits
from .clips import Clip, digest_of, mask_of, mask_on_latent, opened, pixels_of
from .dataset import Picture
from .encoder import TRANSFORM, Crop, Cut, Encoder, Views, as_stored, digest, encode_pixels, require_finite
from .masks import placed
from .shown import kept_of_clip
from .store import Store, Tensors, key_of

GUIDED = 1  # counted up when something else is kept of the frames that a clip is shown


def prepared(picture: Picture, encoder: Encoder, store: Store) -> Views:
    """For each clip of a film, as for a picture; none is decoded but, for a salient crop, its first frame. Raises PictureError."""
    config, out = picture.data, []
    of_mask = digest_of(picture.mask) if picture.mask else config.masks == "alpha"
    made_from = [TRANSFORM, digest_of(picture.path), of_mask, config.background, config.latents]
    guided = _guided(picture, encoder)
    made_from += [encoder.identity, encoder.beside is not None, [*guided], *[GUIDED][: guided[0]]]
    showing = encoder.showing
    needed = showing is not None and showing.of_film and showing.needed
    clips = [clip for clip in picture.clips if len(clip) > 1 or not needed]
    if not clips:
        raise PictureError("picture.no_first_frame")
    buckets = fits(picture.width_px, picture.height_px, config)
    sized = [how for bucket in buckets for how in crops(bucket, picture.name, config)]
    for clip, how in itertools.product(clips, sized):
        views: list[tuple[str, Cut | None]] = []
        for flipped in (False, True) if config.flip else (False,):
            key = key_of(*made_from, clip, dataclasses.astuple(how), config.crop == "salient", flipped)
            stored = store.get(key)
            if not views and stored:
                how = as_stored(how, stored)
            elif not views and config.crop == "salient":
                how = placed(opened(picture, clip), None, how, config)
            views.append((key, None if stored else Cut(key, how, None, None, flipped=flipped)))
        out.append(Crop(how, views, clip))
    return out


def _guided(picture: Picture, encoder: Encoder) -> tuple[bool, bool]:
    """Whether the clips of a film are shown their first frame, and their last one."""
    showing, config = encoder.showing, picture.data
    shown = encoder.guide is not None and showing is not None and showing.share(config) > 0
    return shown, shown and config.last_frame


def encoded(picture: Picture, cut: Cut, clip: Clip, encoder: Encoder) -> Tensors:
    """Decoded, encoded and let go."""
    frames = pixels_of(picture, clip, cut.fit, cut.flipped)
    tensors: Tensors = {"crop": torch.tensor(cut.fit.crop), "pixels": digest(frames)}
    pixels = torch.from_numpy(frames).float().div_(255.0)
    encode_pixels(encoder, picture, pixels, tensors)
    guided, last = _guided(picture, encoder)
    if guided and len(clip) > 1:
        assert encoder.guide is not None
        tensors |= kept_of_clip([frames[0], *([frames[-1]] if last else [])], encoder.guide(pixels, last))
    require_finite(picture, tensors)
    mask = mask_of(picture, clip, cut.fit, cut.flipped)
    if mask is not None and (weights := mask_on_latent(mask, tensors["latent"], len(clip))) is not None:
        tensors["mask"] = weights
    elif picture.data.masks == "alpha" and mask is None:
        tensors["no_alpha"] = torch.zeros(1)
    return tensors
