"""Experiment trackers for headless runs, through accelerate: TensorBoard, Weights & Biases and the others it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..compat import needed
from ..events import Listener, Measure, StepReport
from ..messages.errors import LoomError

FOLDER = "tracking"


class Tracker(Listener):
    """Passes losses, rates, probes and sample pictures on. `config` may name folders of this machine; only their last part is passed on."""

    def __init__(self, name: str, run_name: str, folder: Path):
        """Raises LoomError for a tracker that does not exist or is not installed."""
        tracking = needed("accelerate.tracking")
        kinds = {str(kind): cls for kind, cls in tracking.LOGGER_TYPE_TO_CLASS.items()}
        if name not in kinds:
            raise LoomError("trackers.unknown", field="trackers", name=repr(name), allowed=sorted(kinds))
        if name not in {str(kind) for kind in tracking.get_available_trackers()}:
            raise LoomError("trackers.not_installed", field="trackers", name=name)
        needed("accelerate").PartialState()
        kind, place = kinds[name], folder / FOLDER
        if kind.requires_logging_directory:
            place.mkdir(parents=True, exist_ok=True)
        self._tracker = kind(run_name, str(place)) if kind.requires_logging_directory else kind(run_name)
        self._image_options = {"dataformats": "NHWC"} if name == "tensorboard" else {}
        if hasattr(self._tracker, "start"):
            self._tracker.start()

    def on_start(self, first_step: int, steps: int, facts: dict[str, Any]) -> None:
        flat = {
            **_flat(facts["config"]),
            **{key: facts[key] for key in ("layers", "trained_values", "pictures", "objective")},
        }
        self._tracker.store_init_configuration(flat)

    def on_step(self, report: StepReport) -> None:
        values = {"loss": report.loss, "lr": report.lr, "grad_norm": report.grad_norm}
        self._tracker.log(
            {**values, **({"class_loss": report.class_loss} if report.class_loss else {})}, step=report.step
        )

    def on_validation(self, measure: Measure, best: Measure) -> None:
        self._tracker.log({"held_out_loss": measure.held_out, "trained_loss": measure.trained}, step=measure.step)

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        if hasattr(self._tracker, "log_images"):
            pixels = np.stack([np.asarray(i.convert("RGB").resize(images[0].size)) for i in images])
            self._tracker.log_images({"samples": pixels}, step=step, **self._image_options)

    def on_end(self, outcome: str, step: int) -> None:
        self._tracker.finish()


def _flat(config: dict[str, Any], where: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as one level; folders by their last part, so no path of this machine leaves it."""
    out: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{where}{key}.")
        elif isinstance(value, list | tuple):
            out[f"{where}{key}"] = len(value)
        elif key in ("folder", "base", "companion", "start_from", "fixed") and isinstance(value, str):
            out[f"{where}{key}"] = Path(value).name
        else:
            out[f"{where}{key}"] = value
    return out
