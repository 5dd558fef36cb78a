"""What validation keeps beside its two curves: the course of each measured picture, and how concepts stand to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.dataset import Picture
from ..disk import files
from ..messages.message import Message
from ..pictures.reading import PictureError
from ..pictures.thumbnails import strip, thumbnail
from ..runs.guarded import Extras
from ..runs.measured import COLUMNS, CONCEPTS, PICTURES, THUMBNAIL_PX, THUMBNAILS
from .concepts import Matrix
from .difficulty import Course, Seen
from .run import Run


class Watched:
    """Of a run that validates; nothing of one that does not. `folder`: where files are written; None in processes that write none."""

    def __init__(self, run: Run, folder: Path | None, extras: Extras):
        self._run, self._folder, self._extras = run, folder, extras
        probes, concepts = run.material.probes, run.material.concepts
        self._pictures = [] if probes is None else [picture for picture, _ in probes.measured()]
        self._course = Course(_seen(probes.measured())) if probes else None
        self._matrix = concepts.begin() if concepts else None
        self._drawn = False

    def measure(self, step: int) -> None:
        """Takes over what the probes have just measured, and measures concepts, with the weights as they are."""
        probes, concepts = self._run.material.probes, self._run.material.concepts
        if self._course is not None and probes is not None and probes.latest:
            self._course.add(step, probes.latest)
            self._write(PICTURES, self._course.as_table())
            self._draw_thumbnails()
        if self._matrix is not None and concepts is not None:
            self._matrix.rows.append((step, concepts.measure(self._run.backend, self._run.objective)))
            self._write(CONCEPTS, self._matrix.as_table())

    def messages(self) -> list[Message]:
        """What to say at the end of a run."""
        parts = (self._matrix, self._course)
        return [message for part in parts if part is not None for message in part.messages()]

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        parts = {"pictures": self._course, "concepts": self._matrix}
        return {name: part.as_json() for name, part in parts.items() if part is not None}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Goes on with what a checkpoint holds, where it is of the same pictures and words."""
        if self._course is not None and "pictures" in facts:
            then = Course.from_json(facts["pictures"])
            if list(then.pictures) == list(self._course.pictures):
                self._course = then
        if self._matrix is not None and "concepts" in facts:
            before = Matrix.from_json(facts["concepts"])
            if list(before.words) == list(self._matrix.words):
                self._matrix = before

    def _write(self, name: str, table: dict[str, Any]) -> None:
        if self._folder is not None:
            with self._extras.writing(name):
                files.write_json(self._folder / name, table)

    def _draw_thumbnails(self) -> None:
        """Writes the measured pictures in small into the run folder, where a page may show them without a look at the user's own folders."""
        if self._folder is None or self._drawn:
            return
        self._drawn = True
        small: list[Image.Image | None] = []
        for picture in self._pictures:
            try:
                small.append(thumbnail(picture.path, THUMBNAIL_PX, picture.data.background))
            except (PictureError, OSError):  # latents of other nodes, or gone since they were encoded
                small.append(None)
        with self._extras.writing(THUMBNAILS):
            files.write_bytes(self._folder / THUMBNAILS, strip(small, THUMBNAIL_PX, COLUMNS))


def _seen(measured: Sequence[tuple[Picture, bool]]) -> list[Seen]:
    sets = list(dict.fromkeys(picture.data for picture, _ in measured))
    return [Seen(picture.name, held, sets.index(picture.data)) for picture, held in measured]
