"""Pictures as the bytes of a file."""

from __future__ import annotations

import io

from PIL import Image


def as_png(image: Image.Image, compress_level: int = 6) -> bytes:
    """Without loss; `compress_level` from 0 (fast) to 9 (small)."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=compress_level)
    return data.getvalue()
