"""Small pictures of pictures and films, for looking at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .films import first_frame
from .reading import FILMS, open_rgb, small_picture

MOST_CONTROLS = 3
MOST_CELLS = 4096  # of a strip


def thumbnail(path: Path, side_px: int, background: str = "white") -> Image.Image:
    """A picture, or the first frame of a film or of a folder of frames, at most side_px on each side. Raises PictureError."""
    if not _moves(path):
        return small_picture(path, side_px, background)
    small = first_frame(path, background)
    small.thumbnail((side_px, side_px))
    return small


def strip(pictures: Sequence[Image.Image | None], side_px: int, columns: int) -> bytes:
    """Small pictures in square cells, so many in a row, as one JPEG; the cell of None is empty, and pictures behind MOST_CELLS are left out."""
    pictures = pictures[:MOST_CELLS]
    rows = max(1, -(-len(pictures) // columns))
    sheet = Image.new("RGB", (columns * side_px, rows * side_px), "#26282d")
    for n, picture in enumerate(pictures):
        if picture is not None:
            x, y = n % columns * side_px, n // columns * side_px
            sheet.paste(picture, (x + (side_px - picture.width) // 2, y + (side_px - picture.height) // 2))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=82)
    return out.getvalue()


def with_controls(target: Image.Image, controls: Sequence[Path], background: str = "white") -> Image.Image:
    """A small picture with its control pictures in a column at its left, the longer side as before. Raises PictureError.

    At most MOST_CONTROLS of them are drawn.
    """
    if not controls:
        return target
    side, gap = max(target.size), 4
    column = [small_picture(path, max(8, side // 2), background) for path in controls[:MOST_CONTROLS]]
    left = max(image.width for image in column)
    height = sum(image.height for image in column) + gap * (len(column) - 1)
    out = Image.new("RGB", (left + gap + target.width, max(height, target.height)), "white")
    y = (out.height - height) // 2
    for image in column:
        out.paste(image, ((left - image.width) // 2, y))
        y += image.height + gap
    out.paste(target, (left + gap, (out.height - target.height) // 2))
    out.thumbnail((side, side))
    return out


def whole_picture(path: Path, background: str = "white") -> Image.Image:
    """A picture, or the first frame of a film or of a folder of frames, as large as it is. Raises PictureError."""
    return first_frame(path, background) if _moves(path) else open_rgb(path, background)


def _moves(path: Path) -> bool:
    return path.suffix.lower() in FILMS or path.is_dir()
