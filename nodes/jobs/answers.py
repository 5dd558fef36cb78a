"""What the pages of every host are told of panels and runs. A run is named by its folder's name, which is looked up in a listing; paths never travel."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...lora_core.messages.errors import LoomError
from ...lora_core.messages.message import LANGUAGES, table
from ...lora_core.pictures.reading import PictureError, thumbnail
from ...lora_core.runs import listing, trash
from .panel import Panels
from .requests import Refused

SMALL_PX = 128
SAMPLE_SIZES_PX = (SMALL_PX, 1024)  # of the samples in a panel
PICTURE_SIZES_PX = (256, 1024)  # of pictures: in the list of runs, side by side
Told = Callable[[listing.RunInfo], dict[str, str]]  # base model and trigger in words


@functools.cache
def sentences(language: str) -> tuple[str, str]:
    """(the sentences of a language by code as JSON, what tells them from others). Raises Refused."""
    if language not in LANGUAGES:
        raise Refused(404, "request.language", languages=LANGUAGES)
    text = json.dumps(table(language), ensure_ascii=False)
    return text, hashlib.sha256(text.encode()).hexdigest()[:16]


def panel_state(panels: Panels, node: str, workflow: str, after: int, session: str) -> dict[str, Any]:
    """The panel of a node; `after` counts only within the session the browser knows."""
    panel = panels.find(node, workflow)
    if panel is None:
        return {"panel": None}
    return {"panel": panel.snapshot(after if panel.session == session else 0)}


def sample_file(root: Path, run: str, step: int) -> Path:
    """The samples of a run after a step; step 0: without the adapter. Raises Refused for what is not there."""
    folder = next((p for p in root.iterdir() if p.name == run and p.is_dir()), None) if root.is_dir() else None
    name = "before.png" if step == 0 else f"step-{step}.png"
    file = next((p for p in (folder / "samples").glob("*.png") if p.name == name), None) if folder else None
    if file is None or not file.resolve().is_relative_to(root.resolve()):
        raise Refused(404, "sample.missing")
    return file


def sample_jpeg(root: Path, run: str, step: int, side_px: int) -> bytes:
    """That sheet of samples, small. Raises Refused."""
    if side_px not in SAMPLE_SIZES_PX:
        raise Refused(400, "request.size", sizes=[*map(str, SAMPLE_SIZES_PX)])
    return _jpeg(sample_file(root, run, step), side_px, 90, "sample.unreadable")


def _jpeg(file: Path, side_px: int, quality: int, code: str) -> bytes:
    out = io.BytesIO()
    try:
        thumbnail(file, side_px).save(out, "JPEG", quality=quality)
    except PictureError as error:
        raise Refused(404, code, error=error) from error
    return out.getvalue()


def listed(root: Path, details: Told, place: str) -> dict[str, Any]:
    """Every run and what lies in the trash; `place`: what a person calls the folder of all runs."""
    rows = [{**vars(run), **details(run)} for run in listing.listing(root)]
    for row in rows:
        del row["about"]
    return {
        "runs": rows,
        "trash": [dataclasses.asdict(thrown) for thrown in trash.thrown_away(root)],
        "place": place,
    }


def run_named(root: Path, run: Any) -> Path:
    """The folder of a run. Raises Refused."""
    if not isinstance(run, str):
        raise Refused(400, "request.run")
    try:
        return listing.find(root, run)
    except LoomError as error:
        raise Refused(404, error.message) from error


def run_picture(root: Path, run: Any, step: str, large: bool) -> bytes:
    """The sheet of samples of a run after a step. Raises Refused."""
    pictures = listing.pictures(run_named(root, run))
    path = pictures.get(int(step)) if step.isascii() and step.isdigit() and len(step) < 13 else None
    if path is None:
        raise Refused(404, "sample.no_step")
    return _jpeg(path, PICTURE_SIZES_PX[large], 85, "sample.picture_unreadable")


def resumed(root: Path, run: Any) -> dict[str, Any]:
    """The name to go on with, and the graph the run was started from where its folder holds one."""
    run_named(root, run)
    folder = listing.resumable(root, run)
    return {"name": folder.name, "workflow": listing.workflow(folder)}


def save_named(save: Any) -> str | int:
    """Which save of a run is meant. Raises Refused."""
    if save in ("result", "best", "last") or (
        isinstance(save, int) and not isinstance(save, bool) and 0 <= save < 10**12
    ):
        return save
    raise Refused(400, "request.save")
