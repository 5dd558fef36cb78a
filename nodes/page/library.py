"""The files that a host lists: which there are, and which one a name or a path means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...lora_core.messages.errors import LoomError
from .host import Host

SUFFIXES = (".safetensors", ".pt", ".bin")


class Library:
    """LoRAs and embeddings by their path below the host's folders, without an ending; checkpoints as the host names them."""

    def __init__(self, host: Host):
        self._host = host

    def loras(self) -> dict[str, Path]:
        return _below(self._host.shelf().loras)

    def embeddings(self) -> dict[str, Path]:
        return _below(self._host.shelf().embeddings)

    def names(self, role: str) -> list[str]:
        """What can be chosen where a tool asks for a file of this role."""
        if role == "checkpoint":
            return list(self._host.checkpoints())
        loras = self.loras()
        return [*loras, *(name for name in self.embeddings() if name not in loras)]

    def file(self, name: str, role: str = "lora", field: str = "file") -> Path:
        """What a name of the list means, else a file or folder by its path. Raises LoomError."""
        known: Mapping[str, Path] = (
            self._host.checkpoints() if role == "checkpoint" else {**self.embeddings(), **self.loras()}
        )
        place = known.get(name) or Path(name).expanduser()
        if not name or not place.exists():
            raise LoomError("library.missing", field=field, name=repr(name))
        return place

    def lora(self, name: str) -> Path:
        """A LoRA, by its name or path. Raises LoomError."""
        return self.file(name, field="lora")


def _below(folder: Path) -> dict[str, Path]:
    """Name -> file, of a folder and those in it."""
    files = [file for file in folder.rglob("*") if file.suffix in SUFFIXES] if folder.is_dir() else []
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(files)}
