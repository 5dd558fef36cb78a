"""What is asked of a model that captions, whichever it is."""

from __future__ import annotations

from typing import Protocol

from PIL import Image

LONGEST_SIDE_PX = 1024  # of a picture that a model is shown; all known ones look at smaller ones


class Captioner(Protocol):
    """A model that says what is in a picture."""

    @property
    def writes_tags(self) -> bool:
        """Whether its captions are tags between commas; sentences otherwise."""

    def caption(self, image: Image.Image, instruction: str) -> str:
        """Its own words for an RGB picture of at most LONGEST_SIDE_PX a side, asked by `instruction` where it can be asked. Raises LoomError."""
