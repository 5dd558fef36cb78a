"""The closed little world the toy model knows: one coloured shape on a plain ground, 64 x 64 px, and the ruler that reads pictures back.

Nothing here imports torch or a model: pictures are drawn with Pillow, and `read_scene` measures them without any learned part,
so a score is a statement about pixels.
"""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 64
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 190),
    "orange": (245, 130, 30),
}
GROUNDS = {"white": (245, 245, 245), "black": (20, 20, 20), "gray": (128, 128, 128), "brown": (105, 70, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
_SUPERSAMPLE = 4


@dataclasses.dataclass(frozen=True)
class Scene:
    """One shape on one ground; `size_px` is the side of its bounding box, `x_px`, `y_px` its centre."""

    shape: str
    color: str
    ground: str
    size_px: float = 34.0
    x_px: float = 32.0
    y_px: float = 32.0

    @property
    def caption(self) -> str:
        return f"a {self.color} {self.shape} on a {self.ground} ground"


def all_scenes() -> list[Scene]:
    """The 96 combinations, centred, in a fixed order."""
    return [Scene(s, c, g) for s in SHAPES for c in COLORS for g in GROUNDS]


def random_scene(rng: random.Random, **fixed: str) -> Scene:
    """A scene with every attribute not named in `fixed` drawn from `rng`; the shape always lies inside the picture."""
    size = rng.uniform(26, 42)
    reach = (SIZE_PX - size) / 2 - 2
    return Scene(
        shape=fixed.get("shape") or rng.choice(SHAPES),
        color=fixed.get("color") or rng.choice(list(COLORS)),
        ground=fixed.get("ground") or rng.choice(list(GROUNDS)),
        size_px=size,
        x_px=SIZE_PX / 2 + rng.uniform(-reach, reach),
        y_px=SIZE_PX / 2 + rng.uniform(-reach, reach),
    )


def outline(shape: str, x: float, y: float, size: float) -> list[tuple[float, float]]:
    """The polygon of a shape centred at (x, y) in a box of side `size`."""
    h = size / 2
    if shape == "circle":
        return [(x + h * math.cos(a), y + h * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 64, endpoint=False)]
    if shape == "square":
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "triangle":
        return [(x, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "cross":
        t = h / 3
        corners = [
            (-t, -h),
            (t, -h),
            (t, -t),
            (h, -t),
            (h, t),
            (t, t),
            (t, h),
            (-t, h),
            (-t, t),
            (-h, t),
            (-h, -t),
            (-t, -t),
        ]
        return [(x + dx, y + dy) for dx, dy in corners]
    raise ValueError(f"shape: got {shape!r}; allowed are {', '.join(SHAPES)}.")


class Canvas:
    """A picture drawn at four times its size and reduced once, so edges are smooth and the same everywhere."""

    def __init__(self, ground: tuple[int, int, int], size_px: int = SIZE_PX):
        self._size = size_px
        side = size_px * _SUPERSAMPLE
        self._image = Image.new("RGB", (side, side), ground)
        self._pen = ImageDraw.Draw(self._image)

    def polygon(self, points: list[tuple[float, float]], color: tuple[int, int, int]) -> Canvas:
        self._pen.polygon([(x * _SUPERSAMPLE, y * _SUPERSAMPLE) for x, y in points], fill=color)
        return self

    def finish(self) -> Image.Image:
        return self._image.resize((self._size, self._size), Image.Resampling.BOX)


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of 64 x 64 px."""
    points = outline(scene.shape, scene.x_px, scene.y_px, scene.size_px)
    return Canvas(GROUNDS[scene.ground]).polygon(points, COLORS[scene.color]).finish()


# ---- the ruler -------------------------------------------------------------------------------------------------------


def nearest(color: np.ndarray, table: dict[str, tuple[int, int, int]]) -> str:
    """The table's entry closest to `color` (3,) in RGB."""
    return min(table, key=lambda name: float(np.sum((color - np.array(table[name], float)) ** 2)))


def figure_mask(pixels: np.ndarray, ground: np.ndarray, threshold: float = 90.0) -> np.ndarray:
    """True where a pixel differs from the ground by more than `threshold` in RGB distance. (H, W, 3) -> (H, W)."""
    return np.sqrt(((pixels - ground) ** 2).sum(-1)) > threshold


def border_color(pixels: np.ndarray) -> np.ndarray:
    """Median colour of the outermost two pixels: the ground."""
    edge = np.concatenate(
        [
            pixels[:2].reshape(-1, 3),
            pixels[-2:].reshape(-1, 3),
            pixels[:, :2].reshape(-1, 3),
            pixels[:, -2:].reshape(-1, 3),
        ]
    )
    return np.median(edge, axis=0)


def _template(shape: str, height: int, width: int) -> np.ndarray:
    """Mask of a shape stretched to a box of height x width."""
    canvas = Canvas((0, 0, 0), SIZE_PX).polygon(outline(shape, 32, 32, 64), (255, 255, 255)).finish()
    return np.asarray(canvas.convert("L").resize((width, height), Image.Resampling.BOX), float) > 127


def read_scene(image: Image.Image) -> tuple[str, str, str]:
    """(shape, colour, ground) that the picture shows; shape is "nothing" when no figure of at least 12 px stands on the ground."""
    pixels = np.asarray(image.convert("RGB"), float)
    ground = border_color(pixels)
    mask = figure_mask(pixels, ground)
    rows, cols = np.flatnonzero(mask.sum(1) > 1), np.flatnonzero(mask.sum(0) > 1)
    ground_name = nearest(ground, GROUNDS)
    if len(rows) < 12 or len(cols) < 12:
        return "nothing", "nothing", ground_name
    box = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]

    def overlap(shape: str) -> float:
        template = _template(shape, *box.shape)
        return float((box & template).sum() / (box | template).sum())

    shape = max(SHAPES, key=overlap)
    color = np.median(pixels[mask], axis=0)
    return shape, nearest(color, COLORS), ground_name
