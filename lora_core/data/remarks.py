"""What is remarkable about a scanned folder: captions that are missing or meant for another program, files that are of no use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..messages.figures import figure
from ..messages.message import Message
from ..pictures.reading import UNREADABLE
from .dataset import Picture
from .metadata import TABLES
from .reader import TEXTS, Reader, Seen
from .walk import is_picture


def remarks(config: DataConfig, reader: Reader, seen: Sequence[Seen], pictures: Sequence[Picture]) -> list[Message]:
    """Of a folder that was read by `reader`; `seen`: the files that are large enough, `pictures`: those that are trained."""
    return [
        *_about_captions(config, seen, len(pictures)),
        *_about_pictures(config, reader, seen, pictures),
        *_about_files(config, reader, seen),
    ]


def _about_captions(config: DataConfig, seen: Sequence[Seen], count: int) -> Iterator[Message]:
    without = _noted(seen, "data.no_caption")
    if without and config.trigger:
        yield _some("data.no_caption_trigger", without, trigger=repr(config.trigger))
    elif len(without) == count and not (config.allow_empty_captions or config.regularization):
        yield Message.of("data.no_caption_at_all")  # what would be refused before the first step
    elif without:
        yield _some("data.no_caption", without)
    if names := _noted(seen, "data.no_trigger"):
        yield _some("data.no_trigger", names, all=count, trigger=repr(config.trigger))
    if names := _noted(seen, "data.several_lines"):
        yield _some("data.several_lines", names)
    for code in dict.fromkeys(code for one in seen for code in one.speech):
        example = {"example": "{a|b}"} if code == "data.wildcards_off" else {}
        yield _some(code, [one.name for one in seen if code in one.speech], **example)


def _about_pictures(
    config: DataConfig, reader: Reader, seen: Sequence[Seen], pictures: Sequence[Picture]
) -> Iterator[Message]:
    unmasked = [p.name for p in pictures if config.masks == "file" and p.mask is None]
    if unmasked:
        yield _some("data.no_mask", unmasked)
    if reader.masks and "file" not in (config.masks, config.input_mask):
        yield _some("data.masks_unused", reader.masks)
    yield from _about_controls(reader, seen, pictures)
    small = [p.name for p in pictures if p.width_px * p.height_px < config.resolution**2 and not p.is_latent]
    if small:
        yield _some("data.small_scaled_up" if config.upscale else "data.small_kept", small, side=config.resolution)
    for code in ("data.animated", "data.sound"):
        if names := _noted(seen, code):
            yield _some(code, names)
    if names := _noted(seen, "data.slow_films"):
        yield _some("data.slow_films", names, rate=figure(config.frame_rate))
    for profile in dict.fromkeys(one.profile for one in seen if one.profile):
        names = [one.name for one in seen if one.profile == profile]
        if profile == "damaged":
            yield _some("data.profile_damaged", names)
        else:
            yield _some("data.profile_converted", names, profile=profile)


def _about_controls(reader: Reader, seen: Sequence[Seen], pictures: Sequence[Picture]) -> Iterator[Message]:
    """What of pictures is shown beside others, and what has no partner."""
    if reader.controls is None:
        if reader.conditions:
            yield _some("data.conditions", reader.conditions)
        return
    if controls := {control for picture in pictures for control in picture.controls}:
        yield Message.of("data.pairs", count=sum(bool(p.controls) for p in pictures), controls=len(controls))
    if names := _noted(seen, "data.no_control"):
        yield _some("data.no_control", names)
    if astray := reader.controls.unused(reader.conditions):
        yield _some("data.control_astray", astray)


def _about_files(config: DataConfig, reader: Reader, seen: Sequence[Seen]) -> Iterator[Message]:
    encoded = dict.fromkeys(file for one in seen for file in one.encodings)
    if encoded and config.caption_encoding == "auto":
        yield _some("data.no_unicode", list(encoded))
    texts = [f for f in reader.files if f.suffix.lower() in TEXTS and f not in reader.used]
    orphans = [_inside(f, reader) for f in texts if not reader.fits_a_picture(f)]
    if orphans:
        yield _some("data.orphans", orphans)
    for table in reader.tables.values():
        if unused := table.unused():
            yield _some("data.rows_unused", unused, file=_inside(table.path, reader))
        elif table.column:
            yield Message.of("data.captions_from", file=_inside(table.path, reader), column=table.column)
    for error in reader.other_tables:
        yield Message.of("data.other_table", error=error)
    others = [_inside(f, reader) for f in reader.files if not _is_known(f, reader)]
    if others:
        yield _some("data.other_files", others)


def _noted(seen: Sequence[Seen], code: str) -> list[str]:
    return [one.name for one in seen if code in one.notes]


def _some(code: str, names: Sequence[str], **values: Any) -> Message:
    """A message about `count` files, the first of them by `names`."""
    return Message.of(code, count=len(names), names=[*names[:3]], **values)


def _inside(file: Path, reader: Reader) -> str:
    return file.relative_to(reader.root).as_posix()


def _is_known(file: Path, reader: Reader) -> bool:
    if is_picture(file) or file.suffix.lower() in {*TEXTS, *UNREADABLE}:
        return True
    return file.name in TABLES or file in reader.used or any(file == table.path for table in reader.tables.values())
