"""A slider from pairs of pictures: strength 1 does what leads from the first picture of each pair to the second, strength -1 takes it back.

Visual sliders (Gandikota et al. 2023, arXiv 2311.12092, ECCV 2024, section 4.3) train strength 1 on the second pictures and -1 on the first ones, with the same
noise, so that what both have in common cancels out. Here nothing in common is learnt to begin with: the network sees one picture of a pair with noise, and
what it says of it without the LoRA is to change by the difference of the two, as far as they differ, and by nothing where they are alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from ..config.slider import lines_of
from ..data.batches import Batch
from ..data.encoder import Encoder
from ..data.shown import Showing
from ..losses import mean
from ..objectives import Objective
from ..transfer import sent
from .frozen import asked, frozen, on_device
from .run import Run
from .slider import Slider, pick


def in_pairs(encoder: Encoder) -> Encoder:
    """The encoder of a run that learns from pairs: the control picture of each picture becomes latents of the same size, as the picture itself does."""
    identity = f"{encoder.identity} in pairs"  # some models are shown latents of another scale from the same VAE
    showing = Showing(limit=1, needed=True, as_target=True)
    return dataclasses.replace(encoder, identity=identity, shown=encoder.picture, showing=showing, guide=None)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The lesson. `slider`: its strengths, its prompts to preserve. Without a target pictures are shown with their own captions."""

    slider: Slider

    @property
    def targets(self) -> list[str]:
        return lines_of(self.slider.config.target)

    def captions(self, drawn: Sequence[str]) -> list[str]:
        """Every prompt the model is asked with."""
        return list(dict.fromkeys([*(self.targets or drawn), *self.slider.kept]))

    def losses(self, run: Run, objective: Objective, batch: Batch, rng: torch.Generator) -> Iterator[torch.Tensor]:
        second, first = batch.latents, torch.cat([shown.latents[0] for shown in batch.shown]).to(batch.latents)
        alone = dataclasses.replace(batch, shown=())  # the network is shown one picture of a pair at a time
        if self.targets:
            alone = asked(alone, self.targets[pick(len(self.targets), rng)])
        change = self.slider.config.reach * changed(second - first, self.slider.config.unchanged)
        sigma, noise = objective.draw_sigma(len(second), rng), objective.draw_noise(second, rng)
        sides = self.slider.sides
        for strength in sides:
            x_t = objective.corrupt(first if strength > 0 else second, noise, sigma)
            yield self._error(run, objective, x_t, sigma, alone, strength, change) / len(sides)
        yield from self.slider.preserved(run, objective, alone, sides[pick(len(sides), rng)], rng)

    def _error(
        self,
        run: Run,
        objective: Objective,
        x_t: torch.Tensor,
        sigma: torch.Tensor,
        batch: Batch,
        strength: float,
        change: torch.Tensor,
    ) -> torch.Tensor:
        """(B,): how far the picture that the network sees in x_t moves otherwise than by `strength` times `change`.

        Half of the way between an error of that picture and one of the network's answer, d^2 / (1 + d^2) of the former where an answer moves it d-fold:
        at low noise no answer could move it, and at high noise an error of the picture would outweigh everything.
        """
        at = on_device(sigma, x_t)
        with frozen(run):
            before = run.backend.predict(x_t, at, batch).float()
        with run.adapters.at_strength(strength):
            moved = run.backend.predict(x_t, at, batch).float() - before
        moves = objective.denoised(torch.zeros_like(moved), torch.ones_like(moved), at).float()
        error = (moves * moved - strength * change) ** 2 / (1 + moves**2)
        return sent(objective.weight(sigma).float(), x_t.device) * mean(error, batch.mask)


def changed(difference: torch.Tensor, unchanged: float) -> torch.Tensor:
    """The difference of latents (B, C, ...), 0 at places where it is smaller than this share of the largest of its sample."""
    size = difference.float().pow(2).mean(1, keepdim=True).sqrt()
    largest = size.amax(tuple(range(1, size.ndim)), keepdim=True)
    return difference * (size > unchanged * largest)
