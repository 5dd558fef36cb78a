"""What the pages of every host are told of panels and runs. A run is named by its folder's name, which is looked up in a listing; paths never travel."""

from __future__ import annotations

import contextlib
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
from ...lora_core.messages.naming import Rows
from ...lora_core.pictures.films import frames_of, read_film
from ...lora_core.pictures.moving import animated_webp
from ...lora_core.pictures.plots import SHEET_MARGIN_PX
from ...lora_core.pictures.reading import PictureError, open_picture, read_size
from ...lora_core.pictures.thumbnails import thumbnail
from ...lora_core.runs import listing, measured, remarks, trash
from ...lora_core.runs.folders import config_of
from ...lora_core.training.prompts import Prompt, job_of, prompts_in
from .panel import Panels
from .requests import Refused

SMALL_PX = 128
SAMPLE_SIZES_PX = (SMALL_PX, 1024)  # of the samples in a panel
PICTURE_SIZES_PX = (256, 1024)  # of pictures: in the list of runs, side by side
REMARK_BODY = 32 << 10  # bytes
Told = Callable[[listing.RunInfo], dict[str, str]]  # base model and trigger in words


@functools.cache
def sentences(language: str, names: Callable[[str], Rows]) -> tuple[str, str]:
    """(the sentences of a language by code and what its `names` of settings are, as JSON; what tells them from others). Raises Refused."""
    if language not in LANGUAGES:
        raise Refused(404, "request.language", languages=LANGUAGES)
    text = json.dumps({"sentences": table(language), "names": names(language)}, ensure_ascii=False)
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
    """That sheet of samples, small; clips in the largest size as WebP that plays. Raises Refused."""
    if side_px not in SAMPLE_SIZES_PX:
        raise Refused(400, "request.size", sizes=[*map(str, SAMPLE_SIZES_PX)])
    file = sample_file(root, run, step)
    playing = _playing(file) if side_px == max(SAMPLE_SIZES_PX) else None
    return playing or _jpeg(file, side_px, 90, "sample.unreadable")


def _playing(sheet: Path) -> bytes | None:
    """The same samples as they play; None for still ones."""
    try:
        return sheet.with_suffix(".webp").read_bytes()
    except OSError:
        return None


def picture_type(data: bytes) -> str:
    """What a browser is told a picture is."""
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "image/jpeg"


def samples_of(root: Path, run: str) -> dict[str, Any]:
    """What a run has drawn: [step, time of the picture] of each sheet (step 0: without the adapter), pictures on a sheet, and what each was drawn from.

    Raises Refused.
    """
    folder = run_named(root, run)
    marks = []
    for step, file in sorted(listing.pictures(folder).items()):
        with contextlib.suppress(OSError):  # gone meanwhile
            marks.append([step, int(file.stat().st_mtime)])
    count = 0
    if marks:
        with contextlib.suppress(PictureError):
            count = _cells(read_size(sample_file(root, run, marks[-1][0])))
    return {"run": folder.name, "samples": marks, "pictures": count, "prompts": _prompts(folder)}


def _prompts(folder: Path) -> list[dict[str, Any]]:
    """What each picture of a sheet is drawn from; a prompt that the job does not name is empty."""
    try:
        config = config_of(folder)
        jobs = [job_of(prompt, config) for prompt in prompts_in(config.samples.prompt) or [Prompt("", {})]]
    except LoomError:
        return []
    return [
        {
            "prompt": job.prompt,
            "width": job.width_px,
            "height": job.height_px,
            **{name: getattr(job.config, name) for name in ("seed", "cfg", "steps", "sampler", "scheduler")},
        }
        for job in jobs
    ]


def _cells(size: tuple[int, int]) -> int:
    """How many pictures lie side by side on a sheet of samples: square cells in one row, with a margin around each."""
    width, height = size
    return max(1, round((width - SHEET_MARGIN_PX) / max(1, height - SHEET_MARGIN_PX)))


def sample_cell_jpeg(root: Path, run: str, step: int, number: int) -> bytes:
    """Picture `number` (from 0) of a sheet of samples, as large as it is; a clip as WebP that plays. Raises Refused."""
    file = sample_file(root, run, step)
    try:
        sheet = open_picture(file).rgb
    except PictureError as error:
        raise Refused(404, "sample.unreadable", error=error) from error
    if not 0 <= number < _cells(sheet.size):
        raise Refused(404, "sample.missing")
    side = sheet.height - 2 * SHEET_MARGIN_PX
    left = SHEET_MARGIN_PX + number * (side + SHEET_MARGIN_PX)
    out = io.BytesIO()
    box = (left, SHEET_MARGIN_PX, left + side, SHEET_MARGIN_PX + side)
    if (playing := _cell_playing(file, sheet.size, box)) is not None:
        return playing
    sheet.crop(box).save(out, "JPEG", quality=93)
    return out.getvalue()


def _cell_playing(file: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> bytes | None:
    """What is in `box` of a sheet of `size`, cut out of the same sheet as it plays; None for still ones."""
    moving = file.with_suffix(".webp")
    try:
        film = read_film(moving)
        frames = list(frames_of(moving, film, range(len(film.times_s))))
    except PictureError:
        return None
    scale = film.width_px / size[0]
    left, top, right, bottom = (round(side * scale) for side in box)
    return animated_webp([frame.crop((left, top, right, bottom)) for frame in frames], film.rate)


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


def settings_of(root: Path, run: Any) -> dict[str, Any]:
    """The settings of a run by path, and what its steps took. Raises Refused."""
    folder = run_named(root, run)
    return {"settings": listing.settings(folder), "pace": listing.pace(folder)}


def remarked(root: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Writes what a person says of a run (title, note, star) and returns all of it. Raises Refused, LoomError."""
    folder = run_named(root, body.get("id"))
    return dataclasses.asdict(remarks.write(folder, {name: value for name, value in body.items() if name != "id"}))


def run_picture(root: Path, run: Any, step: str, large: bool) -> bytes:
    """The sheet of samples of a run after a step. Raises Refused."""
    pictures = listing.pictures(run_named(root, run))
    path = pictures.get(int(step)) if step.isascii() and step.isdigit() and len(step) < 13 else None
    if path is None:
        raise Refused(404, "sample.no_step")
    return (_playing(path) if large else None) or _jpeg(path, PICTURE_SIZES_PX[large], 85, "sample.picture_unreadable")


def measured_of(root: Path, run: Any) -> dict[str, Any]:
    """What was measured of the pictures and concepts of a run. Raises Refused."""
    return measured.measured(run_named(root, run))


def thumbnails_of(root: Path, run: Any) -> bytes:
    """The measured pictures of a run in small, on one sheet. Raises Refused."""
    data = measured.thumbnails(run_named(root, run))
    if not data:
        raise Refused(404, "sample.missing")
    return data


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
