"""A look at the pictures of a dataset open in an editor, in a thread of its own: what the dataset sheet would note, by picture."""

from __future__ import annotations

import dataclasses
import logging
import statistics
import threading
from collections.abc import Mapping
from typing import Any

from ...lora_core.config import DataConfig
from ...lora_core.data.edits import identity
from ...lora_core.data.folder import Dataset, scan
from ...lora_core.data.lint import look
from ...lora_core.data.looks import kind, severity
from ...lora_core.messages.errors import message_of
from ...lora_core.messages.message import Message

log = logging.getLogger(__name__)
USUAL_PX, TINY_PX, STEP_PX = 512, 64, 8  # what a picture is measured by before it is known at which size it is trained
TINY_SIDE_PX = 128  # of a set's middle picture, below which the set is one for a toy
OF_CAPTIONS = (
    "lint.no_caption",
    "lint.caption_cut",
    "lint.caption_pieces",
)  # which change while one edits, and are the page's to tell


class Looking:
    """`as_json` says how far it is, and what was noticed once it is done."""

    def __init__(self, sets: tuple[DataConfig, ...]):
        self._sets, self._done, self._total, self._ready = sets, 0, 0, False
        self._notes: dict[str, list[dict[str, Any]]] = {}
        self._general: list[dict[str, Any]] = []
        self._error: Message | None = None
        threading.Thread(target=self._look, name="LoRA Loom looks at pictures", daemon=True).start()

    def as_json(self) -> dict[str, Any]:
        """For a page."""
        out: dict[str, Any] = {"done": self._done, "total": self._total, "ready": self._ready}
        if self._ready:
            error = self._error and self._error.as_json()
            out |= {"notes": self._notes, "general": self._general, "error": error}
        return out

    def _look(self) -> None:
        try:
            for data in self._sets:
                self._look_at(sized(data))
        except Exception as error:  # noqa: BLE001 - the page tells of it, and the editor works without
            log.warning("The pictures could not be looked at: %s", error)
            self._error = message_of(error)
        finally:
            self._ready = True

    def _look_at(self, dataset: Dataset) -> None:
        before = self._done

        def show(done: int, total: int) -> None:
            self._done, self._total = before + done, before + total

        report = look(dataset, None, show)
        for name, notes in report.notes.items():
            notes_shown = [noted(note) for note in notes if note.code not in OF_CAPTIONS]
            if notes_shown:
                self._notes[identity(dataset.folder, name)] = notes_shown
        self._general += [noted(note) for note in report.general]


def noted(note: Message) -> dict[str, Any]:
    """A note for a page: the message, how grave it is, and what its kind is called."""
    return {**note.as_json(), "severity": severity(note), "kind": kind(note)}


def sized(data: DataConfig) -> Dataset:
    """The pictures of a set, those left out too, at a size they could be trained at. Raises LoomError."""
    options: Mapping[str, Any] = {"resolution": USUAL_PX, "bucket_step_px": STEP_PX}
    dataset = scan(dataclasses.replace(data, **options), keep_excluded=True)
    pictures = [*dataset.pictures, *dataset.class_pictures]
    middle = statistics.median(min(p.width_px, p.height_px) for p in pictures)
    if middle > TINY_SIDE_PX:
        return dataset
    return scan(dataclasses.replace(data, resolution=TINY_PX, bucket_step_px=STEP_PX), keep_excluded=True)
