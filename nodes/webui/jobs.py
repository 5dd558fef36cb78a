"""The runs of this WebUI: one at a time in a thread of its own, further ones in the order they came, shown by one panel."""

from __future__ import annotations

import collections
import dataclasses
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...lora_core.config import TrainConfig, parse
from ...lora_core.data.folder import Dataset, open_sets
from ...lora_core.data.sources import as_folder
from ...lora_core.events import Control, Listeners
from ...lora_core.messages.errors import LoomError, message_of
from ...lora_core.messages.message import Message
from ...lora_core.names import check_name
from ...lora_core.processes import ALONE
from ...lora_core.runs.folders import config_of
from ...lora_core.runs.owner import exporting
from ...lora_core.training.job import Job
from ...lora_core.training.session import Session, run_folder
from ...lora_core.training.trainer import Result
from ..jobs.datasets import PictureSets
from ..jobs.exports import files_of
from ..jobs.formats import exporter
from ..jobs.panel import Panel, PanelHost, PanelListener, Panels
from ..jobs.presets import PRESETS
from ..jobs.publishing import Publisher, Shelf
from ..jobs.settings import job_config
from .engine.host import embeddings_folder, loras_folder, refresh_lists, runs_root, version
from .engine.lent import Lent, lent_model
from .turns import Courtesy, turn

log = logging.getLogger(__name__)
NODE = "page"  # what the panels of a page are called, see js/mount.js
BASE = "webui"
MAX_WAITING = 20


def memory_used() -> dict[str, Any] | None:
    """What this process holds of the device it trains on, in bytes; None where nobody can say."""
    import psutil

    try:
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            return {"of": "GPU", "used": torch.cuda.memory_reserved(), "total": total}
        return {"of": "RAM", "used": psutil.Process().memory_info().rss, "total": psutil.virtual_memory().total}
    except (RuntimeError, OSError, psutil.Error):  # a figure must not end a run
        return None


PANELS = Panels(PanelHost(runs_root, lambda event: None, memory_used))  # pages ask; nothing is sent


@dataclasses.dataclass(frozen=True)
class Order:
    """What a person asked for: settings by config path, the preset behind them; or the name of a run to go on with."""

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preset: str = "concept"
    resume: str = ""
    number: str = dataclasses.field(default_factory=lambda: secrets.token_hex(6))

    def check(self) -> None:
        """Raises LoomError for what can be told before the order's turn comes."""
        if self.preset not in PRESETS:
            raise LoomError("preset.unknown", field="preset", preset=repr(self.preset), allowed=", ".join(PRESETS))
        if self.resume:
            config_of(runs_root() / self.resume)
            return
        check_name("name", self.name)
        if not self.values.get("data.folder"):
            raise LoomError("upload.none", field="data.folder")

    @property
    def name(self) -> str:
        return self.resume or str(self.values.get("name", "my_lora"))


class Runs:
    """All orders of this process. Threads: a route adds, the worker takes; `control` is that of the run that goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: collections.deque[Order] = collections.deque()
        self._worker: threading.Thread | None = None
        self.control: Control | None = None

    def add(self, order: Order) -> int:
        """How many orders come before it. Raises LoomError."""
        order.check()
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                raise LoomError("run.queue_full", limit=MAX_WAITING)
            before = len(self._waiting) + (self._worker is not None)
            self._waiting.append(order)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="LoRA Loom", daemon=True)
                self._worker.start()
        return before

    @property
    def waiting(self) -> list[str]:
        """The names of the runs that wait, in their order."""
        with self._lock:
            return [order.name for order in self._waiting]

    @property
    def busy(self) -> bool:
        with self._lock:
            return self._worker is not None

    def clear(self) -> None:
        """Nothing waits any more; what goes on goes on."""
        with self._lock:
            self._waiting.clear()

    def _next(self) -> Order | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._worker = None
            return None

    def _work(self) -> None:
        while (order := self._next()) is not None:
            self.control = Control()
            panel = PANELS.begin(NODE, kind="Train", inputs=_plain(order.values))
            try:
                result = _carried_out(order, panel, self.control)
                panel.changed(
                    status={"stopped": "stopped", "paused": "paused"}.get(result.outcome, "finished"), doing={}
                )
            except BaseException as error:
                log.exception("A run ended early")
                panel.changed(status="failed", doing={}, error=message_of(error).as_json())
            finally:
                self.control = None


RUNS = Runs()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, str | int | float | bool)}


def shelf() -> Shelf:
    """Where this host lists LoRAs and embeddings."""
    return Shelf(loras_folder(), embeddings_folder())


def exported(folder: Path, save: str | int) -> list[str]:
    """Puts a run's result or one of its saves where the host lists such files. Returns their names."""
    with exporting(folder, version()):
        paths = [shelf().publish(file) for file in files_of(folder, save)]
    return [path.name for path in paths]


def _carried_out(order: Order, panel: Panel, control: Control) -> Result:
    """One run from the turn of the host's queue to its files in the host's lists."""
    panel.doing = Message.of("webui.waiting").as_json()
    with turn(f"task(lora-loom-{order.number})"), torch.inference_mode(False), torch.enable_grad():
        lent = lent_model()
        config, dataset = _job(order, lent)
        place = shelf()
        folder = run_folder(
            runs_root(), config.name, bool(order.resume), ALONE, lambda name: place.holds(name, config, dataset.trigger)
        )
        panel.run = folder.name
        config = dataclasses.replace(config, name=folder.name)
        listeners = [PanelListener(panel), Publisher(place, panel), Courtesy(lent.given_back, control)]
        job = Job(config, lent.backend, dataset, runs_root(), Listeners(listeners), control)
        export = exporter(folder.name, lent.backend.family)
        warnings = [*dataset.warnings, *lent.settled]

        def deliver(files: Sequence[Path], cancelled: bool) -> None:
            place.publish_all(files, panel)
            refresh_lists()

        session = Session(job, folder, export, bool(order.resume), warnings, version(), deliver=deliver)
        return session.run()


def _job(order: Order, lent: Lent) -> tuple[TrainConfig, Dataset]:
    if order.resume:
        config = config_of(runs_root() / order.resume)
        return config, open_sets(config)
    return job_config(BASE, order.values, order.preset, picture_sets(order), lent.backend)


def picture_sets(order: Order) -> PictureSets:
    """The pictures an order names, before it is known at which size they are trained. Raises LoomError."""
    data = {path.removeprefix("data."): v for path, v in order.values.items() if path.startswith("data.")}
    data.pop("resolution", None)
    checked = parse({"data": data}).data
    return PictureSets.of(as_folder(checked, runs_root()))
