"""Learning rate range test (Smith 2017, arXiv 1506.01186) on fixed probes: the rate rises with each step, the probes tell where the loss falls fastest.

The raw training loss would not do: which noise levels were drawn moves it more than the rate does. Nothing trained here is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..backends.base import Backend
from ..config import TrainConfig
from ..data.folder import Dataset
from ..events import Control, Listener
from ..messages.errors import LoomError, NonFiniteError
from ..messages.message import Message
from ..optim.optimizers import OPTIMIZERS
from ..pictures.plots import curves
from .assemble import assembled
from .step import optimizer_step

WORSE = 1.5  # the test ends when the loss is this much above its start


@dataclasses.dataclass(frozen=True)
class LrRange:
    """(learning rate, probe loss) after each measured step, rising rates, and the rate at the steepest fall."""

    points: list[tuple[float, float]]
    suggested: float

    def message(self) -> Message:
        return Message.of("learning_rate.suggested", rate=f"{self.suggested:.1e}")

    def drawn(self) -> Image.Image:
        """The loss by learning rate, with the suggested one marked."""
        return curves({"loss on fixed probes, by learning rate": self.points}, self.suggested, logarithmic=True)


def lr_range(
    config: TrainConfig, backend: Backend, dataset: Dataset, cache: Path, listener: Listener, control: Control | None = None,
    low: float = 1e-6, high: float = 1e-1, steps: int = 60, every: int = 2,
) -> LrRange:  # fmt: skip
    """Trains up to `steps` steps at rates from `low` to `high`, evenly spread on a logarithmic scale, and throws the weights away.

    Raises LoomError for optimizers that find their rate themselves, and when the loss never falls.
    """
    if OPTIMIZERS[config.optimizer.name].one_lr:
        raise LoomError("optimizer.own_rate", field="optimizer.name", name=config.optimizer.name)
    control = control or Control()
    watched = dataclasses.replace(config.validation, every=config.validation.every or 1, patience=0, restore_best=False)
    test = dataclasses.replace(config, steps=steps, validation=watched, embedding=dataclasses.replace(config.embedding, stop=1.0))
    points: list[tuple[float, float]] = []
    with assembled(test, backend, dataset, cache, listener) as run:
        assert run.probes is not None
        listener.on_start(0, steps, {"layers": len(run.adapters), "trained_values": run.adapters.count(), "pictures": len(run.batches.pictures)})
        relative = [group["lr"] / run.config.optimizer.lr for group in run.optimizer.param_groups]
        start = _loss(run, 0)
        for step in range(steps):
            rate = low * (high / low) ** (step / max(1, steps - 1))
            for group, factor in zip(run.optimizer.param_groups, relative, strict=True):
                group["lr"] = rate * factor
            try:
                listener.on_step(optimizer_step(run, step))
            except NonFiniteError:
                break
            if (step + 1) % every == 0:
                points.append((rate, _loss(run, step + 1)))
                if not math.isfinite(points[-1][1]) or points[-1][1] > WORSE * start:
                    break
            if control.stopping:
                break
    return LrRange(points, steepest([(low, start), *points]))


def _loss(run, step: int) -> float:
    with run.finished_weights():
        found = run.probes.measure(run.backend, run.objective, step)
    return (found.held_out + found.trained) / 2


def steepest(points: Sequence[tuple[float, float]]) -> float:
    """The rate in the middle of the steepest fall of the loss over the logarithm of the rate, each point averaged with its neighbours.

    Raises LoomError when the loss falls nowhere.
    """
    good = [(rate, loss) for rate, loss in points if math.isfinite(loss)]
    means = [sum(v for _, v in good[max(0, n - 1) : n + 2]) / len(good[max(0, n - 1) : n + 2]) for n in range(len(good))]
    falls = [(means[n + 1] - means[n], math.sqrt(good[n][0] * good[n + 1][0])) for n in range(len(good) - 1)]
    if not falls or min(falls)[0] >= 0:
        raise LoomError("learning_rate.none_found", field="learning_rate")
    return min(falls)[1]
