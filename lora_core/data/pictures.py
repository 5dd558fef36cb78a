"""Opening one picture the right way: header first, EXIF applied, alpha on white, 16 bit scaled, RGB out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})

_ORIENTATION = 0x0112
_BROKEN = (OSError, UnidentifiedImageError, ValueError, SyntaxError, RuntimeError, KeyError, Image.DecompressionBombError)


class PictureError(Exception):
    """Why one picture cannot be used; the message does not repeat its name."""


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, EXIF rotation applied, from the header alone. Raises PictureError."""
    try:
        with Image.open(path) as image:
            width, height = _stored_size(image)
            if width * height > MAX_PIXELS:
                raise PictureError(f"has {width} x {height} pixels, more than the {MAX_PIXELS // 10**6} million allowed")
            may_be_turned = image.format != "PNG" or "exif" in image.info  # asking a PNG without EXIF for it would decode the picture
            turned = may_be_turned and image.getexif().get(_ORIENTATION, 1) >= 5
    except _BROKEN as error:
        raise PictureError(f"cannot be read as a picture ({_reason(error)})") from error
    return (height, width) if turned else (width, height)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Size before rotation; Pillow already turns that of a TIFF."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tags[256], tags[257]
    return image.size


def open_rgb(path: Path) -> Image.Image:
    """The picture as 8-bit RGB. Raises PictureError when its data is broken."""
    read_size(path)
    try:
        with Image.open(path) as image:
            image.load()
            shown = ImageOps.exif_transpose(image) or image
            return _to_rgb(shown)
    except _BROKEN as error:
        raise PictureError(f"is damaged ({_reason(error)})") from error


def open_alpha(path: Path) -> Image.Image | None:
    """The picture's opacity as 8-bit grey, turned as the picture is; None when it has none."""
    try:
        with Image.open(path) as image:
            image.load()
            shown = ImageOps.exif_transpose(image) or image
            return shown.convert("RGBA").getchannel("A") if shown.mode in ("RGBA", "LA", "PA") or "transparency" in shown.info else None
    except _BROKEN as error:
        raise PictureError(f"is damaged ({_reason(error)})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bit grey: scale instead of clipping to white
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
        return Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    return "not a known picture format" if isinstance(error, UnidentifiedImageError) else str(error).splitlines()[0][:120]
