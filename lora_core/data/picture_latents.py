"""Pictures to latents: decoded and cut to each of their views, then encoded, with what is shown of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as safetensors_load

from ..messages.errors import LoomError
from ..pictures.reading import PictureError
from .buckets import Fit, apply, crops, fits
from .clips import digest_of
from .dataset import Picture
from .encoder import TRANSFORM, Crop, Cut, Encoder, Views, as_stored, digest, encode_pixels, require_finite
from .input_masks import drawn
from .masks import on_latent, open_input_mask, open_trained, placed
from .shown import Showing, control_fit, cut_control, kept, kept_masked, open_control
from .store import Store, Tensors, key_of

DRAWN = 1  # counted up when random input masks are drawn another way


class _Beside(NamedTuple):
    """What is shown of a picture: its `controls`; for an inpainting model its `input_mask`, or the `seed` that some are drawn by."""

    controls: tuple[Image.Image, ...] = ()
    input_mask: Image.Image | None = None
    seed: bytes = b""

    def masks(self, how: Fit, flipped: bool, count: int) -> tuple[np.ndarray, ...]:
        """(H, W) uint8 each, for a picture that is cut so."""
        if self.input_mask is not None:
            return (cut_control(self.input_mask, how, flipped),)
        seeds = (self.seed + f"{dataclasses.astuple(how)} {flipped} {n}".encode() for n in range(count))
        return tuple(drawn(seed, how.bucket) for seed in seeds)


def prepared(picture: Picture, encoder: Encoder, store: Store) -> Views:
    """For every crop in every bucket of a picture: its fit, and (key, the cut picture unless the store has the entry) plain and mirrored.

    Raises PictureError.
    """
    data, config = _bytes(picture.path), picture.data
    of_mask = hashlib.sha256(_bytes(picture.mask)).digest() if picture.mask else config.masks == "alpha"
    made_from: list[Any] = [
        TRANSFORM,
        hashlib.sha256(data).digest(),
        of_mask,
        config.background,
        config.latents,
        encoder.identity,
        encoder.beside is not None,
    ]
    if picture.is_latent:
        key = key_of(*made_from)
        whole = _whole(picture)
        cut = None if store.get(key) else Cut(key, whole, np.frombuffer(data, np.uint8), None)
        return [Crop(whole, [(key, cut)])]
    controls = _controls_of(picture, encoder.showing)
    made_from += _of_shown(picture, controls, encoder.showing)
    cuts, image, mask, beside = [], None, None, _Beside()
    for base in fits(picture.width_px, picture.height_px, config):
        for how in crops(base, picture.name, config):
            keys = [
                key_of(*made_from, dataclasses.astuple(how), config.crop == "salient", f)
                for f in ((False, True) if config.flip else (False,))
            ]
            stored = [store.get(key) for key in keys]
            if any(k is None for k in stored) and image is None:
                image, mask = open_trained(picture, data)
                beside = _beside(picture, controls, data, encoder.showing)
            first = next((k for k in stored if k is not None), None)
            if first is not None:
                where = as_stored(how, first)
            else:
                assert image is not None
                where = placed(image, mask, how, config)
            views: list[tuple[str, Cut | None]] = []
            for flipped, (key, latent) in enumerate(zip(keys, stored, strict=True)):
                views.append(
                    (
                        key,
                        None
                        if latent is not None or image is None
                        else _with_shown(
                            _cut(key, image, mask, where, bool(flipped)), picture, beside, encoder.showing
                        ),
                    )
                )
            cuts.append(Crop(where, views))
    return cuts


def _controls_of(picture: Picture, showing: Showing | None) -> tuple[Path, ...]:
    """As many of its control pictures as the model takes. Raises PictureError where it needs one and there is none."""
    if showing is None or showing.filled:
        return ()
    if showing.of_film and showing.needed:
        raise PictureError("picture.no_first_frame")
    if showing.needed and not picture.controls:
        raise PictureError("picture.no_control")
    return picture.controls[: showing.limit]


def _of_shown(picture: Picture, controls: Sequence[Path], showing: Showing | None) -> list[Any]:
    """What a store's entry is made from beside the target; nothing for pictures without."""
    config = picture.data
    if showing is not None and showing.filled:
        of_mask = digest_of(picture.mask) if picture.mask and config.input_mask == "file" else ""
        return ["filled", DRAWN, config.input_mask, config.input_masks, of_mask]
    if not controls or showing is None:
        return []
    contents = [hashlib.sha256(_bytes(path)).digest() for path in controls]
    return ["shown", contents, picture.data.control_resolution, showing.as_target, showing.to_text]


def _beside(picture: Picture, controls: Sequence[Path], data: bytes, showing: Showing | None) -> _Beside:
    """What is shown of a picture, opened. Raises PictureError."""
    config = picture.data
    if showing is None or not showing.filled:
        return _Beside(tuple(open_control(path, config.background) for path in controls))
    seed = hashlib.sha256(data).digest()
    return _Beside((), None if config.input_mask == "random" else open_input_mask(picture, data), seed)


def _with_shown(cut: Cut, picture: Picture, beside: _Beside, showing: Showing | None) -> Cut:
    """A cut picture with what is shown of it, cut and mirrored as it is."""
    how, flipped = cut.fit, cut.flipped
    if showing is None:
        return cut
    if showing.filled:
        return dataclasses.replace(cut, input_masks=beside.masks(how, flipped, picture.data.input_masks))
    fitted = [(c, control_fit(c.size, how, picture.data, showing.as_target)) for c in beside.controls]
    return dataclasses.replace(cut, controls=tuple(cut_control(c, fit, flipped) for c, fit in fitted))


def encoded(picture: Picture, cut: Cut, encoder: Encoder) -> Tensors:
    """A cut picture or a wired latent, encoded, with what is shown of it. Raises LoomError."""
    assert cut.pixels is not None
    tensors: Tensors = {"crop": torch.tensor(cut.fit.crop), "pixels": digest(cut.pixels)}
    if picture.is_latent:
        if encoder.wired is None:
            raise LoomError("base.no_wired_latents", name=picture.name)
        tensors["latent"] = encoder.wired(safetensors_load(cut.pixels.tobytes())["samples"]).detach().float().cpu()
    else:
        pixels = torch.from_numpy(cut.pixels.astype(np.float32) / 255.0)[None]
        encode_pixels(encoder, picture, pixels, tensors)
        if cut.input_masks:
            assert encoder.shown is not None
            tensors |= kept_masked(cut.pixels, cut.input_masks, encoder.shown)
        if cut.controls:
            _encode_controls(cut, encoder, tensors)
    require_finite(picture, tensors)
    if cut.mask is not None and (weights := on_latent(cut.mask, tensors["latent"])) is not None:
        tensors["mask"] = weights
    elif picture.data.masks == "alpha" and cut.mask is None:
        tensors["no_alpha"] = torch.zeros(1)
    return tensors


def _encode_controls(cut: Cut, encoder: Encoder, into: Tensors) -> None:
    assert encoder.shown is not None
    assert encoder.showing is not None
    shown = kept(cut.controls, encoder.showing, encoder.shown)
    into |= {name: t.detach().float().cpu() if t.is_floating_point() else t for name, t in shown.items()}


def _cut(key: str, image: Image.Image, mask: Image.Image | None, how: Fit, flipped: bool) -> Cut:
    parts = [apply(i, how) if i is not None else None for i in (image, mask)]
    if flipped:
        parts = [i.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i is not None else None for i in parts]
    return Cut(key, how, np.asarray(parts[0]), parts[1], flipped=flipped)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PictureError("picture.unopened", reason=error.strerror) from error


def _whole(picture: Picture) -> Fit:
    """A latent from elsewhere is taken as it is."""
    size = (picture.width_px, picture.height_px)
    return Fit(size, size, (0, 0), size)
