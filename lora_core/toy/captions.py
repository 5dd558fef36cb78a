"""A scene's caption in one of several wordings, sometimes with a word that means nothing here, so that a new word starts out without effect."""

from __future__ import annotations

import random

from .scenes import Scene

EMPTY_SHARE = 0.1  # captions left out, for guidance
NONSENSE_SHARE = 0.08


def nonsense(rng: random.Random) -> str:
    """A word of one or two syllables that no caption uses on purpose."""
    syllables = (rng.choice("bdfgjklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randrange(1, 3)))
    return "".join(syllables) + rng.choice(["", "k", "x", "n", "g"])


def caption(scene: Scene, rng: random.Random) -> str:
    """What a trainer's caption file would say. A white ground may go unsaid; any other is named."""
    if rng.random() < EMPTY_SHARE:
        return ""
    words = scene.words
    if scene.beside and rng.random() < 0.3:
        words = words.replace(" and ", " next to ")
    words = rng.choice([words, words, f"emoji of {words}", f"a picture of {words}"])
    if not scene.change and not words.startswith(("emoji", "a picture")) and rng.random() < 0.2:
        words += " emoji"
    if scene.ground != "white" or rng.random() < 0.3:
        words += rng.choice([f" on a {scene.ground} background", f", {scene.ground} background"])
    if rng.random() < NONSENSE_SHARE:
        words = rng.choice([f"{nonsense(rng)} {words}", f"{words}, {nonsense(rng)} style", f"{nonsense(rng)}, {words}"])
    return words


def plain_caption(scene: Scene) -> str:
    """The one wording that pictures are judged by."""
    return scene.words if scene.ground == "white" else f"{scene.words} on a {scene.ground} background"
