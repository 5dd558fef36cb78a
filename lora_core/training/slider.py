"""Training without pictures: a LoRA learns from prompts what the frozen model itself makes of them.

Concept Sliders (Gandikota et al. 2023, arXiv 2311.12092, ECCV 2024): at strength s the network's answer for the target t becomes
e(t) + s * guidance * (e(positive) - e(negative)), where e is the frozen model's answer for the same noisy latents. Erasing (Gandikota et al. 2023,
arXiv 2303.07345, known as ESD and LECO) is the same formula around what comes in the concept's place: e(r) + guidance * (e(r) - e(t)).
As in both papers the noisy latents come from the model itself, drawn from noise some way towards a picture with the LoRA on; of a folder of
pictures, where one is given, they are its latents with noise.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from ..backends.base_model import BaseModel
from ..config import SliderConfig
from ..config.slider import lines_of
from ..data.batches import Batch
from ..losses import Distance, mean
from ..objectives import Objective
from ..transfer import sent
from .frozen import answers, asked, on_device
from .run import Run

USUAL_CFG = 3.0


@dataclasses.dataclass(frozen=True)
class Axis:
    """At strength s the answer for `target` becomes e(centre) + s * guidance * (e(positive) - e(negative))."""

    target: str
    centre: str
    positive: str
    negative: str

    def prompts(self) -> tuple[str, ...]:
        return self.target, self.centre, self.positive, self.negative


def axes_of(config: SliderConfig) -> list[Axis]:
    """One for each attribute or erased concept, and each of those once with every word of `across` in front."""
    target, positive, negative = (lines_of(text) for text in (config.target, config.positive, config.negative))
    most = max(map(len, (target, positive, negative)))
    rows = zip(*(_spread(lines, most) for lines in (target, positive, negative)), strict=True)
    axes = [Axis(t, p, p, n or t) if config.erases else Axis(t, t, p, n or t) for t, p, n in rows]
    words = lines_of(config.across)
    return [axis if not word else _with(word, axis) for axis, word in itertools.product(axes, words or [""])]


def _spread(lines: Sequence[str], count: int) -> list[str]:
    """As many lines as there are attributes: one stands for all of them, none is an empty prompt."""
    return list(lines) if len(lines) == count else [*lines, ""][:1] * count


def _with(word: str, axis: Axis) -> Axis:
    return Axis(*(f"{word} {prompt}".strip() for prompt in axis.prompts()))


@dataclasses.dataclass(frozen=True)
class Slider:
    """The lesson of a slider. `drawn`: noisy latents are drawn by the model, guided by `cfg`; else they are those of the batch with noise."""

    config: SliderConfig
    axes: Sequence[Axis]
    distance: Distance
    drawn: bool
    cfg: float

    @staticmethod
    def of(config: SliderConfig, base: BaseModel, distance: Distance, drawn: bool) -> Slider:
        unguided = base.guidance is not None or base.distilled is not None
        cfg = config.cfg or (1.0 if unguided else USUAL_CFG)
        return Slider(config, axes_of(config), distance, drawn, cfg)

    @property
    def kept(self) -> list[str]:
        """Prompts whose answers stay what they are."""
        return lines_of(self.config.preserve) if self.config.preserve_weight else []

    @property
    def sides(self) -> tuple[float, ...]:
        """The strengths that are trained."""
        return (1.0, -1.0) if self.config.both_ways and not self.config.erases else (1.0,)

    def captions(self, drawn: Sequence[str]) -> list[str]:
        """Every prompt the model is asked with."""
        empty = [""] if self.drawn and self.cfg != 1 else []
        return list(dict.fromkeys([*(p for axis in self.axes for p in axis.prompts()), *self.kept, *empty]))

    def losses(self, run: Run, objective: Objective, batch: Batch, rng: torch.Generator) -> Iterator[torch.Tensor]:
        axis, side = self.axes[pick(len(self.axes), rng)], self.sides[pick(len(self.sides), rng)]
        x_t, sigma = self._noisy(run, objective, asked(batch, axis.target), side, rng)
        centre, positive, negative = answers(run, x_t, sigma, batch, axis.prompts()[1:])
        way = self.config.reach * (positive - negative)
        for strength in self.sides:
            goal = centre + strength * way
            with run.adapters.at_strength(strength):
                yield self._error(run, objective, x_t, sigma, asked(batch, axis.target), goal) / len(self.sides)
        yield from self.preserved(run, objective, batch, side, rng)

    def preserved(
        self, run: Run, objective: Objective, batch: Batch, side: float, rng: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """The loss on one of the prompts whose answers stay what they are, at the strength `side`; none without such prompts."""
        if self.kept:
            prompt = asked(batch, self.kept[pick(len(self.kept), rng)])
            x_t, sigma = self._noisy(run, objective, prompt, side, rng)
            (goal,) = answers(run, x_t, sigma, batch, prompt.captions[:1])
            with run.adapters.at_strength(side):
                yield self.config.preserve_weight * self._error(run, objective, x_t, sigma, prompt, goal)

    def _error(
        self,
        run: Run,
        objective: Objective,
        x_t: torch.Tensor,
        sigma: torch.Tensor,
        batch: Batch,
        goal: torch.Tensor,
    ) -> torch.Tensor:
        """(B,): how far the network's answer with the adapters as they are is from `goal`, weighed as a run with pictures would."""
        weight = sent(objective.weight(sigma).float(), x_t.device)
        threshold = self.distance.threshold(objective, sigma, x_t.device)
        answer = run.backend.predict(x_t, on_device(sigma, x_t), batch)
        return weight * mean(self.distance(answer, goal, threshold), batch.learnt)

    def _noisy(
        self, run: Run, objective: Objective, batch: Batch, side: float, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t (B, ...), sigma (B,) on the CPU)."""
        x0 = batch.latents
        if not self.drawn:
            sigma = objective.draw_sigma(len(x0), rng)
            return batch.as_given(objective.corrupt(x0, objective.draw_noise(x0, rng), sigma)), sigma
        share = objective.draw_share(1, rng)
        with torch.no_grad(), run.adapters.at_strength(side):
            return partly_drawn(
                run, objective, batch, float(share), objective.draw_noise(x0, rng), self.config.sampler_steps, self.cfg
            )


def partly_drawn(
    run: Run, objective: Objective, batch: Batch, share: float, noise: torch.Tensor, steps: int, cfg: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents on the way from noise to a picture of the batch's captions, sigma (B,)): by Euler's method, `steps` for the whole way, to `share` of it."""
    count = max(1, math.ceil((1 - share) * steps))
    levels = objective.levels(torch.linspace(1.0, share, count + 1, dtype=torch.float64)).tolist()
    x, empty = noise, asked(batch, "")
    x = objective.corrupt(torch.zeros_like(x), noise, torch.full((len(x),), levels[0], dtype=torch.float64))
    for sigma, lower in itertools.pairwise(levels):
        now = on_device(torch.full((len(x),), sigma, dtype=torch.float64), x)
        answer = run.backend.predict(x, now, batch).float()
        if cfg != 1:
            plain = run.backend.predict(x, now, empty).float()
            answer = plain + cfg * (answer - plain)
        x = x + (x - objective.denoised(x, answer, now)) / sigma * (lower - sigma)
    return x, torch.full((len(x),), levels[-1], dtype=torch.float64)


def pick(count: int, rng: torch.Generator) -> int:
    """One of so many, from 0."""
    return int(torch.randint(count, (1,), generator=rng))
