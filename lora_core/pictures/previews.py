"""The picture that model lists show beside a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..disk.files import write_bytes
from ..messages.errors import LoomError

PREVIEW_PX = 512


def write_preview(path: Path, image: Image.Image) -> None:
    """Writes `<name>.preview.png`, the name all galleries look for: at most 512 px, the picture alone, no prompt and no workflow in it."""
    small = image.convert("RGB")
    small.thumbnail((PREVIEW_PX, PREVIEW_PX))
    data = io.BytesIO()
    small.save(data, "PNG")
    write_bytes(path, data.getvalue())


def first_picture(images: torch.Tensor) -> Image.Image:
    """The first of an IMAGE batch (B, H, W, 1, 3 or 4), values in [0, 1]."""
    if not len(images):
        raise LoomError("preview.empty", field="preview")
    pixels = np.clip(images[0].detach().float().cpu().numpy() * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
