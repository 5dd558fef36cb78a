"""What a run will cost, from the newest earlier run whose steps cost the same: measured, never guessed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import TrainConfig, as_dict
from .bounded import as_number, as_step, as_text, read_json
from .listing import CONFIG, run_ids
from .state import FILE

MOST_RUNS = 200  # newest ones that are asked for a pace
_DECIDING = (  # settings that decide what a step costs, given the base
    "method", "batch_size", "grad_accum", "precision", "checkpointing", "recompute", "compile", "offload", "storage",
    "data.resolution", "adapter.algorithm", "adapter.targets", "text_encoder.train",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run like this one took: seconds of a step, bytes at its highest, and which run that was."""

    seconds_per_step: float
    peak_bytes: int
    run: str


def estimate(root: Path, config: TrainConfig, family: str) -> Estimate | None:
    """From the newest run below `root` of this family whose steps cost the same; None where there is none."""
    wanted = deciding(as_dict(config))
    newest = sorted(run_ids(root), key=lambda run: -_changed(root / run))[:MOST_RUNS]
    for run in newest:
        state, job = read_json(root / run / FILE), read_json(root / run / CONFIG)
        if not isinstance(state, dict) or not isinstance(job, dict) or _family(state) != family:
            continue
        if deciding(job) == wanted and (measured := _measured(state)):
            return Estimate(*measured, run)
    return None


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job's config that decide what a step costs, by path; None for what it lacks."""
    out = {}
    for path in _DECIDING:
        value: Any = config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        out[path] = value
    return out


def _measured(state: Mapping[str, Any]) -> tuple[float, int] | None:
    pace = state.get("pace")
    if not isinstance(pace, dict):
        return None
    seconds, peak = as_number(pace.get("seconds_per_step")), as_step(pace.get("peak_bytes"))
    return (seconds, peak) if seconds and 0 < seconds < 1e6 and peak is not None else None


def _family(state: Mapping[str, Any]) -> str:
    base = state.get("base_model")
    return as_text(base.get("family")) if isinstance(base, dict) else ""


def _changed(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / FILE).stat().st_mtime
    return 0.0
