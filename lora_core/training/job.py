"""What a training, a dry run and a learning-rate test have in common: settings, the lent model, the pictures, and who listens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..backends.base import Backend
from ..config import TrainConfig
from ..data.dataset import Dataset
from ..events import Control, Listener
from ..messages.message import Message
from ..processes import ALONE, Processes
from .fixed import Fixed
from .run import Start


@dataclasses.dataclass(frozen=True)
class Job:
    """`root`: the folder of all runs; class pictures and what was encoded are kept below it, for every run to find.

    `start`: what adapters begin from instead of zero. `fixed`: what acts below them in training alone.
    `processes`: which of several processes on this job this one is. `choices`: what auto has decided, and why.
    """

    config: TrainConfig
    backend: Backend
    dataset: Dataset
    root: Path
    listener: Listener = dataclasses.field(default_factory=Listener)
    control: Control = dataclasses.field(default_factory=Control)
    start: Start | None = None
    fixed: Fixed | None = None
    processes: Processes = ALONE
    choices: Sequence[Message] = ()

    def with_config(self, config: TrainConfig) -> Job:
        """The same with other settings."""
        return dataclasses.replace(self, config=config)
