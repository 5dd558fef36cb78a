"""The files of the host's Lora folder: which there are, what is in one, and one in another spelling beside it."""

from __future__ import annotations

from pathlib import Path

from ...convert.embedding import Embedding
from ...convert.files.jobs import Options, convert, free_path, open_file
from ...convert.files.jobs import inspected as opened
from ...convert.report import embedding_lines, inspect
from ...lora_core.messages.errors import LoomError
from .engine.host import embeddings_folder, loras_folder


def lora_names() -> list[str]:
    """By their path below the folder, without an ending."""
    folder = loras_folder()
    files = folder.rglob("*.safetensors") if folder.is_dir() else ()
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def file_named(name: str) -> Path:
    """A LoRA of the list, or a file by its path. Raises LoomError."""
    listed = loras_folder() / f"{name}.safetensors"
    places = [listed, Path(name).expanduser()] if name in lora_names() else [Path(name).expanduser()]
    path = next((place for place in places if name and place.is_file()), None)
    if path is None:
        raise LoomError("library.missing", field="file", name=repr(name))
    return path


def inspected(name: str) -> str:
    """What a file is, in English."""
    file = file_named(name)
    content = opened(file)
    if isinstance(content, Embedding):
        return "\n".join([file.name, *map(str, embedding_lines(content, file.stem))])
    report = inspect(content)
    return "\n".join([file.name, *map(str, report.messages()), *report.bars()])


def converted(name: str, target: str) -> str:
    """Writes a LoRA in another spelling into the host's folder, never over a file; says which and what was noted."""
    file = file_named(name)
    content = open_file(file)
    if isinstance(content, Embedding):
        raise LoomError("library.no_lora", field="file", name=repr(file.name))
    place = free_path(loras_folder(), f"{file.stem}_{target}")
    written = convert(content, place, Options(target), embeddings_folder())
    notes = [str(note) for one in written for note in one.notes]
    return "\n".join([*(str(one.path.name) for one in written), *notes])
