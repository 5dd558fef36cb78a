"""What the model is taught to draw: one emoji, or one changed by a word of its own, and the captions that say so.

A scene is a thing (an emoji's name) and at most one change of colour, skin tone, accessory or companion, before a ground. Some combinations of known words
are kept back, so that drawing them shows the words were understood; a tenth of the emoji is kept back altogether (`Emoji.held_out`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from . import names, pictures
from .world import TONES, Emoji

GROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 24),
    "gray": (150, 150, 150),
    "light blue": (170, 215, 250),
    "green": (120, 200, 120),
    "pink": (250, 180, 210),
    "yellow": (250, 225, 110),
}
HUES = {"red": 0.0, "orange": 28.0, "yellow": 50.0, "green": 120.0, "blue": 215.0, "purple": 275.0, "pink": 325.0}
ONE_HUE_SHARE = 0.8
LEAST_CHROMA = 0.2
HUE_STEP = 22.0  # degrees below which a new colour is the old one
COLORLESS = ("heart", "hand")  # kinds with colours or tones in their own names
# where an accessory lies on a face of 96 px: (centre x, centre y, side) in px of the canvas
ACCESSORIES = {
    "crown": (64.0, 27.0, 54.0),
    "top hat": (64.0, 26.0, 60.0),
    "graduation cap": (64.0, 29.0, 74.0),
    "sunglasses": (64.0, 72.0, 80.0),
    "bow": (98.0, 40.0, 50.0),
}
ACCESSORY_EMOJI = {"bow": "ribbon"}
WORN_BY = ("face", "cat", "animal face")
WEARS_ALREADY = (
    "hat",
    "halo",
    "sunglasses",
    "exploding",
    "head-bandage",
    "monocle",
    "nerd",
    "hearts",
    "unicorn",
    "upside-down",
)
FACE_BELOW = (64.0, 80.0, 94.0)
PAIR_GROUPS = ("heart", "animal face", "food", "sky", "thing")
PAIR_EVERY = 3  # of the things of those groups, one in three is drawn in pairs
KEPT_BACK = 8  # one combination in eight is never trained


@dataclasses.dataclass(frozen=True)
class Scene:
    """`thing`, `beside` and `accessory` are spoken names; what does not apply is empty."""

    thing: str
    kind: str
    ground: str = "white"
    color: str = ""
    tone: str = ""
    accessory: str = ""
    beside: str = ""

    @property
    def change(self) -> str:
        """What sets it apart from the plain thing, as "colour blue"; empty for none."""
        for name in ("color", "tone", "accessory", "beside"):
            if value := getattr(self, name):
                return f"{name} {value}"
        return ""

    @property
    def unseen(self) -> bool:
        """Whether this combination of thing and change is kept back from training."""
        return bool(self.change) and hashlib.sha256(f"{self.thing} {self.change}".encode()).digest()[0] % KEPT_BACK == 0

    @property
    def words(self) -> str:
        """The noun phrase: "a blue owl", "a waving hand with dark skin tone", "a cat face wearing a crown", "a dog face and a pear"."""
        noun = names.with_article(f"{self.color} {self.thing}".strip())
        if self.tone:
            return f"{noun} with {self.tone} skin tone"
        if self.accessory:
            return f"{noun} wearing {names.with_article(self.accessory)}"
        if self.beside:
            return f"{noun} and {names.with_article(self.beside)}"
        return noun


class World:
    """The chosen emoji of a package, and every scene that is made of those not held out."""

    def __init__(self, package: Path, emoji: Iterable[Emoji], chosen: dict[str, str] | None = None):
        self.package = package
        self._pictures = {(e.name, e.tone): e for e in emoji}
        self._kinds = {n: k for k, line in (chosen or names.CHOSEN).items() for n in line.split("|")}
        self._emoji = {names.spoken(n): n for n in self._kinds}
        known = {n: self._pictures[n, ""] for n in self._kinds if (n, "") in self._pictures}
        self.things = {names.spoken(n): self._kinds[n] for n, e in known.items() if not e.held_out}
        self.held_out = {names.spoken(n): self._kinds[n] for n, e in known.items() if e.held_out}
        self._hues = {t: self._hue(t) for t in self.things}

    def _hue(self, thing: str) -> float | None:
        """The one hue of a thing that can be given another, else None."""
        if self.things[thing] in COLORLESS or set(thing.split()) & set(HUES):
            return None
        hue, share, chroma = pictures.main_hue(self.sprite(thing))
        return hue if share >= ONE_HUE_SHARE and chroma >= LEAST_CHROMA else None

    def sprite(self, thing: str, tone: str = "") -> pictures.Image.Image:
        return pictures.sprite(self.package, self._pictures[self._emoji.get(thing, thing), tone].picture)

    def plain(self) -> list[Scene]:
        return [Scene(t, k) for t, k in self.things.items()]

    def grounded(self) -> list[Scene]:
        return [Scene(t, k, ground=g) for t, k in self.things.items() for g in GROUNDS if g != "white"]

    def colored(self) -> list[Scene]:
        """Every thing of one hue in every colour but its own."""
        scenes: list[Scene] = []
        for thing, hue in self._hues.items():
            if hue is not None:
                others = [c for c, angle in HUES.items() if abs((angle - hue + 180) % 360 - 180) >= HUE_STEP]
                scenes += [Scene(thing, self.things[thing], color=color) for color in others]
        return scenes

    def toned(self) -> list[Scene]:
        return [
            Scene(t, k, tone=tone)
            for t, k in self.things.items()
            for tone in TONES.values()
            if (self._emoji[t], tone) in self._pictures
        ]

    def dressed(self) -> list[Scene]:
        """Every face that wears nothing yet, with every accessory."""
        bare = [t for t, k in self.things.items() if k in WORN_BY and not set(t.split()) & set(WEARS_ALREADY)]
        return [Scene(t, self.things[t], accessory=a) for t in bare for a in ACCESSORIES]

    def paired(self) -> list[Scene]:
        """Every two of a few things, in both orders."""
        few = [t for t, k in self.things.items() if k in PAIR_GROUPS][::PAIR_EVERY]
        return [Scene(a, self.things[a], beside=b) for a in few for b in few if a != b]

    def draw(self, scene: Scene) -> np.ndarray:
        """(128, 128, 3) float32 in 0..255."""
        picture = pictures.canvas(GROUNDS[scene.ground])
        image, middle = self.sprite(scene.thing, scene.tone), pictures.SIDE_PX / 2
        if scene.color:
            hue = self._hues[scene.thing]
            image = pictures.turned(image, HUES[scene.color] - (hue or 0.0))
        if scene.accessory:
            pictures.lay(picture, image, *FACE_BELOW)
            accessory = self.sprite(ACCESSORY_EMOJI.get(scene.accessory, scene.accessory))
            pictures.lay(picture, accessory, *ACCESSORIES[scene.accessory])
        elif scene.beside:
            pictures.lay(picture, image, middle / 2, middle, middle)
            pictures.lay(picture, self.sprite(scene.beside), middle * 1.5, middle, middle)
        else:
            pictures.lay(picture, image, middle, middle, pictures.SIDE_PX - 4)
        return picture


@dataclasses.dataclass(frozen=True)
class Lesson:
    """Scenes of one kind and how large their share of the training is."""

    name: str
    share: float
    scenes: Sequence[Scene]


def lessons(world: World, most: int = 1200) -> list[Lesson]:
    """What is trained. Of a kind with very many scenes `most` are kept, always the same; combinations kept back are left out."""
    shares = {"plain": 0.42, "grounded": 0.16, "colored": 0.18, "toned": 0.06, "dressed": 0.09, "paired": 0.09}
    out = []
    for name, share in shares.items():
        scenes = [s for s in getattr(world, name)() if not s.unseen]
        random.Random(name).shuffle(scenes)
        if scenes:
            out.append(Lesson(name, share, scenes[:most]))
    return out


def kept_back(world: World) -> list[Scene]:
    """The combinations of known words that no network is trained on."""
    return [s for kind in (world.colored, world.toned, world.dressed, world.paired) for s in kind() if s.unseen]
