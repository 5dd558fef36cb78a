"""What run folders say about themselves, for a list of hundreds of them: no model, no tensor, and no trust in what lies there.

A run is known by the name of its folder. Links are not followed, neither to a run nor inside of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..disk import locks
from ..messages.errors import LoomError
from ..pictures.plots import smoothed
from . import old_log, owner, remarks, state
from .bounded import as_number, as_step, as_text, is_regular, read, read_json, tail
from .checkpoints import MANIFEST
from .folders import RESERVED, last_run
from .measured import CONCEPTS, PICTURES

CONFIG, LOG, TEXT_LOG, WORKFLOW, BEFORE = "config.json", "log.jsonl", state.LOG, "workflow.json", "samples/before.png"
STRENGTH = "strength.json"  # the loss at each strength, and the best one
MAX_LOG_BYTES, MAX_WORKFLOW_BYTES, MAX_METADATA_BYTES = 256 << 20, 8 << 20, 256 << 10
MAX_FILES = 20_000
SPARK_POINTS = 40
FRESH_S = 600  # where locks cannot be asked, a run that wrote within this time is taken to be going on
ABOUT = ("ss_base_model_version", "modelspec.architecture", "modelspec.trigger_phrase", "ss_v2")
_STATES = {"stopped early": "stopped", "cancelled": "interrupted"}  # outcomes the list calls by a wider name
_SAMPLE = re.compile(r"samples/step-(\d{1,12})\.png")
_SAVE, _BEST = (
    re.compile(rf"checkpoints/step-(\d{{1,12}})/{re.escape(MANIFEST)}"),
    re.compile(r"checkpoints/best-(\d{1,12})\.safetensors"),
)
ENDED = ("finished", "stopped", "paused")  # states in which a run says itself how far it came
Files = dict[str, os.stat_result]


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """One run. `id`: its folder's name; `best`: (step, lowest loss on held-out pictures); `picture`: step of the newest sample, 0 for the one before training.

    `error`: the message of what ended it, as a page takes it. `about`: what the result's header says of base and trigger.
    `saves`: steps of whole checkpoints; `best_save`: the step whose weights are kept as the best. `base_file`: the name of the base's file, where the run
    knows it. `title`, `note`, `star`: what its user says of it. `spark`: its smoothed loss in a few numbers, where there is no picture to show.
    `strength`: what the result is best used at, where that was measured. `measured`: whether its pictures or concepts were.
    """

    id: str
    method: str
    base: str
    trigger: str
    step: int
    steps: int
    best: tuple[int, float] | None
    state: str
    error: dict[str, Any] | None
    changed: float
    size_bytes: int
    picture: int | None
    saves: list[int]
    best_save: int | None
    results: list[str]
    about: Mapping[str, str]
    base_file: str = ""
    title: str = ""
    note: str = ""
    star: bool = False
    spark: tuple[float, ...] = ()
    strength: float | None = None
    measured: bool = False


def run_ids(root: Path) -> list[str]:
    """Names of the run folders below `root`: real folders with a real config.json."""
    return sorted(name for name in _folder_names(root) if is_regular(root / name / CONFIG))


def _folder_names(root: Path) -> set[str]:
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        return {e.name for e in entries if e.is_dir(follow_symlinks=False) and _is_run_name(e.name)}
    return set()


def _is_run_name(name: str) -> bool:
    if name.startswith(".") or name.lower() in RESERVED:
        return False
    with contextlib.suppress(UnicodeEncodeError):  # bytes that are no text could not travel to a browser and back
        return bool(name.encode())
    return False


def find(root: Path, run: Any) -> Path:
    """The folder of the run called `run`. Raises LoomError for everything that is not in the list."""
    if not isinstance(run, str) or run not in _folder_names(root) or not is_regular(root / run / CONFIG):
        raise LoomError("run.unknown", field="run", run=repr(str(run)[:80]))
    return root / run


def listing(root: Path) -> list[RunInfo]:
    """Every run below `root`, the one that changed last first. Folders that cannot be read are left out."""
    infos = []
    for name in run_ids(root):
        with contextlib.suppress(OSError, LoomError):
            infos.append(read_run(root / name))
    return sorted(infos, key=lambda run: (-run.changed, run.id))


def read_run(folder: Path) -> RunInfo:
    """What a run folder says, with blanks where it is damaged. Raises LoomError for what is no run."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise LoomError("run.no_folder", folder=folder.name)
    data = config["data"] if isinstance(config.get("data"), dict) else {}
    files = _files(folder)
    saves, best_save = _saves(files)
    results = _results(files)
    ending = state.ending(folder) or old_log.ending(folder / TEXT_LOG)
    status = _state(folder, files, bool(results), ending)
    done = ending.step if ending.step is not None and status in ENDED else max([_last_step(folder / LOG), *saves[-1:]])
    header = _header(folder / results[0]) if results else {}
    changed = max((f.st_mtime for name, f in files.items() if name != remarks.FILE), default=0.0)
    remark = remarks.read(folder)
    picture = max(_pictures(files), default=None)
    return RunInfo(
        id=folder.name,
        method=as_text(config.get("method")) or "lora",
        base=as_text(config.get("base")),
        trigger=as_text(data.get("trigger")),
        step=done,
        steps=as_step(config.get("steps")) or 0,
        best=_best(folder / LOG, files.get(LOG)),
        state=status,
        error=ending.error,
        changed=changed,
        size_bytes=sum(f.st_size for f in files.values()),
        picture=picture,
        saves=saves,
        best_save=best_save,
        results=results,
        about={key: as_text(header.get(key)) for key in ABOUT if header.get(key)},
        base_file=_base_file(folder),
        title=remark.title,
        note=remark.note,
        star=remark.star,
        spark=_spark(folder / LOG, files.get(LOG)) if picture is None else (),
        strength=_strength(folder),
        measured=PICTURES in files or CONCEPTS in files,
    )


def pace(folder: Path) -> dict[str, float]:
    """`seconds_per_step` and `peak_bytes` of a run, where they were measured."""
    value = read_json(folder / state.FILE, state.MAX_BYTES)
    measured = value.get("pace") if isinstance(value, dict) else None
    numbers = (
        {name: as_number(measured.get(name)) for name in ("seconds_per_step", "peak_bytes")}
        if isinstance(measured, dict)
        else {}
    )
    return {name: number for name, number in numbers.items() if number is not None}


def _base_file(folder: Path) -> str:
    value = read_json(folder / state.FILE, state.MAX_BYTES)
    base = value.get("base_model") if isinstance(value, dict) else None
    return as_text(base.get("file")) if isinstance(base, dict) else ""


def _strength(folder: Path) -> float | None:
    value = read_json(folder / STRENGTH)
    return as_number(value.get("strength")) if isinstance(value, dict) else None


def settings(folder: Path) -> dict[str, Any]:
    """The settings of a run by path, such as adapter.rank; a list or a table is one value."""
    config = read_json(folder / CONFIG)
    out: dict[str, Any] = {}
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            out |= {f"{name}.{inner}": content for inner, content in value.items()}
        else:
            out[name] = value
    return out


def is_running(folder: Path) -> bool:
    return read_run(folder).state == "running"


def pictures(folder: Path) -> dict[int, Path]:
    """Step -> its sample picture; 0 is the one drawn before training."""
    return {step: folder / name for step, name in _pictures(_files(folder)).items()}


def curve(folder: Path, points: int = 600) -> dict[str, list[list[float]]]:
    """`loss` (smoothed) and `held_out` as [step, value], thinned to about `points`."""
    steps: list[int] = []
    losses: list[float] = []
    probes: list[list[float]] = []
    for row in _rows(read(folder / LOG, MAX_LOG_BYTES)):
        step, loss, held = as_step(row.get("step")), as_number(row.get("loss")), as_number(row.get("held_out"))
        if step is not None and loss is not None:
            steps.append(step)
            losses.append(loss)
            if held is not None:
                probes.append([step, held])
    line = [[step, round(value, 6)] for step, value in zip(steps, smoothed(losses))]
    return {"loss": _thinned(line, points), "held_out": _thinned(probes, points)}


def held_out(folder: Path) -> dict[int, float]:
    """Step -> loss on held-out pictures, where the run measured any."""
    rows = ((as_step(row.get("step")), as_number(row.get("held_out"))) for row in _rows(_probe_lines(folder / LOG)))
    return {step: held for step, held in rows if step is not None and held is not None}


def workflow(folder: Path) -> dict[str, Any] | None:
    """The graph the run was started from, where the folder holds it."""
    value = read_json(folder / WORKFLOW, MAX_WORKFLOW_BYTES)
    return value if isinstance(value, dict) and isinstance(value.get("nodes"), list) else None


def resumable(root: Path, run: str) -> Path:
    """The folder of a run that the train node's `continue last` goes on with when it is given this name. Raises LoomError when it would not."""
    folder = find(root, run)
    if not _saves(_files(folder))[0]:
        raise LoomError("run.no_checkpoint", field="run", run=repr(run))
    latest = last_run(root, run)
    if latest is not None and latest.name != run:
        raise LoomError("run.not_latest", field="run", run=repr(latest.name))
    return folder


def size_and_time(folder: Path) -> tuple[int, float]:
    """(bytes of all files, time of the last change of one)."""
    files = _files(folder).values()
    return sum(f.st_size for f in files), max((f.st_mtime for f in files), default=0.0)


def _files(folder: Path) -> Files:
    """Every real file in a folder and its real sub-folders, by its path below it."""
    files: Files = {}
    waiting = [("", str(folder))]
    while waiting and len(files) < MAX_FILES:
        above, place = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((f"{above}{entry.name}/", entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        files[above + entry.name] = entry.stat(follow_symlinks=False)
    return files


def _pictures(files: Files) -> dict[int, str]:
    named = {int(match[1]): name for name in files if (match := _SAMPLE.fullmatch(name))}
    return {0: BEFORE, **named} if BEFORE in files else named


def _saves(files: Files) -> tuple[list[int], int | None]:
    """(steps of whole checkpoints in order, step of the best weights that are kept)."""
    steps = [int(match[1]) for name in files if (match := _SAVE.fullmatch(name))]
    return sorted(steps), max((int(match[1]) for name in files if (match := _BEST.fullmatch(name))), default=None)


def _results(files: Files) -> list[str]:
    """Names of the result files, the LoRA before its embeddings."""
    names = [name for name in files if name.endswith(".safetensors") and "/" not in name and not name.startswith(".")]
    return sorted(names, key=lambda name: (name.endswith("_emb.safetensors"), len(name), name))


def _state(folder: Path, files: Files, has_result: bool, ending: state.Ending) -> str:
    """How it is with a run: what it says itself, and whether the process that said "running" still holds the log."""
    if ending.outcome != "running":
        return _STATES.get(ending.outcome, ending.outcome)
    if owner.is_trained(folder):
        return "running"
    if TEXT_LOG not in files:
        return "finished" if has_result else "interrupted"
    held = locks.is_held(folder / TEXT_LOG)
    if held is None:
        held = time.time() - max(files[name].st_mtime for name in (TEXT_LOG, LOG) if name in files) < FRESH_S
    return "running" if held else "interrupted"


def _best(log: Path, stat: os.stat_result | None) -> tuple[int, float] | None:
    return _best_of(log, stat.st_size, stat.st_mtime_ns) if stat else None


@functools.lru_cache(maxsize=4096)
def _best_of(log: Path, size: int, mtime_ns: int) -> tuple[int, float] | None:
    """The lowest held-out loss in a log of this size and time."""
    return min(held_out(log.parent).items(), key=lambda item: (item[1], item[0]), default=None)


def _spark(log: Path, stat: os.stat_result | None) -> tuple[float, ...]:
    return _spark_of(log, stat.st_size, stat.st_mtime_ns) if stat else ()


@functools.lru_cache(maxsize=4096)
def _spark_of(log: Path, size: int, mtime_ns: int) -> tuple[float, ...]:
    """The smoothed loss in a log of this size and time."""
    return tuple(loss for _, loss in curve(log.parent, SPARK_POINTS)["loss"])


def _probe_lines(log: Path) -> bytes:
    """The few lines of the log that hold a validation."""
    data, lines, at = read(log, MAX_LOG_BYTES), [], 0
    while (at := data.find(b'"held_out"', at)) >= 0:
        start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
        lines.append(data[start : end if end >= 0 else len(data)])
        at = end if end >= 0 else len(data)
    return b"\n".join(lines)


def _last_step(log: Path) -> int:
    rows = list(_rows(b"\n".join(tail(log, 4096).splitlines()[-3:])))
    return max((as_step(row.get("step")) or 0 for row in rows), default=0)


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of the whole lines; a line that is cut or foreign is passed over."""
    for line in data.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _header(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, which stands first in its header. Nothing where it does not."""
    try:
        with open(path, "rb") as file:
            head = file.read(min(int.from_bytes(file.read(8), "little"), MAX_METADATA_BYTES))
        at = head.index(b'"__metadata__":', 0, 64) + len(b'"__metadata__":')
        value, _ = json.JSONDecoder().raw_decode(head[at:].decode("utf-8", "ignore").lstrip())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _thinned(line: list[list[float]], points: int) -> list[list[float]]:
    """Every nth of the points, the last one always."""
    every = max(1, math.ceil(len(line) / points))
    return line[::every] + ([line[-1]] if line and (len(line) - 1) % every else [])
