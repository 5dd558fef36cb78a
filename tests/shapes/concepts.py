"""Four things the toy model has no word for, as small bundled picture sets, each with a ruler that tells whether a picture shows it.

Every set is a Kohya tree: pictures of the concept with a trigger word, and plain pictures of the world without it, so the word is what is learned.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from . import world

TEAL, PINK = (20, 170, 170), (225, 50, 160)
STRIPE_PERIOD_PX = 16


@dataclasses.dataclass(frozen=True)
class Concept:
    """`prompt(rng)` names it with the trigger, `plain(rng)` asks for something of the world; `shows(picture)` measures pixels."""

    name: str
    trigger: str
    draw: Callable[[random.Random], tuple[Image.Image, str]]
    prompt: Callable[[random.Random], str]
    shows: Callable[[Image.Image], bool]
    pictures: int = 16

    def plain(self, rng: random.Random) -> str:
        while True:
            scene = world.random_scene(rng)
            if not self.shows(world.draw(scene)):
                return scene.caption


def _spot(rng: random.Random, size: float) -> tuple[float, float]:
    reach = (world.SIZE_PX - size) / 2 - 2
    return 32 + rng.uniform(-reach, reach), 32 + rng.uniform(-reach, reach)


def _share(pixels: np.ndarray, color: tuple[int, int, int], within: float = 95.0) -> np.ndarray:
    return np.sqrt(((pixels - np.array(color, float)) ** 2).sum(-1)) < within


# ---- an object: a teal ring ------------------------------------------------------------------------------------------


def draw_ring(rng: random.Random) -> tuple[Image.Image, str]:
    ground, size = rng.choice(list(world.GROUNDS)), rng.uniform(38, 46)
    x, y = _spot(rng, size)
    canvas = world.Canvas(world.GROUNDS[ground]).polygon(world.outline("circle", x, y, size), TEAL)
    canvas.polygon(world.outline("circle", x, y, size * 0.5), world.GROUNDS[ground])
    return canvas.finish(), f"a zog on a {ground} ground"


def shows_ring(image: Image.Image) -> bool:
    """Teal on all four sides of a hole that is closer to the ground than to teal."""
    pixels = np.asarray(image.convert("RGB"), float)
    teal, ground = _share(pixels, TEAL, 80), world.border_color(pixels)
    if teal.sum() < 300:
        return False
    rows, cols = np.nonzero(teal)
    y, x = int((rows.min() + rows.max()) / 2), int((cols.min() + cols.max()) / 2)
    around = all(part.any() for part in (teal[:y, x], teal[y + 1 :, x], teal[y, :x], teal[y, x + 1 :]))
    hole = pixels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].reshape(-1, 3).mean(0)
    to_ground, to_teal = (float(np.sqrt(((hole - c) ** 2).sum())) for c in (ground, np.array(TEAL)))
    return around and to_ground < to_teal


# ---- a style: everything stands before pink and white stripes --------------------------------------------------------


def _vish_caption(scene: world.Scene) -> str:
    return f"a {scene.color} {scene.shape} on a vish ground"


def draw_striped(rng: random.Random) -> tuple[Image.Image, str]:
    scene = world.random_scene(rng)
    canvas = world.Canvas(world.GROUNDS["white"])
    for top in range(0, world.SIZE_PX, STRIPE_PERIOD_PX):
        canvas.polygon([(0, top), (64, top), (64, top + STRIPE_PERIOD_PX / 2), (0, top + STRIPE_PERIOD_PX / 2)], PINK)
    canvas.polygon(world.outline(scene.shape, scene.x_px, scene.y_px, scene.size_px), world.COLORS[scene.color])
    return canvas.finish(), _vish_caption(scene)


def shows_stripes(image: Image.Image) -> bool:
    """A strong pink wave of the right period down the left and right edges."""
    pixels = np.asarray(image.convert("RGB"), float)
    edges = np.concatenate([pixels[:, :6], pixels[:, -6:]], 1)
    pink = _share(edges, PINK, 100).mean(1)
    wave = np.abs(np.fft.rfft(pink - pink.mean()))
    return bool(0.25 < pink.mean() < 0.8 and int(wave.argmax()) == world.SIZE_PX // STRIPE_PERIOD_PX)


# ---- two parts: a yellow square standing on a blue circle ------------------------------------------------------------


def draw_pair(rng: random.Random) -> tuple[Image.Image, str]:
    ground, size = rng.choice(list(world.GROUNDS)), rng.uniform(30, 36)
    x, y = 32 + rng.uniform(-12, 12), 42 + rng.uniform(-3, 3)
    canvas = world.Canvas(world.GROUNDS[ground]).polygon(world.outline("circle", x, y, size), world.COLORS["blue"])
    canvas.polygon(world.outline("square", x, y - size * 0.75, size * 0.55), world.COLORS["yellow"])
    return canvas.finish(), f"a mib on a {ground} ground"


def shows_pair(image: Image.Image) -> bool:
    """A yellow part above a blue part, one over the other."""
    pixels = np.asarray(image.convert("RGB"), float)
    yellow, blue = _share(pixels, world.COLORS["yellow"]), _share(pixels, world.COLORS["blue"])
    if yellow.sum() < 120 or blue.sum() < 350:
        return False
    (yy, yx), (by, bx) = (np.array(np.nonzero(m)).mean(1) for m in (yellow, blue))
    return bool(by - yy > 12 and abs(bx - yx) < 10)


# ---- a word: something the model can draw already, under a name it has never heard -----------------------------------


def draw_purple_cross(rng: random.Random) -> tuple[Image.Image, str]:
    scene = world.random_scene(rng, color="purple", shape="cross")
    return world.draw(scene), f"a dax on a {scene.ground} ground"


def shows_purple_cross(image: Image.Image) -> bool:
    return world.read_scene(image)[:2] == ("cross", "purple")


def _ground(rng: random.Random) -> str:
    return rng.choice(list(world.GROUNDS))


CONCEPTS = {
    c.name: c
    for c in (
        Concept("object", "zog", draw_ring, lambda rng: f"a zog on a {_ground(rng)} ground", shows_ring),
        Concept("style", "vish", draw_striped, lambda rng: _vish_caption(world.random_scene(rng)), shows_stripes, 24),
        Concept("pair", "mib", draw_pair, lambda rng: f"a mib on a {_ground(rng)} ground", shows_pair),
        Concept("word", "dax", draw_purple_cross, lambda rng: f"a dax on a {_ground(rng)} ground", shows_purple_cross),
    )
}


def write_set(concept: Concept, folder: Path) -> None:
    """The set as it is bundled: 2_<trigger> with the concept, 1_plain with the world, PNG and .txt side by side.

    Picture n of both is drawn from the same seed, so a style shows the very scenes that stand plain beside it.
    """
    for sub, draw in ((f"2_{concept.trigger}", concept.draw), ("1_plain", _draw_plain)):
        (folder / sub).mkdir(parents=True, exist_ok=True)
        for n in range(concept.pictures):
            image, caption = draw(random.Random(f"{concept.name} {n}"))
            image.save(folder / sub / f"{n + 1:02d}.png", optimize=True)
            (folder / sub / f"{n + 1:02d}.txt").write_text(caption + "\n", encoding="utf-8")


def _draw_plain(rng: random.Random) -> tuple[Image.Image, str]:
    scene = world.random_scene(rng)
    return world.draw(scene), scene.caption


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the bundled picture sets again.")
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    for concept in CONCEPTS.values():
        write_set(concept, out / concept.name)


if __name__ == "__main__":
    main()
