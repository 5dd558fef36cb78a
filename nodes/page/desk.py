"""The jobs of a page: one at a time in a thread of its own, further ones in the order they came, shown by one panel."""

from __future__ import annotations

import collections
import dataclasses
import io
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...lora_core.config import parse
from ...lora_core.data.folder import open_sets
from ...lora_core.data.sources import HUB, as_folder
from ...lora_core.events import Control
from ...lora_core.messages.errors import LoomError, message_of
from ...lora_core.messages.message import Message
from ...lora_core.names import check_name
from ...lora_core.runs.folders import config_of
from ...lora_core.runs.owner import exporting
from ..jobs.datasets import PictureSets
from ..jobs.editing import Editors
from ..jobs.exports import files_of
from ..jobs.panel import Panel, PanelHost, Panels
from ..jobs.plan import UnloadedBase, plan
from ..jobs.presets import PRESETS
from ..jobs.settings import job_config, needs_pictures
from .fields import OF_BASE
from .host import Host

log = logging.getLogger(__name__)
NODE = "page"  # what the panels of a page are called, see js/mount.js
MAX_WAITING, MAX_PICTURES = 20, 20
JPEG_QUALITY = 90


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


@dataclasses.dataclass(frozen=True)
class Order:
    """What a person asked for. `work`: the kind of job, a key of WORKS in works.py; `settings`: by config path, over what `preset` fills in.

    `more`: what that kind asks besides. `resume`: the name of a run to go on with instead.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preset: str = "concept"
    resume: str = ""
    work: str = "train"
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    number: str = dataclasses.field(default_factory=lambda: secrets.token_hex(6))

    @property
    def name(self) -> str:
        return self.resume or str(self.settings.get("name", "my_lora"))

    @property
    def needs_pictures(self) -> bool:
        """Whether there has to be a folder of them: not where a slider is trained from prompts alone."""
        return self.work == "zip" or needs_pictures(self.settings)

    def check(self, runs_root: Path) -> None:
        """Raises LoomError for what can be told before the order's turn comes."""
        if self.preset not in PRESETS:
            raise LoomError("preset.unknown", field="preset", preset=repr(self.preset), allowed=", ".join(PRESETS))
        if self.resume:
            config_of(runs_root / self.resume)
            return
        check_name("name", self.name)
        if self.settings.get("method") == "slider":
            slider = {
                path.removeprefix("slider."): v for path, v in self.settings.items() if path.startswith("slider.")
            }
            parse({"method": "slider", "slider": slider})
        if self.needs_pictures and not self.settings.get("data.folder"):
            raise LoomError("upload.none", field="data.folder")


@dataclasses.dataclass(frozen=True)
class Work:
    """A kind of job. `carry`: does it, and returns how it ended; `check`: raises LoomError for what can be told before its turn comes.

    `trains`: whether it needs the host's model, a name and pictures; `carry` is lent nothing otherwise.
    """

    carry: Callable[[Desk, Order, Any, Panel, Control], str]
    check: Callable[[Desk, Order], object] = lambda desk, order: None
    trains: bool = True


class Desk:
    """All jobs of one page. Threads: a route adds, the worker takes; `control` is that of the job that goes on."""

    def __init__(self, host: Host, works: Mapping[str, Work]):
        self.host, self.works = host, works
        self.panels = Panels(PanelHost(self.runs_root, lambda event: None, memory_used))  # pages ask; nothing is sent
        self.editors = Editors(host.may_edit)
        self.control: Control | None = None
        self._bases: dict[str, UnloadedBase] = {}  # what was lent, by what jobs call it
        self._lock = threading.Lock()
        self._waiting: collections.deque[Order] = collections.deque()
        self._worker: threading.Thread | None = None
        self._pictures: collections.OrderedDict[str, bytes] = collections.OrderedDict()

    def runs_root(self) -> Path:
        """Where run folders lie."""
        return self.host.data_root() / "runs"

    def add(self, order: Order) -> int:
        """How many orders come before it. Raises LoomError."""
        if order.work not in self.works:
            raise LoomError("page.no_work", field="work", work=repr(order.work), allowed=list(self.works))
        if self.works[order.work].trains:
            order.check(self.runs_root())
        self.works[order.work].check(self, order)
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
        """The names of the jobs that wait, in their order."""
        with self._lock:
            return [order.name for order in self._waiting]

    def queue(self) -> list[dict[str, Any]]:
        """What goes on and what waits, in its order. `seconds`: what is left of it, None where nobody can say."""
        with self._lock:
            waiting, busy = list(self._waiting), self._worker is not None
        rows = [self._queued(order) for order in waiting]
        panel = self.panels.running(NODE) if busy else None
        if panel is not None:
            heart = panel.heart()
            name = panel.run or str(panel.inputs.get("name", ""))
            now = {"id": panel.session, "name": name, "running": True, "step": panel.step, "steps": panel.steps or None}
            rows.insert(0, {**now, "seconds": heart["left_s"]})
        return rows

    def _queued(self, order: Order) -> dict[str, Any]:
        row = {"id": order.number, "name": order.name, "running": False, "step": None, "steps": None, "seconds": None}
        if order.work != "train" or str(order.settings.get("data.folder", "")).startswith(
            HUB
        ):  # which would be fetched
            return row
        try:
            known = self._bases.get(self._base_named(order))
            return {**row, **self._cost(order, known)} if known else row
        except (LoomError, OSError):  # what is wrong with it is said when its turn comes
            return row

    def _cost(self, order: Order, known: UnloadedBase) -> dict[str, Any]:
        """Steps and seconds of an order on a model that was lent before. Raises LoomError."""
        if order.resume:
            config = config_of(self.runs_root() / order.resume)
            dataset = open_sets(config)
        else:
            sets = picture_sets(order.settings, self.runs_root())
            config, dataset = job_config(self._base_named(order), order.settings, order.preset, sets, known)
        overview = plan(config, dataset, known, {}, self.runs_root())
        steps = next(row["value"] for row in overview["rows"] if row["path"] == "steps")
        return {"steps": steps, "seconds": overview["cost"] and overview["cost"]["seconds"]}

    def _base_named(self, order: Order) -> str:
        return str(self._base_of(order).get("base", "")) or self.host.base

    @property
    def busy(self) -> bool:
        with self._lock:
            return self._worker is not None

    def clear(self) -> None:
        """Nothing waits any more; what goes on goes on."""
        with self._lock:
            self._waiting.clear()

    def shown_sets(self, settings: Mapping[str, Any]) -> PictureSets:
        """The pictures that settings name, for a page that shows them. Raises LoomError where its readers must not see them."""
        sets = picture_sets(settings, self.runs_root())
        places = [("data.folder", data.folder) for data in sets.sets]
        places += [("data.control_path", place) for data in sets.sets for place in data.control_folders]
        for field, place in places:
            if not self.host.may_edit(Path(place)):
                raise LoomError("page.folder_elsewhere", field=field, folder=repr(place))
        return sets

    def finish(self) -> None:
        """Nothing waits any more; the job that goes on ends after its step, with its work kept. Returns when it has."""
        self.clear()
        control, worker = self.control, self._worker
        if control is not None:
            control.stop_and_keep()
        if worker is not None:
            worker.join()

    def keep_picture(self, image: Image.Image) -> str:
        """Keeps a picture for the page, which asks for it by what is returned; the newest MAX_PICTURES are kept."""
        data, key = io.BytesIO(), secrets.token_urlsafe(12)
        image.convert("RGB").save(data, "JPEG", quality=JPEG_QUALITY)
        self._pictures[key] = data.getvalue()
        while len(self._pictures) > MAX_PICTURES:
            self._pictures.popitem(last=False)
        return key

    def picture(self, key: str) -> bytes | None:
        """A kept picture as JPEG."""
        return self._pictures.get(key)

    def exported(self, folder: Path, save: str | int) -> list[str]:
        """Puts a run's result or one of its saves where the host lists such files. Returns their names."""
        with exporting(folder, self.host.version()):
            paths = [self.host.shelf().publish(file) for file in files_of(folder, save)]
        self.refresh_lists()
        return [path.name for path in paths]

    def refresh_lists(self) -> None:
        """The host reads its lists anew, unless a job goes on, at whose end it does."""
        with self._lock:
            if self._worker is None:
                self.host.refresh_lists()

    def _next(self) -> Order | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._worker = None
            return None

    def _work(self) -> None:
        while (order := self._next()) is not None:
            self.control = Control()
            panel = self.panels.begin(NODE, kind=order.work, inputs=_plain(order.settings))
            try:
                self._carry_out(order, panel, self.control)
            except BaseException as error:
                log.exception("A job ended early")
                self._newest(panel).changed(status="failed", doing={}, error=message_of(error).as_json())
            finally:
                self.control = None

    def _carry_out(self, order: Order, panel: Panel, control: Control) -> None:
        panel.doing = Message.of("webui.waiting").as_json()
        work, task = self.works[order.work], f"task(lora-loom-{order.number})"
        if not work.trains:
            outcome = work.carry(self, order, None, panel, control)
        else:
            with self.host.lent(task, self._base_of(order), control) as loan:
                lent = loan.backend
                self._bases[self._base_named(order)] = UnloadedBase(
                    lent.family, getattr(lent, "context_width", None), latent_step_px=lent.latent_step_px
                )
                outcome = work.carry(self, order, loan, panel, control)
        status = outcome if outcome in ("stopped", "paused") else "finished"
        self._newest(panel).changed(status=status, doing={})

    def _base_of(self, order: Order) -> Mapping[str, Any]:
        """The settings that say which model is to be lent: of an order, or of the run it goes on with."""
        if not order.resume:
            return order.settings
        config = config_of(self.runs_root() / order.resume)
        return {path: getattr(config, path) for path in ("base", *OF_BASE)}

    def _newest(self, panel: Panel) -> Panel:
        """The panel a job shows now: a sweep begins one for each of its runs."""
        return self.panels.running(NODE) or panel


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, str | int | float | bool)}


def picture_sets(settings: Mapping[str, Any], runs_root: Path) -> PictureSets:
    """The pictures that settings name, before it is known at which size they are trained. Raises LoomError."""
    data = {path.removeprefix("data."): v for path, v in settings.items() if path.startswith("data.")}
    data.pop("resolution", None)
    checked = parse({"data": data}).data
    return PictureSets.of(as_folder(checked, runs_root))
