"""Emoji on a canvas of 128 px: cut out, turned to another colour, enlarged smoothly, laid over a plain ground."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from .world import Emoji

SIDE_PX = 128
SPRITE_PX = 64
WHITE = (255, 255, 255)


@cache
def sprite(package: Path, picture: str) -> Image.Image:
    """The emoji as the package has it: RGBA, 64 x 64 px."""
    return Image.open(package / "img" / "google" / "64" / picture).convert("RGBA")


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """The picture with every hue moved by `degrees` around the colour circle; lightness, saturation and alpha stay."""
    if not degrees:
        return image
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    moved = hue.point([round(h + degrees * 255 / 360) % 255 for h in range(256)])
    result = Image.merge("HSV", (moved, saturation, value)).convert("RGB")
    result.putalpha(image.getchannel("A"))
    return result


def main_hue(image: Image.Image) -> tuple[float, float, float]:
    """(hue in degrees, share of the picture's colour that lies within 30 degrees of it, mean chroma of what is not clear); both 0..1."""
    pixels = np.asarray(image, float).reshape(-1, 4) / 255
    chroma = (pixels[:, :3].max(1) - pixels[:, :3].min(1)) * pixels[:, 3]
    if chroma.sum() < 1e-6:
        return 0.0, 0.0, 0.0
    hues = np.array([colorsys.rgb_to_hsv(*p)[0] for p in pixels[:, :3]]) * 2 * np.pi
    centre = float(np.angle((chroma * np.exp(1j * hues)).sum()))
    near = np.abs(np.angle(np.exp(1j * (hues - centre)))) < np.pi / 6
    return (
        float(np.degrees(centre) % 360),
        float(chroma[near].sum() / chroma.sum()),
        float(chroma.sum() / pixels[:, 3].sum()),
    )


def canvas(ground: tuple[int, int, int] = WHITE) -> np.ndarray:
    """An empty picture, (128, 128, 3) float32 in 0..255."""
    return np.broadcast_to(np.array(ground, np.float32), (SIDE_PX, SIDE_PX, 3)).copy()


def lay(picture: np.ndarray, image: Image.Image, x: float, y: float, side: float, mirrored: bool = False) -> None:
    """Lays an emoji of `side` px over the picture in place, its centre at (x, y) px; what reaches beyond the picture is cut off."""
    side = max(1, round(side))
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = np.asarray(image.convert("RGBa").resize((side, side), Image.Resampling.BICUBIC), np.float32)
    left, top = round(x - side / 2), round(y - side / 2)
    x0, y0, x1, y1 = max(0, left), max(0, top), min(SIDE_PX, left + side), min(SIDE_PX, top + side)
    if x0 >= x1 or y0 >= y1:
        return
    part = layer[y0 - top : y1 - top, x0 - left : x1 - left]
    below = picture[y0:y1, x0:x1]
    picture[y0:y1, x0:x1] = np.clip(part[..., :3] + below * (1 - part[..., 3:] / 255), 0, 255)


def varied_picture(package: Path, emoji: Sequence[Emoji], rng: random.Random) -> np.ndarray:
    """A picture for the VAE: any emoji in any colour, size and place, alone or several, on any ground. (128, 128, 3), 0..255."""
    ground = WHITE if rng.random() < 0.5 else (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    picture = canvas(ground)
    count = 1 if rng.random() < 0.7 else rng.randrange(2, 5)
    for _ in range(count):
        image = sprite(package, rng.choice(emoji).picture)
        if rng.random() < 0.4:
            image = turned(image, rng.uniform(0, 360))
        side = rng.uniform(100, 132) if count == 1 else rng.uniform(52, 84)
        reach = max(4.0, (SIDE_PX - side) / 2)
        x, y = SIDE_PX / 2 + rng.uniform(-reach, reach), SIDE_PX / 2 + rng.uniform(-reach, reach)
        lay(picture, image, x, y, side, mirrored=rng.random() < 0.5)
    return picture


def plain_picture(package: Path, emoji: Emoji) -> np.ndarray:
    """The emoji alone, filling a white canvas. (128, 128, 3), 0..255."""
    picture = canvas()
    lay(picture, sprite(package, emoji.picture), SIDE_PX / 2, SIDE_PX / 2, SIDE_PX)
    return picture


def busiest_corner(picture: np.ndarray, side: int, rng: random.Random, tries: int = 3) -> tuple[int, int]:
    """(top, left) of a square of `side` px: of a few random ones the one that varies most, so that few are of the ground alone."""
    reach = SIDE_PX - side
    corners = [(rng.randrange(0, reach + 1), rng.randrange(0, reach + 1)) for _ in range(tries)]
    return max(corners, key=lambda c: float(picture[c[0] : c[0] + side : 4, c[1] : c[1] + side : 4].std()))
