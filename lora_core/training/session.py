"""One run as every door makes it: its folder, its log and trackers, and what is left of it however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..events import Listener, Listeners
from ..messages.errors import LoomError
from ..messages.message import Message
from ..processes import Processes
from ..runs.folders import last_run, new_run, remove_if_untrained
from ..runs.state import recorded
from ..runs.trackers import Tracker
from .job import Job
from .trainer import Export, Result, train


def run_folder(
    root: Path, name: str, resume: bool, processes: Processes, taken: Callable[[str], bool] = lambda name: False
) -> Path:
    """A new folder for a run of this name below `root`, or with `resume` that of the latest one; the same in every process.

    `taken`: names a new run must not have. Raises LoomError when there is no run to go on with.
    """
    folder: Path | None = None
    if processes.main:
        folder = last_run(root, name) if resume else new_run(root, name, taken)
    folder = processes.of_main(folder)
    if folder is None:
        raise LoomError("resume.no_run", field="resume", name=repr(name))
    return folder


@dataclasses.dataclass(frozen=True)
class Session:
    """A job in its run folder. `export`: what makes files of the trained values; `warnings`: what is said before anything is done.

    `host`: name and version of the program that lends the model; `cancels`: errors by which it ends a run on its user's wish.
    """

    job: Job
    folder: Path
    export: Export
    resume: bool = False
    warnings: Sequence[Message] = ()
    host: str = ""
    cancels: tuple[type[BaseException], ...] = ()

    def run(self) -> Result:
        """Trains, or goes on. However it ends, what was trained is kept; a new run that trained nothing leaves no folder."""
        try:
            with self._listening() as listener:
                for warning in self.warnings:
                    listener.on_warning(warning)
                return train(dataclasses.replace(self.job, listener=listener), self.folder, self.export, self.resume)
        except BaseException:
            if self.job.processes.main and not self.resume:
                remove_if_untrained(self.folder)
            raise

    @contextlib.contextmanager
    def _listening(self) -> Iterator[Listener]:
        """The log, the state and the trackers of the run, then the job's own listener. Of several processes only the first one speaks."""
        if not self.job.processes.main:
            yield Listener()
            return
        with recorded(self.folder, self.host, self.cancels) as record:
            names = [name.strip() for name in self.job.config.trackers.split(",") if name.strip()]
            yield Listeners(
                [record, *(Tracker(name, self.folder.name, self.folder) for name in names), self.job.listener]
            )
