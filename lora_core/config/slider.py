"""The settings of training without pictures: what a slider moves, what it leaves, and where its noisy latents come from."""

from __future__ import annotations

import dataclasses
import math

from .settings import ConfigError, setting

MAX_STRENGTHS, LARGEST_STRENGTH = 11, 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliderConfig:
    mode: str = setting(
        "slide",
        "slide: strengths above 0 lead to positive, below 0 to negative. erase: target is unlearnt, so positive (or nothing) is drawn in its place. "
        "pairs: strength 1 does what leads from the control picture of each picture to the picture.",
        choices=("slide", "erase", "pairs"),
    )
    target: str = setting(
        "",
        "What is changed, such as person; of erase, what is unlearnt. A line for each attribute, or one for all. Empty with slide: every picture.",
    )
    positive: str = setting(
        "",
        "What strengths above 0 lead to, such as old person; a line for each attribute. Of erase: what comes in the target's place.",
    )
    negative: str = setting(
        "",
        "What strengths below 0 lead to, such as young person; a line for each attribute, or empty.",
    )
    across: str = setting(
        "",
        "What the slider is trained across, so that it does not come along, a line each, such as male and female: put in front of all prompts in turn.",
    )
    preserve: str = setting("", "Prompts whose pictures stay what they are, one a line.")
    preserve_weight: float = setting(1.0, "Weight of the loss on the prompts to preserve.", low=0.0, high=100.0)
    guidance: float = setting(
        0.0,
        "How far strength 1 goes, in differences between positive and negative, or of pairs; 0 takes 3, and 1 to erase and for pairs.",
        low=0.0,
        high=20.0,
        zero="auto",
    )
    both_ways: bool = setting(
        True, "Train strength -1 beside 1, so the slider works in both directions; erase trains 1 alone."
    )
    sampler_steps: int = setting(
        20,
        "Without a folder of pictures, noisy latents are drawn by the model itself: steps of the whole way from noise.",
        low=2,
        high=200,
    )
    cfg: float = setting(
        0.0,
        "Guidance they are drawn with; 0 takes 3, or 1 for models that were distilled to do without.",
        low=0.0,
        high=30.0,
        zero="auto",
    )
    unchanged: float = setting(
        0.1,
        "Of pairs: where two pictures differ by less than this share of where they differ most, they are taken to be alike, and nothing is to change there.",
        low=0.0,
        high=0.9,
    )
    strengths: str = setting("-2, -1, 0, 1, 2", "Strengths of the sample pictures, separated by commas.")

    def previewed(self) -> tuple[float, ...]:
        """The strengths of the sample pictures. Raises ConfigError."""
        parts = [part.strip() for part in self.strengths.split(",") if part.strip()]
        values = [_number(part) for part in parts]
        if not values or len(values) > MAX_STRENGTHS or any(not abs(v) <= LARGEST_STRENGTH for v in values):
            raise ConfigError(
                "slider.strengths",
                field="slider.strengths",
                value=repr(self.strengths),
                most=MAX_STRENGTHS,
                largest=f"{LARGEST_STRENGTH:g}",
            )
        return tuple(values)

    @property
    def reach(self) -> float:
        """The guidance that strength 1 stands for."""
        return self.guidance or (3.0 if self.mode == "slide" else 1.0)

    @property
    def erases(self) -> bool:
        return self.mode == "erase"

    @property
    def of_pairs(self) -> bool:
        """Whether it learns from pairs of pictures."""
        return self.mode == "pairs"


def lines_of(text: str) -> list[str]:
    """Its lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
