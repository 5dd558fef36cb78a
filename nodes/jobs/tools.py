"""What the tools of options.py do: files in, new files out. The terminal and the page call the same functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...convert import FormatError
from ...convert.embedding import Embedding, embedding_form
from ...convert.files import jobs
from ...convert.files.jobs import Written
from ...convert.merge import Progress, weighted
from ...convert.report import Report, embedding_lines, inspect
from ...lora_core.messages.message import Message

Weighted = tuple[Path, float]  # a file and the factor on its effect
Place = Callable[[str], Path]  # of a new file: one of LORA, EMBEDDING, FOLDER
Told = Mapping[str, Any]  # the values of a tool's options by name
Act = Callable[[Sequence[Weighted], Place, Told, Progress], list[Written]]
LORA, EMBEDDING, FOLDER = "lora", "embedding", "folder"


def options_of(options: Told) -> jobs.Options:
    """How the results are written."""
    names = {field.name for field in dataclasses.fields(jobs.Options)}
    return jobs.Options(target=options["to"], **{name: value for name, value in options.items() if name in names})


def _size(options: Told) -> jobs.Size:
    return jobs.Size(options["rank"], options["conv_rank"], options["energy"])


def convert(files: Sequence[Weighted], place: Place, options: Told, progress: Progress) -> list[Written]:
    """A LoRA or an embedding in another program's form."""
    ((file, _),) = files
    content = jobs.open_file(file, options["family"], options["drop_unknown"])
    if isinstance(content, Embedding):
        form, overwrite = embedding_form(options["to"]), options.get("overwrite", False)
        return [jobs.write_embedding_file(content, place(EMBEDDING), form, overwrite, options["dtype"])]
    target = place(FOLDER if options["to"] == "peft" else LORA)
    scaled = weighted(content, options["scale"], blocks_in(options["block"]))
    return jobs.convert(scaled, target, options_of(options), embed=[Path(name) for name in options["embed"]])


def blocks_in(texts: Sequence[str]) -> dict[str, float]:
    """Factors from BLOCK=FACTOR. Raises FormatError."""
    out = {}
    for text in texts:
        block, _, number = text.rpartition("=")
        try:
            out[block] = float(number)
        except ValueError:
            raise FormatError("block.unreadable", text=text) from None
    return out


def merge(files: Sequence[Weighted], place: Place, options: Told, progress: Progress) -> list[Written]:
    """The weighted sum of LoRAs."""
    return [jobs.merge_files(files, place(LORA), options_of(options), options["rank"], options["family"], progress)]


def resize(files: Sequence[Weighted], place: Place, options: Told, progress: Progress) -> list[Written]:
    """A LoRA with smaller ranks."""
    ((file, _),) = files
    return [jobs.resize_file(file, place(LORA), options_of(options), _size(options), options["family"], progress)]


def extract(files: Sequence[Weighted], place: Place, options: Told, progress: Progress) -> list[Written]:
    """A LoRA for the difference of two checkpoints, the base and the tuned one."""
    (base, _), (tuned, _) = files
    taken = jobs.Taken(not options["no_text_encoders"], options["norms_biases"])
    return [jobs.extract_file((base, tuned), place(LORA), options_of(options), _size(options), taken, progress)]


def bake(files: Sequence[Weighted], place: Place, options: Told, progress: Progress) -> list[Written]:
    """A checkpoint with LoRAs added for good."""
    (checkpoint, _), *loras = files
    target = place(FOLDER if checkpoint.is_dir() else LORA)
    return [jobs.bake_file(checkpoint, loras, target, options.get("overwrite", False), progress)]


ACTS: dict[str, Act] = {"convert": convert, "merge": merge, "resize": resize, "extract": extract, "bake": bake}


def looked_at(file: Path, family: str = "") -> tuple[list[Message | str], Report | None]:
    """(what a file is, line by line, the report on a LoRA or None for an embedding)."""
    content = jobs.inspected(file, family)
    if isinstance(content, Embedding):
        return list(embedding_lines(content, file.stem)), None
    report = inspect(content)
    return [*report.messages(), *report.bars()], report
