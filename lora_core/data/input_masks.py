"""Input masks: what of a picture an inpainting model is asked to fill. White is filled; the rest is what the model is shown.

Drawn ones are mixed as inpainting models were trained: thick broken lines and boxes (Suvorov et al. 2022, LaMa, arXiv 2109.07161), and now and then everything.
"""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 256  # of the pictures that the sizes below are for; others are scaled
LINES, CORNERS, WIDTH_PX, LENGTH_PX = (1, 5), (1, 6), (10, 100), (10, 200)
BOXES, BOX_PX, MARGIN_PX = (1, 3), (30, 150), 10
EVERYTHING = 0.25  # share of masks that leave nothing to be seen, as Stable Diffusion's inpainting models had
LEAST = 0.01  # of a picture that is filled; less teaches nothing


def drawn(seed: bytes, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) uint8, 0 or 255, for a picture of `size` (width, height) in px; the same for the same seed."""
    rng = random.Random(int.from_bytes(hashlib.sha256(seed).digest()[:8], "big"))
    if rng.random() < EVERYTHING:
        return np.full((size[1], size[0]), 255, np.uint8)
    while True:
        mask = Image.new("L", size)
        pen, scale = ImageDraw.Draw(mask), min(size) / SIDE_PX
        kind = rng.random()
        if kind < 2 / 3:
            _lines(pen, rng, size, scale)
        if kind > 1 / 3:
            _boxes(pen, rng, size, scale)
        out = np.asarray(mask)
        if (out > 0).mean() >= LEAST:
            return out


def _lines(pen: ImageDraw.ImageDraw, rng: random.Random, size: tuple[int, int], scale: float) -> None:
    """Lines of some corners that turn back and forth, each of one thickness, with round ends."""
    for _ in range(rng.randint(*LINES)):
        x, y = rng.random() * size[0], rng.random() * size[1]
        width, angle = max(1.0, rng.uniform(*WIDTH_PX) * scale), rng.uniform(0, 2 * math.pi)
        for corner in range(rng.randint(*CORNERS)):
            turn = rng.uniform(0.3, 2.2)
            angle += turn if corner % 2 else math.pi - turn
            length = rng.uniform(*LENGTH_PX) * scale
            ahead = (
                min(max(x + length * math.cos(angle), 0.0), float(size[0])),
                min(max(y + length * math.sin(angle), 0.0), float(size[1])),
            )
            pen.line([(x, y), ahead], fill=255, width=round(width) or 1)
            for place in ((x, y), ahead):
                pen.ellipse([c + sign * width / 2 for sign in (-1, 1) for c in place], fill=255)
            x, y = ahead


def _boxes(pen: ImageDraw.ImageDraw, rng: random.Random, size: tuple[int, int], scale: float) -> None:
    """Boxes that keep a margin to the edges."""
    margin = MARGIN_PX * scale
    for _ in range(rng.randint(*BOXES)):
        wide, high = (min(rng.uniform(*BOX_PX) * scale, side - 2 * margin) for side in size)
        left, top = rng.uniform(margin, size[0] - margin - wide), rng.uniform(margin, size[1] - margin - high)
        pen.rectangle([left, top, left + wide, top + high], fill=255)


def hidden(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) float32 in [0, 1] with what the mask (H, W) fills made grey, as the model is shown it."""
    return np.where((mask >= 128)[..., None], np.float32(0.5), pixels)
