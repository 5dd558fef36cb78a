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
from ..runs.folders import empty_if_untrained, last_run, new_run
from ..runs.guarded import Extras, Guarded
from ..runs.owner import PROGRAM, owning
from ..runs.state import CANCELS, recorded
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
    `deliver`: takes the run's files, and whether it was cancelled, while the folder is still owned. What a failed run leaves stays in its folder.
    """

    job: Job
    folder: Path
    export: Export
    resume: bool = False
    warnings: Sequence[Message] = ()
    host: str = ""
    cancels: tuple[type[BaseException], ...] = ()
    deliver: Callable[[Sequence[Path], bool], None] | None = None

    def train(self) -> Result:
        """Trains, or goes on, as the owner of the folder. However it ends, what was trained is kept; a new run that trained nothing leaves no folder.

        Raises LoomError for a folder that another writer owns.
        """
        leaves_nothing = self.job.processes.main and not self.resume
        try:
            with self._owned():
                try:
                    return self._trained()
                except BaseException:
                    if leaves_nothing:
                        empty_if_untrained(self.folder)
                    raise
        except BaseException:
            if leaves_nothing:
                with contextlib.suppress(OSError):  # it holds something
                    self.folder.rmdir()
            raise

    def _trained(self) -> Result:
        cancels: tuple[type[BaseException], ...] = (*CANCELS, *self.cancels)
        try:
            with self._listening() as listener:
                for warning in self.warnings:
                    listener.on_warning(warning)
                result = train(dataclasses.replace(self.job, listener=listener), self.folder, self.export, self.resume)
        except cancels:
            self._deliver(sorted(self.folder.glob("*.safetensors")), True)
            raise
        self._deliver(result.files, False)
        return result

    def _deliver(self, files: Sequence[Path], cancelled: bool) -> None:
        if self.deliver is not None and files:
            self.deliver(files, cancelled)

    @contextlib.contextmanager
    def _owned(self) -> Iterator[None]:
        """The folder is this run's. Of several processes the first one owns it for all, and all learn it when it may not."""
        refusal: Message | None = None
        with contextlib.ExitStack() as stack:
            if self.job.processes.main:
                try:
                    stack.enter_context(owning(self.folder, "train", self.host or PROGRAM))
                except LoomError as error:
                    refusal = error.message
            refusal = self.job.processes.of_main(refusal)
            if refusal is not None:
                raise LoomError(refusal)
            yield

    @contextlib.contextmanager
    def _listening(self) -> Iterator[Listener]:
        """The log, the state and the trackers of the run, then the job's own listener. Of several processes only the first one speaks."""
        if not self.job.processes.main:
            yield Listener()
            return
        everyone = Listeners([self.job.listener])
        extras = Extras(everyone.on_warning)
        with recorded(self.folder, self.host, self.cancels, everyone.on_warning) as record:
            names = [name.strip() for name in self.job.config.trackers.split(",") if name.strip()]
            trackers = [Tracker(name, self.folder.name, self.folder) for name in names]
            everyone.members[:0] = [
                record,
                *(Guarded(tracker, name, extras, (Exception,)) for name, tracker in zip(names, trackers)),
            ]
            yield everyone
