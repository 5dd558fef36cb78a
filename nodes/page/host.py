"""What the page asks of the program it stands in: a model for a job, folders, and who may do what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from ...lora_core.backends.base import Backend
from ...lora_core.events import Control, Listener
from ...lora_core.messages.message import Message
from ..jobs.publishing import Shelf


@dataclasses.dataclass(frozen=True)
class Loan:
    """A model lent for one job. `warnings`: what is said before it; `listeners`: who hears of it besides the page."""

    backend: Backend
    warnings: Sequence[Message] = ()
    listeners: Sequence[Listener] = ()


class Host(Protocol):
    """The program around the page."""

    @property
    def base(self) -> str:
        """What jobs call its model; empty where the page asks which base to train on."""

    def data_root(self) -> Path:
        """Where runs and dropped pictures lie."""

    def shelf(self) -> Shelf:
        """Where LoRAs and embeddings are listed."""

    def bases(self) -> Sequence[str]:
        """What the page offers to train on, as job files name it; nothing where `base` says it."""

    def checkpoints(self) -> Mapping[str, Path]:
        """The base models it knows, by name."""

    def model_folders(self) -> Sequence[Path]:
        """Where folders of models lie; captioners below captioners/ there."""

    def version(self) -> str:
        """Name and version, as a run's log tells them."""

    def language(self) -> str:
        """One of LANGUAGES: that of the page's texts."""

    def refresh_lists(self) -> None:
        """Reads its folders of LoRAs and embeddings again; called while a model is lent or nothing goes on."""

    def may_edit(self, folder: Path) -> bool:
        """Whether a reader of the page may look at the pictures of a folder they have named, and write captions there."""

    def lent(self, task: str, settings: Mapping[str, Any], control: Control) -> AbstractContextManager[Loan]:
        """Its model for a job with these settings (by config path), as soon as nothing else uses it. Raises LoomError where there is none."""

    def guards(self) -> Sequence[Any]:
        """What FastAPI asks before each of our routes, as `Depends`."""
