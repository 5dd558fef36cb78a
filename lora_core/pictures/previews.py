"""The picture that model lists show beside a file."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ..disk.files import write_bytes
from ..messages.errors import LoomError
from .encoded import as_png

PREVIEW_PX = 512


def write_preview(path: Path, image: Image.Image) -> None:
    """Writes `<name>.preview.png`, the name all galleries look for: at most 512 px, the picture alone, no prompt and no workflow in it."""
    small = image.convert("RGB")
    small.thumbnail((PREVIEW_PX, PREVIEW_PX))
    write_bytes(path, as_png(small))


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """(H, W, 1, 3 or 4), values in [0, 1], as an 8-bit picture."""
    values = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def first_picture(images: torch.Tensor) -> Image.Image:
    """The first of an IMAGE batch (B, H, W, 1, 3 or 4), values in [0, 1]."""
    if not len(images):
        raise LoomError("preview.empty", field="preview")
    return as_picture(images[0, ..., :3])
