"""Loss masks: where in a picture the loss looks. White counts, black counts only as much as the floor says."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import buckets
from .folder import Picture
from .pictures import PictureError, open_alpha, open_rgb


def open_mask(picture: Picture, source: str) -> Image.Image | None:
    """The mask of a picture as 8-bit grey in the picture's size, from its alpha channel or its mask file; None when it has none. Raises PictureError."""
    if source == "alpha":
        return open_alpha(picture.path)
    if source != "file" or picture.mask is None:
        return None
    try:
        return open_rgb(picture.mask).convert("L").resize((picture.width_px, picture.height_px), Image.Resampling.BILINEAR)
    except PictureError as error:
        raise PictureError(f"its mask {picture.mask.name} {error}") from error


def latent_mask(mask: Image.Image, how: buckets.Fit, flipped: bool, latent: torch.Tensor, floor: float) -> torch.Tensor | None:
    """Weights (1, 1, [1,] h, w) for a latent (1, C, [T,] h, w): the mask cut as the picture is, averaged over each latent pixel. None when all white.

    Raises PictureError for a mask that leaves nothing.
    """
    cut = buckets.apply(mask, how)
    cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cut
    values = torch.from_numpy(np.asarray(cut, np.float32) / 255.0)[None, None]
    if values.min() == 1.0:
        return None
    small = F.interpolate(values, latent.shape[-2:], mode="area")
    if not (small > 0).any():
        raise PictureError("its mask is black everywhere in the part that is trained")
    weights = floor + (1 - floor) * small
    return weights[:, :, None] if latent.ndim == 5 else weights
