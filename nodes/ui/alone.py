"""What stands around the page when no WebUI does: folders below one, bases as job files name them, one of them loaded at a time."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...lora_core.backends.headless import Headless
from ...lora_core.config import parse
from ...lora_core.events import Control
from ...lora_core.messages.errors import LoomError
from ..jobs.headless import open_base
from ..jobs.publishing import Shelf
from ..page.fields import OF_BASE
from ..page.host import Loan
from ..page.pictures import pictures_root

TOY = "toy"
LAYOUT = "model_index.json"  # of a folder in diffusers layout


def bases_below(folder: Path) -> list[str]:
    """The models in a folder and those in it: files and folders in diffusers layout, whose own files are none."""
    layouts = [file.parent for file in sorted(folder.rglob(LAYOUT))]
    files = [file for file in sorted(folder.rglob("*.safetensors")) if set(layouts).isdisjoint(file.parents)]
    return [str(path) for path in (*layouts, *files)]


class AloneHost:
    """Fulfils page.host.Host. `root`: where everything that jobs write goes; `shelf`: where results are listed; `bases`: what a job can be trained on."""

    base = ""

    def __init__(self, root: Path, shelf: Shelf, bases: Sequence[str], language: str):
        self._root, self._shelf, self._bases, self._language = root.resolve(), shelf, list(bases), language
        self._loaded: tuple[tuple[Any, ...], Headless] | None = None

    def data_root(self) -> Path:
        return self._root

    def shelf(self) -> Shelf:
        return self._shelf

    def bases(self) -> Sequence[str]:
        return self._bases

    def checkpoints(self) -> Mapping[str, Path]:
        return {Path(base).name: Path(base) for base in self._bases if Path(base).exists()}

    def model_folders(self) -> Sequence[Path]:
        """Beside the runs."""
        return [self._root / "models"]

    def version(self) -> str:
        try:
            return f"LoRA Loom {importlib.metadata.version('lora-loom')}"
        except importlib.metadata.PackageNotFoundError:  # a bare checkout
            return "LoRA Loom"

    def language(self) -> str:
        return self._language

    def refresh_lists(self) -> None:
        """Lists are read where they are asked for."""

    def may_edit(self, folder: Path) -> bool:
        """Whoever has the page has the password where it is not this machine's alone."""
        return folder.resolve().is_relative_to(pictures_root(self._root)) or folder.is_dir()

    @contextlib.contextmanager
    def lent(self, task: str, settings: Mapping[str, Any], control: Control) -> Iterator[Loan]:
        yield Loan(self._opened(settings))

    def _opened(self, settings: Mapping[str, Any]) -> Headless:
        """The base that the settings name: loaded now, unless it was for the job before. Raises LoomError."""
        if not settings.get("base"):
            raise LoomError("ui.no_base", field="base")
        chosen = {path: settings[path] for path in ("base", *OF_BASE) if path in settings}
        key = tuple(sorted(chosen.items()))
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._loaded = key, open_base(parse(chosen))
        return self._loaded[1]

    def guards(self) -> Sequence[Any]:
        """The whole server stands behind its password, see serving.py."""
        return ()
