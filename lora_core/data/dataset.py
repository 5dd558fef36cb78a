"""A dataset as a run has it: pictures with their captions, what was skipped and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..config import DataConfig
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.films import Film
from .captions import Caption

LATENT = ".latent.safetensors"  # a latent with its conditioning, brought in from other nodes


@dataclasses.dataclass(frozen=True)
class Picture:
    """One training picture. `name` is its path below the folder with forward slashes; it identifies the picture on every machine.

    `captions`: those to draw from, the first one standing for the picture. `data`: the settings of its set. `caption_file`: what they were read from,
    where that is a file beside the picture. `controls`: the pictures that a model is shown beside it, in order.
    A film, or a folder of frames, is a picture with a `film`, trained as its `clips`: numbers of its frames each.
    """

    path: Path
    name: str
    width_px: int
    height_px: int
    captions: tuple[Caption, ...] = (Caption(""),)
    repeats: int = 1
    mask: Path | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    caption_file: Path | None = None
    controls: tuple[Path, ...] = ()
    film: Film | None = None
    clips: tuple[tuple[int, ...], ...] = ()

    @property
    def caption(self) -> str:
        return self.captions[0].text

    @property
    def is_latent(self) -> bool:
        """Whether it comes encoded, from other nodes."""
        return self.path.name.endswith(LATENT)

    @property
    def moves(self) -> bool:
        """Whether it is trained as at least one clip of several frames."""
        return any(len(clip) > 1 for clip in self.clips)

    @property
    def frame_rate(self) -> float:
        """Frames a second at which its clips are trained, to a thousandth; 0 for a picture, and where it is unknown."""
        if self.film is None or not self.moves:
            return 0.0
        return round(self.data.frame_rate or self.film.rate, 3)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The pictures of a run in a fixed order, what was skipped and why, and what the user should look at.

    `class_pictures`: those of regularization sets. `excluded`: how many were left out in the dataset editor.
    """

    folder: Path
    pictures: tuple[Picture, ...]
    skipped: tuple[tuple[str, Message], ...]
    warnings: tuple[Message, ...]
    trigger: str = ""
    class_pictures: tuple[Picture, ...] = ()
    excluded: int = 0

    def messages(self) -> list[Message]:
        """How many pictures there are, what to look at, what was skipped."""
        per_epoch = sum(p.repeats for p in self.pictures)
        out = [Message.of("data.counts", pictures=len(self.pictures), per_epoch=per_epoch, skipped=len(self.skipped))]
        films = [p for p in (*self.pictures, *self.class_pictures) if p.film is not None]
        if films:
            out.append(Message.of("data.clips", count=len(films), clips=sum(len(p.clips) for p in films)))
        if self.class_pictures:
            out.append(Message.of("data.class_pictures", count=len(self.class_pictures)))
        if self.excluded:
            out.append(Message.of("data.excluded", count=self.excluded))
        heif = sum(reason.code == "picture.needs_heif" for _, reason in self.skipped)
        first = [Message.of("data.needs_heif", count=heif)] if heif else []
        skipped = [
            Message.of("data.skipped", name=name, reason=reason)
            for name, reason in self.skipped
            if reason.code != "picture.needs_heif"
        ]
        return [out[0], *first, *out[1:], *self.warnings, *skipped]

    def summary(self) -> str:
        """The messages in English, one a line."""
        return "\n".join(map(str, self.messages()))


def require_captions(dataset: Dataset) -> None:
    """Refuses a set whose pictures would all be trained on empty text, unless it is allowed. Raises LoomError."""
    sets: dict[DataConfig, list[Picture]] = {}
    for picture in dataset.pictures:
        sets.setdefault(picture.data, []).append(picture)
    for data, pictures in sets.items():
        if not data.allow_empty_captions and not any(
            caption.text for picture in pictures for caption in picture.captions
        ):
            raise LoomError(
                "data.no_captions", field="data.trigger", count=len(pictures), folder=repr(Path(data.folder).name)
            )


def joined(datasets: Sequence[Dataset]) -> Dataset:
    """Several sets as one; names are told apart by the name of their folder."""
    if len(datasets) == 1:
        return datasets[0]
    labels: list[str] = []
    for dataset in datasets:
        label, n = dataset.folder.name, 2
        while label in labels:
            label, n = f"{dataset.folder.name} ({n})", n + 1
        labels.append(label)

    def named(pictures: Sequence[Picture], label: str) -> list[Picture]:
        return [dataclasses.replace(p, name=f"{label}/{p.name}") for p in pictures]

    return Dataset(
        datasets[0].folder,
        tuple(p for d, label in zip(datasets, labels, strict=True) for p in named(d.pictures, label)),
        tuple((f"{label}/{name}", why) for d, label in zip(datasets, labels, strict=True) for name, why in d.skipped),
        tuple(
            Message.of("error.about", about=label, error=line)
            for d, label in zip(datasets, labels, strict=True)
            for line in d.warnings
        ),
        next((d.trigger for d in datasets if d.trigger), ""),
        tuple(p for d, label in zip(datasets, labels, strict=True) for p in named(d.class_pictures, label)),
        sum(d.excluded for d in datasets),
    )
