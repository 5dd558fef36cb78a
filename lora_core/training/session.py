"""One run as every door makes it: its folder, its log and trackers, and what is left of it however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..events import Listener, Listeners
from ..messages.errors import LoomError
from ..processes import Processes
from ..runs.folders import last_run, new_run, remove_if_untrained
from ..runs.reports import FileLog
from ..runs.trackers import Tracker
from .job import Job
from .trainer import Export, Result, train

LOG = "run.log"


def run_folder(root: Path, name: str, resume: bool, processes: Processes, taken: Callable[[str], bool] = lambda name: False) -> Path:
    """A new folder for a run of this name below `root`, or with `resume` that of the latest one; the same in every process.

    `taken`: names a new run must not have. Raises LoomError when there is no run to go on with.
    """
    folder: Path | None = None
    if processes.main:
        folder = last_run(root, name) if resume else new_run(root, name, taken)
    folder = processes.of_main(folder)
    if folder is None:
        raise LoomError(f"resume: there is no run named {name!r} to continue; start a new run.")
    return folder


@dataclasses.dataclass(frozen=True)
class Session:
    """A job in its run folder. `export`: what makes files of the trained values; `notes`: what is said before anything is done."""

    job: Job
    folder: Path
    export: Export
    resume: bool = False
    notes: Sequence[str] = ()

    def run(self) -> Result:
        """Trains, or goes on. However it ends, what was trained is kept; a new run that trained nothing leaves no folder."""
        try:
            with self._listening() as listener:
                for note in self.notes:
                    listener.on_message(note)
                return train(dataclasses.replace(self.job, listener=listener), self.folder, self.export, self.resume)
        except BaseException:
            if self.job.processes.main and not self.resume:
                remove_if_untrained(self.folder)
            raise

    @contextlib.contextmanager
    def _listening(self) -> Iterator[Listener]:
        """The log and the trackers of the run, then the job's own listener. Of several processes only the first one speaks."""
        if not self.job.processes.main:
            yield Listener()
            return
        with FileLog(self.folder / LOG) as log:
            names = [name.strip() for name in self.job.config.trackers.split(",") if name.strip()]
            yield Listeners([log, *(Tracker(name, self.folder.name, self.folder) for name in names), self.job.listener])
