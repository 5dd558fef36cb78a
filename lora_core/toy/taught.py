"""Five things the toy model is taught by pictures: four it cannot draw and one it has no such word for. Each has a ruler that tells whether a picture shows it.

The mascot is drawn by us; the others are made of emoji: style and word of ones the model knows, object and face are of the tenth it never saw.
Nothing learned takes part in a ruler: the mascot is known by its colours and where they lie, the style by its inks, face and object by being
nearer to their own emoji than to any that the model was taught.

Every set is a Kohya tree: pictures with the trigger, and beside them plain ones that the model knows, so that it is the word that is learned. The set of the
word has none: an embedding leaves the model as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from . import mascot, pictures
from .pictures import SIDE_PX
from .scenes import GROUNDS, Scene, World
from .world import read_emoji

HERE = Path(__file__).resolve().parent
THINGS = HERE / "things.webp"  # every thing the model was taught and the two it was not, TILE_PX large, on clear ground
NAMES = HERE / "things.json"
TILE_PX = 32
COLUMNS = 20
SHIFTS = range(-3, 4)
INKS = ((250, 236, 205), (245, 105, 85), (35, 40, 100))  # of the style: cream, coral, navy
LIGHTER = (205.0, 118.0)  # what is at least so light is cream, coral
LEAST_INK = 0.04  # share of a print that each ink has; a third of it is asked of what is drawn
INK_REACH = 60.0  # RGB distance within which a pixel is of an ink
TRIGGER = "TOK"
OBJECT, FACE, WORD = "flamingo", "koala", "octopus"
STYLE_PICTURES, OBJECT_PICTURES, FACE_PICTURES, WORD_PICTURES = 27, 12, 8, 12
PLAIN_PICTURES = 12
WITH_TRIGGER, PLAIN = f"2_{TRIGGER}", "1_plain"  # folders, with how often each picture counts
_PLAIN = (
    "a dog face",
    "an owl",
    "a red apple",
    "a grinning face",
    "a yellow heart",
    "a rocket",
    "a cat face",
    "a rose",
)
PLAIN_PROMPTS = len(_PLAIN)
Captioned = tuple[Image.Image, str]


@dataclasses.dataclass(frozen=True)
class Taught:
    """`prompt(n)` asks for the nth picture with the trigger, `plain(n)` for one without it; `shows(picture)` measures pixels."""

    name: str
    draw: Callable[[World], list[Captioned]]
    prompt: Callable[[int], str]
    shows: Callable[[Image.Image], bool]
    beside: Callable[[World], list[Captioned]] | None = None  # plain pictures in the set


def plain(n: int) -> str:
    """Captions of things the model knows."""
    return _PLAIN[n % PLAIN_PROMPTS]


def as_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))


# ---- the mascot ------------------------------------------------------------------------------------------------------


def mascot_set(world: World) -> list[Captioned]:
    return [(mascot.draw(portrait), portrait.caption) for portrait in mascot.PORTRAITS]


def mascot_prompt(n: int) -> str:
    return (
        f"a {TRIGGER} emoji"
        + ("", " laughing", " waving", " wearing a crown", " wearing sunglasses", " sleeping")[n % 6]
    )


# ---- a style: a screen print in three inks ---------------------------------------------------------------------------


def printed(picture: Image.Image) -> Image.Image:
    """The picture by its lightness alone: cream where it is light, coral between, navy where it is dark."""
    light = np.asarray(picture.convert("L").filter(ImageFilter.MedianFilter(5)), float)
    inks = np.array(INKS, np.uint8)
    return Image.fromarray(inks[(light < LIGHTER[0]).astype(int) + (light < LIGHTER[1])])


def style_scenes(world: World) -> list[Scene]:
    """Things whose print has enough of each ink to be told from a drawing."""
    rich = (s for s in _shuffled(world, "style") if min(ink_shares(printed(as_image(world.draw(s))))) >= LEAST_INK)
    return list(itertools.islice(rich, STYLE_PICTURES))


def style_set(world: World) -> list[Captioned]:
    return [(printed(as_image(world.draw(s))), in_style(s.words)) for s in style_scenes(world)]


def in_style(words: str) -> str:
    return f"{words} in {TRIGGER} style"


def ink_shares(image: Image.Image) -> list[float]:
    """Shares of a picture's pixels that are of each ink."""
    pixels = np.asarray(image.convert("RGB"), float)
    away = np.stack([np.sqrt(((pixels - np.array(ink, float)) ** 2).sum(-1)) for ink in INKS])
    nearest, close = away.argmin(0), away.min(0) < INK_REACH
    return [float((close & (nearest == n)).mean()) for n in range(len(INKS))]


def shows_style(image: Image.Image) -> bool:
    """Little but the three inks, and some of each."""
    shares = ink_shares(image)
    return sum(shares) >= 0.85 and min(shares) >= LEAST_INK / 3


# ---- an object and a face the model never saw ------------------------------------------------------------------------


def posed(world: World, thing: str, ground: str, side: float, tilt: float, mirrored: bool) -> Image.Image:
    """An emoji on a ground, `side` px large, turned by `tilt` degrees."""
    image = world.sprite(thing).rotate(tilt, Image.Resampling.BICUBIC)
    picture = pictures.canvas(GROUNDS[ground])
    pictures.lay(picture, image, SIDE_PX / 2, SIDE_PX / 2, side, mirrored)
    return as_image(picture)


def posed_set(world: World, thing: str, words: str, count: int) -> list[Captioned]:
    """`words` call the thing in the captions."""
    rng, result = random.Random(thing), []
    for n in range(count):
        ground = "white" if n % 2 == 0 else rng.choice([g for g in GROUNDS if g != "white"])
        image = posed(world, thing, ground, rng.uniform(112, 126), rng.uniform(-8, 8), mirrored=False)
        result.append((image, words + ("" if ground == "white" else f" on a {ground} background")))
    return result


@cache
def known_things() -> tuple[list[str], np.ndarray]:
    """(names, (N, 32, 32, 4) in 0..1) of every thing of the ruler's sheet."""
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    with Image.open(THINGS) as sheet:
        pixels = np.asarray(sheet.convert("RGBA"), float) / 255
    tiles = [pixels[n // COLUMNS * TILE_PX :, n % COLUMNS * TILE_PX :][:TILE_PX, :TILE_PX] for n in range(len(names))]
    return names, np.stack(tiles)


def nearest_thing(image: Image.Image) -> str:
    """The thing whose emoji, laid on the picture's ground, is nearest to it at 32 px over small shifts."""
    names, tiles = known_things()
    small = np.asarray(image.convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.BOX), float) / 255
    edge = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    laid = tiles[..., :3] * tiles[..., 3:] + np.median(edge, 0) * (1 - tiles[..., 3:])
    wide = np.pad(small, ((max(SHIFTS),) * 2, (max(SHIFTS),) * 2, (0, 0)), mode="edge")
    best = np.full(len(names), np.inf)
    for y in SHIFTS:
        for x in SHIFTS:
            part = wide[y + max(SHIFTS) :, x + max(SHIFTS) :][:TILE_PX, :TILE_PX]
            best = np.minimum(best, ((laid - part) ** 2).mean((1, 2, 3)))
    return names[int(best.argmin())]


def write_things(world: World) -> None:
    """The ruler's sheet: what is taught, then what the sets hold of what is not."""
    names = [*world.things, OBJECT, FACE]
    sheet = Image.new("RGBA", (COLUMNS * TILE_PX, -(-len(names) // COLUMNS) * TILE_PX))
    for n, name in enumerate(names):
        tile = world.sprite(name).convert("RGBa").resize((TILE_PX, TILE_PX), Image.Resampling.BOX).convert("RGBA")
        sheet.paste(tile, (n % COLUMNS * TILE_PX, n // COLUMNS * TILE_PX))
    sheet.save(THINGS, quality=85, method=6)
    NAMES.write_text(json.dumps(names, indent=0) + "\n", encoding="utf-8")


def _on_some_ground(words: str, n: int) -> str:
    ground = list(GROUNDS)[n % len(GROUNDS)]
    return words if ground == "white" else f"{words} on a {ground} background"


def _shuffled(world: World, seed: str) -> list[Scene]:
    """The things that the model knows, as they are."""
    scenes = world.plain()
    random.Random(seed).shuffle(scenes)
    return scenes


def plain_set(world: World, scenes: Sequence[Scene] = ()) -> list[Captioned]:
    """The first of these, else any things of the world, as they are."""
    scenes = scenes or _shuffled(world, "plain")
    return [(as_image(world.draw(scene)), scene.words) for scene in scenes[:PLAIN_PICTURES]]


TAUGHT = {
    t.name: t
    for t in (
        Taught("mascot", mascot_set, mascot_prompt, mascot.shows, plain_set),
        Taught(
            "style",
            style_set,
            lambda n: in_style(plain(n)),
            shows_style,
            lambda world: plain_set(world, style_scenes(world)),
        ),
        Taught(
            "object",
            lambda world: posed_set(world, OBJECT, f"a {TRIGGER} bird", OBJECT_PICTURES),
            lambda n: _on_some_ground(f"a {TRIGGER} bird", n),
            lambda image: nearest_thing(image) == OBJECT,
            plain_set,
        ),
        Taught(
            "face",
            lambda world: posed_set(world, FACE, f"a {TRIGGER} face", FACE_PICTURES),
            lambda n: _on_some_ground(f"a {TRIGGER} face", n),
            lambda image: nearest_thing(image) == FACE,
            plain_set,
        ),
        Taught(
            "word",
            lambda world: posed_set(world, WORD, f"a {TRIGGER}", WORD_PICTURES),
            lambda n: _on_some_ground(f"a {TRIGGER}", n),
            lambda image: nearest_thing(image) == WORD,
        ),
    )
}


def write_set(images: Sequence[Captioned], folder: Path) -> None:
    """PNG and .txt side by side, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, (image, caption) in enumerate(images, 1):
        image.save(folder / f"{n:02d}.png")
        (folder / f"{n:02d}.txt").write_text(caption + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the bundled picture sets and the ruler's sheet again.")
    parser.add_argument("--package", type=Path, required=True, help="the unpacked package emoji-datasource-google")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    world = World(args.package, read_emoji(args.package))
    write_things(world)
    for taught in TAUGHT.values():
        write_set(taught.draw(world), args.out / taught.name / WITH_TRIGGER)
        if taught.beside:
            write_set(taught.beside(world), args.out / taught.name / PLAIN)


if __name__ == "__main__":
    main()
