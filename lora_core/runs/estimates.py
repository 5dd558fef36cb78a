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
    """What a run like this one took: seconds of a step, bytes at its highest, and which run that was.

    `works`: seconds of what is not a step, where it was measured: preparing, a picture encoded (pictures), a picture drawn (samples) in `sampler_steps`,
    a save (saves), a measurement (validations), the result (writing). `encoded`: it had the same pictures at the same size, which are kept encoded.
    """

    seconds_per_step: float
    peak_bytes: int
    run: str
    works: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sampler_steps: int = 20
    encoded: bool = False


def estimate(root: Path, config: TrainConfig, family: str, file: str = "") -> Estimate | None:
    """From the newest run below `root` of this family whose steps cost the same; None where there is none.

    One on the same model `file` comes first: another of the family may lie in other numbers.
    """
    settings, other = deciding(as_dict(config)), None
    newest = sorted(run_ids(root), key=lambda run: -_changed(root / run))[:MOST_RUNS]
    for run in newest:
        state, job = read_json(root / run / FILE), read_json(root / run / CONFIG)
        if not isinstance(state, dict) or not isinstance(job, dict) or _of_base(state, "family") != family:
            continue
        if deciding(job) == settings and (measured := _measured(state)):
            encoded = job.get("data") == as_dict(config)["data"]
            candidate = Estimate(*measured, run, _works(state), _sampler_steps(job), encoded)
            if not file or _of_base(state, "file") == file:
                return candidate
            other = other or candidate
    return other


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


def _works(state: Mapping[str, Any]) -> dict[str, float]:
    works = state["pace"].get("seconds")
    numbers = {kind: as_number(spent) for kind, spent in works.items()} if isinstance(works, dict) else {}
    return {kind: spent for kind, spent in numbers.items() if spent is not None and 0 <= spent < 1e6}


def _sampler_steps(job: Mapping[str, Any]) -> int:
    samples = job.get("samples")
    return (as_step(samples.get("steps")) if isinstance(samples, dict) else None) or 20


def _of_base(state: Mapping[str, Any], what: str) -> str:
    base = state.get("base_model")
    return as_text(base.get(what)) if isinstance(base, dict) else ""


def _changed(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / FILE).stat().st_mtime
    return 0.0
