"""Loss masks: where in a picture the loss looks. White counts, black counts only as much as the floor says."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from ..config import DataConfig
from ..pictures.films import frames_of
from ..pictures.reading import PictureError, open_picture, open_rgb
from .buckets import Fit, salient
from .dataset import Picture


def mask_image(picture: Picture, source: str, alpha: Image.Image | None) -> Image.Image | None:
    """The mask of a picture as 8-bit grey in the picture's size: its opacity, or its mask file; None when it has none. Raises PictureError."""
    if source == "alpha":
        return alpha
    if source != "file" or picture.mask is None:
        return None
    try:
        return (
            open_rgb(picture.mask).convert("L").resize((picture.width_px, picture.height_px), Image.Resampling.BILINEAR)
        )
    except PictureError as error:
        raise PictureError("mask.unreadable", mask=picture.mask.name, reason=error) from error


def open_trained(picture: Picture, data: bytes | None = None) -> tuple[Image.Image, Image.Image | None]:
    """(the picture, its mask where its set asks for one), both of the size the scan found. `data`: the file's bytes, where they are read already.

    Of a film the first frame, without a mask. Raises PictureError.
    """
    if picture.film is not None:
        return next(frames_of(picture.path, picture.film, picture.clips[0][:1], picture.data.background)), None
    opened = open_picture(picture.path, picture.data.background, data)
    if opened.rgb.size != (picture.width_px, picture.height_px):
        raise PictureError("picture.changed")
    return opened.rgb, mask_image(picture, picture.data.masks, opened.alpha)


def open_input_mask(picture: Picture, data: bytes | None = None) -> Image.Image:
    """What an inpainting model is asked to fill of a picture, white on black, of the picture's size. Raises PictureError where nothing says it."""
    if picture.data.input_mask == "alpha":
        alpha = open_picture(picture.path, picture.data.background, data).alpha
        mask = None if alpha is None else ImageOps.invert(alpha)
    else:
        mask = mask_image(picture, "file", None)
    if mask is None:
        raise PictureError("picture.no_input_mask", source=picture.data.input_mask)
    return mask


def placed(image: Image.Image, mask: Image.Image | None, how: Fit, config: DataConfig) -> Fit:
    """`how` with the crop moved to where the set wants it."""
    return salient(image, how, mask) if config.crop == "salient" else how


def on_latent(mask: Image.Image, latent: torch.Tensor) -> torch.Tensor | None:
    """Shares of white (1, 1, [1,] h, w) for a latent (1, C, [T,] h, w), from a mask that is cut as the picture is: averaged over each latent pixel.

    None when all white. Raises PictureError for a mask that leaves nothing.
    """
    values = torch.from_numpy(np.asarray(mask, np.float32) / 255.0)[None, None]
    if values.min() == 1.0:
        return None
    small = F.interpolate(values, latent.shape[-2:], mode="area")
    if not (small > 0).any():
        raise PictureError("mask.black")
    return small[:, :, None] if latent.ndim == 5 else small
