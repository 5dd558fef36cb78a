"""The picture that model lists show beside a file."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ..lora_core.files import write_bytes

PREVIEW_PX = 512


def write_preview(path: Path, image: Image.Image) -> None:
    """Writes `<name>.preview.png`, the name all galleries look for: at most 512 px, the picture alone, no prompt and no workflow in it."""
    small = image.convert("RGB")
    small.thumbnail((PREVIEW_PX, PREVIEW_PX))
    data = io.BytesIO()
    small.save(data, "PNG")
    write_bytes(path, data.getvalue())
