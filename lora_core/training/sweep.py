"""Several runs of one job that differ in a few settings, on one loaded model, and a sheet that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import TrainConfig, from_values
from ..events import Listener
from ..messages.errors import LoomError
from ..messages.figures import figure
from ..pictures.plots import grid
from ..recipes import merged


def runs_of(values: dict[str, Any], beside: Path) -> list[TrainConfig]:
    """The jobs of a sweep: everything outside of `[[runs]]`, with each run's own values over it, called `<name>_<run's name>`.

    `score` is no setting of a job: it names the ruler that judges them all (`comparing.required_ruler`).
    """
    common = {k: v for k, v in values.items() if k not in ("runs", "score")}
    runs = values.get("runs")
    if (
        not isinstance(runs, list)
        or not runs
        or not all(isinstance(r, dict) and isinstance(r.get("name"), str) for r in runs)
    ):
        raise LoomError("sweep.no_runs", field="runs")
    prefix = name_of(values)
    names = [f"{prefix}_{run['name']}" for run in runs]
    if len(set(names)) < len(names):
        raise LoomError("sweep.name_repeated", field="runs", name=repr(next(n for n in names if names.count(n) > 1)))
    jobs = [from_values(merged(common, {**run, "name": name}), beside) for run, name in zip(runs, names, strict=True)]
    if len({job.base for job in jobs}) > 1:
        raise LoomError("sweep.one_base", field="runs")
    return jobs


def name_of(values: dict[str, Any]) -> str:
    """What a sweep is called: its runs' names begin with it."""
    return str(values.get("name", "sweep"))


class LastSamples(Listener):
    """Keeps the pictures a run drew last."""

    def __init__(self) -> None:
        self.images: list[Image.Image] = []

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        self.images = images


def sheet(runs: Sequence[tuple[str, Sequence[Image.Image], Sequence[str], float | None]]) -> Image.Image:
    """Runs as columns, prompts as rows, from (run, its pictures, their prompts, lowest loss on held-out pictures or None)."""
    rows = max(len(images) for _, images, _, _ in runs)
    cells, labels = [], []
    for row in range(rows):
        for name, images, prompts, loss in runs:
            cells.append(images[row] if row < len(images) else Image.new("RGB", (64, 64), "white"))
            lowest = f" ({figure(loss)})" if loss is not None else ""
            labels.append(f"{name}{lowest}: {prompts[row]}" if row < len(prompts) else name)
    return grid(cells, labels, columns=len(runs))
