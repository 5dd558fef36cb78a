"""Learning rate range test (Smith 2017, arXiv 1506.01186) on fixed probes: the rate rises with each step, the probes tell where the loss falls fastest.

The raw training loss would not do: which noise levels were drawn moves it more than the rate does. Nothing trained here is kept.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from PIL import Image

from ..messages.errors import LoomError, NonFiniteError
from ..messages.message import Message
from ..optim.optimizers import OPTIMIZERS
from ..pictures.plots import curves
from .assemble import assembled
from .job import Job
from .run import Run
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


@dataclasses.dataclass(frozen=True)
class Trial:
    """Rates from `low` to `high` on a logarithmic scale in `steps` steps, the loss measured after `every` of them.

    `held_out`: whether some pictures are held out for it where there are several; else those that are trained are measured.
    """

    low: float = 1e-6
    high: float = 1e-1
    steps: int = 60
    every: int = 2
    held_out: bool = True

    def rate(self, step: int) -> float:
        """The learning rate of step number `step` (from 0)."""
        return self.low * (self.high / self.low) ** (step / max(1, self.steps - 1))


def lr_range(job: Job, trial: Trial = Trial()) -> LrRange:
    """Trains up to `trial.steps` steps at rising rates, and throws the weights away.

    Raises LoomError for optimizers that find their rate themselves, and when the loss never falls.
    """
    config = job.config
    if OPTIMIZERS[config.optimizer.name].one_lr:
        raise LoomError("optimizer.own_rate", field="optimizer.name", name=config.optimizer.name)
    several = trial.held_out and (bool(config.validation.folder) or len(job.dataset.pictures) > 1)
    every = (config.validation.every or 1) if several else 0
    quiet = dataclasses.replace(config.validation, calibrate=False, concepts=False, each_picture=False)
    watched = dataclasses.replace(quiet, every=every, patience=0, restore_best=False)
    endless = dataclasses.replace(config.embedding, stop=1.0)
    test = dataclasses.replace(
        config, steps=trial.steps, steps_per_picture=0, epochs=0, validation=watched, embedding=endless
    )
    with assembled(job.with_config(test)) as run:
        facts = {
            "layers": len(run.adapters),
            "trained_values": run.adapters.count(),
            "pictures": len(run.batches.pictures),
        }
        job.listener.on_start(0, trial.steps, facts)
        return LrRange(*_measured(run, trial, job))


def _measured(run: Run, trial: Trial, job: Job) -> tuple[list[tuple[float, float]], float]:
    """(points of (rate, loss), the rate at the steepest fall)."""
    relative = [group["lr"] / run.config.optimizer.lr for group in run.optimizer.param_groups]
    start, points = _loss(run, 0), list[tuple[float, float]]()
    for step in range(trial.steps):
        for group, factor in zip(run.optimizer.param_groups, relative, strict=True):
            group["lr"] = trial.rate(step) * factor
        try:
            job.listener.on_step(optimizer_step(run, step))
        except NonFiniteError:
            break
        if (step + 1) % trial.every == 0:
            loss = _loss(run, step + 1)
            points.append((trial.rate(step), loss))
            if not math.isfinite(loss) or loss > WORSE * start:
                break
        if job.control.stopping:
            break
    return points, steepest([(trial.low, start), *points])


def _loss(run: Run, step: int) -> float:
    """Mean over held-out and trained probes; of one picture alone, which cannot be held out, over those."""
    probes = run.probes()
    with run.finished_weights():
        if probes.held_out is None:
            return statistics.fmean(probes.losses(run.backend, run.objective))
        measure = probes.measure(run.backend, run.objective, step)
    return (measure.held_out + measure.trained) / 2


def steepest(points: Sequence[tuple[float, float]]) -> float:
    """The rate in the middle of the steepest fall of the loss over the logarithm of the rate, each point averaged with its neighbours.

    Raises LoomError when the loss falls nowhere.
    """
    good = [(rate, loss) for rate, loss in points if math.isfinite(loss)]
    means = [
        sum(v for _, v in good[max(0, n - 1) : n + 2]) / len(good[max(0, n - 1) : n + 2]) for n in range(len(good))
    ]
    falls = [(means[n + 1] - means[n], math.sqrt(good[n][0] * good[n + 1][0])) for n in range(len(good) - 1)]
    if not falls or min(falls)[0] >= 0:
        raise LoomError("learning_rate.none_found", field="learning_rate")
    return min(falls)[1]
