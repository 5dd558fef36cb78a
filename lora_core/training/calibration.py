"""How strongly a finished LoRA should act: the loss on fixed probes at strengths around the one it was trained at.

Nothing is drawn anew between two strengths: pictures, noise levels and noise are those of validation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..adapters import AdapterSet
from ..messages.figures import figure
from ..messages.message import Message
from ..pictures.plots import curves
from .run import Run

STRENGTHS = tuple(tenths / 10 for tenths in range(4, 15))
AS_TRAINED = 1.0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """(strength, mean loss) of each strength, rising, 1.0 among them; how many pictures were measured, and whether they were held out."""

    points: Sequence[tuple[float, float]]
    pictures: int
    held_out: bool

    @property
    def best(self) -> float:
        """The strength of the lowest loss; of equal ones the nearest to what was trained."""
        finite = [point for point in self.points if math.isfinite(point[1])]
        return min(finite, key=lambda point: (point[1], abs(point[0] - AS_TRAINED)), default=(AS_TRAINED, 0.0))[0]

    def message(self) -> Message:
        """The strength to start from, with the losses that say so and the pictures they are of."""
        losses = dict(self.points)
        facts = {"strength": f"{self.best:g}", "loss": figure(losses[self.best]), "full": figure(losses[AS_TRAINED])}
        code = "strength.found" if self.held_out else "strength.found_on_trained"
        low, high = self.points[0][0], self.points[-1][0]
        return Message.of(code, **facts, pictures=self.pictures, low=f"{low:g}", high=f"{high:g}")

    def as_json(self) -> dict[str, Any]:
        return {"strength": self.best, **dataclasses.asdict(self)}

    def drawn(self) -> Image.Image:
        """The loss over the strength, with the best one marked."""
        pictures = "held-out pictures" if self.held_out else "trained pictures"
        return curves({f"loss on {pictures}, by strength": self.points}, self.best)


def calibrated(run: Run, tell: Callable[[int, int], None]) -> Calibration:
    """Measures the adapters as they are at each of STRENGTHS. `tell`: (strengths done, of how many)."""
    probes = run.probes()
    losses: list[float] = []
    for number, strength in enumerate(STRENGTHS):
        tell(number, len(STRENGTHS))
        with texts_apart(run), run.adapters.at_strength(strength):
            losses.append(statistics.fmean(probes.losses(run.backend, run.objective)))
    means = torch.tensor(losses, dtype=torch.float64, device="cpu")
    if run.processes.size > 1:
        shared = means.float().to(run.backend.device)
        run.processes.average([shared])
        means = shared.cpu()
    points = list(zip(STRENGTHS, means.tolist(), strict=True))
    return Calibration(points, probes.pictures, probes.held_out is not None)


@contextlib.contextmanager
def texts_apart(run: Run) -> Iterator[None]:
    """Inside and after it, texts are encoded with the adapters as they are there, where these change them."""
    forget = run.backend.forget_texts if run.adapters.changes_text else lambda: None
    forget()
    try:
        yield
    finally:
        forget()


@contextlib.contextmanager
def holding(adapters: AdapterSet, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside, the adapters have these values; on exit exactly those they had."""
    before = adapters.state_dict()
    try:
        adapters.load_state_dict(weights)
        yield
    finally:
        adapters.load_state_dict(before)
