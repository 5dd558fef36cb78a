"""Variants of a job, each trained with several seeds: what they differ in, what each measured, and how far the seeds lie apart.

Everything is kept as it comes, so that a comparison of many hours goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..backends.base import Backend
from ..config import TrainConfig, as_dict, check, parse
from ..disk import files, locks
from ..events import Listener
from ..messages.errors import LoomError
from ..messages.figures import figure
from ..messages.message import Message
from ..pictures.encoded import as_png
from ..runs.bounded import read_json
from ..toy.taught import TAUGHT
from .demo import score

ROWS, LOCK = "results.json", "results.lock"
FOLDER_END = "-results"  # of the folder of a comparison
TABLE = "results.md"
SUBJECT, LEAKED = "shown with the trigger", "shown without it"  # measures, by the names that files of rows have
LOWEST, MINUTES = "lowest loss on validation pictures", "minutes"
HEADS = {
    SUBJECT: "sweep.shown", LEAKED: "sweep.leaked", LOWEST: "sweep.lowest_loss", MINUTES: "sweep.minutes",
}  # fmt: skip
MAX_BYTES = 16 << 20
MAX_SEEDS = 20
# Student's t, two-sided 95 %, for 1, 2, 3 … degrees of freedom (Fisher & Yates, Statistical Tables, table III).
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip
Drawn = Sequence[tuple[str, Image.Image]]  # prompt, picture
APART = ("name", "seed")  # what differs between trials without being what is compared


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training of a variant. `seed` counts from 0 over the job's own."""

    variant: str
    seed: int
    config: TrainConfig

    @property
    def digest(self) -> str:
        """Of every setting but the name that is not left as it is: the same trial is not trained twice, whatever comparison asks for it.

        What is left as it is does not count, so that a setting that is new does not make every trial a new one.
        """
        values, plain = as_dict(self.config), as_dict(parse({"base": "toy", "data": {"folder": "any"}}))
        plain["base"] = plain["data"]["folder"] = ""
        settings = {k: v for k, v in _changed(values, plain).items() if k != "name"}
        settings["sets"] = [_changed(one, plain["data"]) for one in values["sets"]]
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _changed(values: Any, plain: Any) -> Any:
    """Of nested settings those that are not as in `plain`; lists whole."""
    if not isinstance(values, dict) or not isinstance(plain, dict):
        return values
    return {k: _changed(v, plain.get(k)) for k, v in values.items() if k not in plain or v != plain[k]}


def trials(jobs: Sequence[TrainConfig], seeds: int) -> list[Trial]:
    """Each job with as many seeds, seed after seed, so that a comparison that is broken off has some of every variant."""
    check("--seeds", seeds, int, {"low": 1, "high": MAX_SEEDS, "choices": ()})
    return [
        Trial(job.name, n, job if seeds == 1 else dataclasses.replace(job, name=f"{job.name}_s{n}", seed=job.seed + n))
        for n in range(seeds)
        for job in jobs
    ]


def required_ruler(values: Mapping[str, Any]) -> str:
    """The bundled set whose ruler judges each result (`score`); empty for none. Raises LoomError for an unknown one."""
    name = values.get("score", "")
    if name and name not in TAUGHT:
        raise LoomError("demo.no_set", field="score", name=repr(name), allowed=TAUGHT)
    return str(name)


class Judged(Listener):
    """Measures what a run has learned at its end, while it still lies on the model: shares of pictures with and without the trigger that show it."""

    def __init__(self, backend: Backend, ruler: str) -> None:
        self._backend, self._ruler = backend, ruler
        self.measures: dict[str, float] = {}

    def on_end(self, outcome: str, step: int) -> None:
        if self._ruler:
            subject, leaked = score(self._backend, self._ruler)
            self.measures = {SUBJECT: subject, LEAKED: leaked}


# ---- what is kept ----------------------------------------------------------------------------------------------------


class Results:
    """The rows of a comparison in a folder of their own, and the pictures that each trial drew last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = rows_in(folder)

    def has(self, trial: Trial) -> bool:
        return bool(self._row(trial))

    def _row(self, trial: Trial) -> dict[str, Any]:
        """What is kept of a trial; empty where it is not finished."""
        digest = trial.digest
        return next((row for row in self.rows if row.get("digest") == digest), {})

    def borrow(self, trials: Sequence[Trial], ruler: str) -> int:
        """Takes over what comparisons beside this one measured of the same trials by the same ruler; how many that were."""
        missing = {trial.digest: trial for trial in trials if not self.has(trial)}
        borrowed = 0
        for folder in sorted(self.folder.parent.glob(f"*{FOLDER_END}")):
            for row in rows_in(folder):
                if row.get("ruler") == ruler and row.get("digest") in missing:
                    trial = missing.pop(row["digest"])
                    self._keep(trial, row["measures"], drawn_in(folder, row), str(row.get("run", "")), ruler)
                    borrowed += 1
        return borrowed

    def add(self, trial: Trial, measures: Mapping[str, float], drawn: Drawn, run: Path, ruler: str = "") -> None:
        """A non-finite measure is left out."""
        finite = {name: value for name, value in measures.items() if math.isfinite(value)}
        self._keep(trial, finite, drawn, run.name, ruler)

    def _keep(self, trial: Trial, measures: Mapping[str, float], drawn: Drawn, run: str, ruler: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = [f"{trial.config.name}-{n}.png" for n in range(len(drawn))]
        for name, (_, image) in zip(pictures, drawn):
            files.write_bytes(self.folder / name, as_png(image))
        row = {"variant": trial.variant, "seed": trial.config.seed, "run": run, "digest": trial.digest, "ruler": ruler}
        sheet = {"prompts": [prompt for prompt, _ in drawn], "pictures": pictures}
        with open(self.folder / LOCK, "ab") as writer:
            locks.hold(writer)  # two comparisons may write here
            known = {row.get("digest") for row in self.rows}
            self.rows += [row for row in rows_in(self.folder) if row.get("digest") not in known]
            self.rows.append({**row, **sheet, "measures": measures})
            files.write_json(self.folder / ROWS, self.rows)

    def drawn(self, trial: Trial) -> Drawn:
        """(prompt, picture) of what a finished trial drew last, as far as the pictures are there."""
        return drawn_in(self.folder, self._row(trial))

    def of(self, variant: str, digests: Sequence[str]) -> list[dict[str, float]]:
        """The measures of a variant's trials of this comparison."""
        return [r["measures"] for r in self.rows if r.get("variant") == variant and r.get("digest") in digests]


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """What a results folder holds, in the order of its trainings; nothing where it cannot be read."""
    rows = read_json(folder / ROWS, MAX_BYTES)
    rows = rows if isinstance(rows, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("measures"), dict)]


def drawn_in(folder: Path, row: Mapping[str, Any]) -> Drawn:
    """(prompt, picture) of a row, as far as the pictures are there; none is taken from outside the folder."""
    places = [
        (str(prompt), folder / Path(str(name)).name)
        for prompt, name in zip(row.get("prompts", ()), row.get("pictures", ()))
    ]
    return [(prompt, Image.open(place).convert("RGB")) for prompt, place in places if place.is_file()]


# ---- the table -------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half the width of its 95 % confidence interval, None for a single value)."""
    if len(values) < 2:
        return values[0], None
    half = T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def differences(jobs: Sequence[TrainConfig]) -> dict[str, dict[str, Any]]:
    """Variant -> the settings that are not alike in all variants, by their path."""
    flat = {job.name: _flat(as_dict(job)) for job in jobs}

    def differs(path: str) -> bool:
        return len({repr(values.get(path)) for values in flat.values()}) > 1

    paths = [path for path in next(iter(flat.values())) if path not in APART and differs(path)]
    return {name: {path: values.get(path) for path in paths} for name, values in flat.items()}


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(_flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value})
    return out


def table(jobs: Sequence[TrainConfig], results: Results, digests: Sequence[str]) -> str:
    """Variants as rows: their settings, and each measure as mean ± half of its 95 % interval over the seeds. Markdown."""
    settings, rows = differences(jobs), {job.name: results.of(job.name, digests) for job in jobs}
    measures = list(dict.fromkeys(name for row in rows.values() for one in row for name in one))
    paths = list(next(iter(settings.values())))
    variant, seeds = (str(Message.of(code)) for code in ("sweep.variant", "sweep.seeds"))
    lines = [[variant, *paths, seeds, *map(_head, measures)]]
    for variant, row in rows.items():
        cells = [_cell(row, name) for name in measures]
        lines.append([variant, *(_setting(settings[variant][p]) for p in paths), str(len(row)), *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _head(measure: str) -> str:
    return str(Message.of(HEADS[measure])) if measure in HEADS else measure


def _cell(seeds: Sequence[Mapping[str, float]], measure: str) -> str:
    values = [seed[measure] for seed in seeds if measure in seed]
    if not values:
        return ""
    mean, half = interval(values)
    return figure(mean) if half is None else f"{figure(mean)} ± {figure(half)}"


def _setting(value: Any) -> str:
    text = str(value).replace("|", "\\|").replace("\n", " / ")
    return text if len(text) <= 40 else f"{text[:39]}…"
