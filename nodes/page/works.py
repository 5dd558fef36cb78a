"""What the page's jobs do with the model they are lent: a row for each kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...convert.families import known_family
from ...convert.files.jobs import Options, free_path, open_lora, write_lora
from ...convert.readers import read
from ...lora_core.compat import parse_toml
from ...lora_core.config import TrainConfig
from ...lora_core.data.dataset import Dataset
from ...lora_core.data.folder import open_sets
from ...lora_core.events import Control, Listener, Listeners
from ...lora_core.messages.errors import LoomError
from ...lora_core.messages.message import Message
from ...lora_core.names import check_name
from ...lora_core.processes import ALONE
from ...lora_core.runs.folders import config_of
from ...lora_core.training.assemble import dry_run
from ...lora_core.training.fitting import verdict
from ...lora_core.training.job import Job
from ...lora_core.training.length import planned
from ...lora_core.training.lr_range import Trial, lr_range
from ...lora_core.training.samples import sample_prompts
from ...lora_core.training.session import Session, run_folder
from ...lora_core.training.sweep import LastSamples, runs_of, sheet
from ...lora_core.training.trainer import Result
from ...lora_core.training.ziplora import zip_config
from ..jobs.datasets import PictureSets
from ..jobs.formats import exporter, fixed_of, start_of
from ..jobs.panel import Panel, PanelListener
from ..jobs.publishing import Publisher, prompts_for
from ..jobs.settings import job_config, over
from ..jobs.zipping import zipped
from .captions import caption, caption_order
from .desk import NODE, Desk, Order, Work, picture_sets
from .host import Loan
from .library import Library

ZIP_STEPS, ZIP_RATE, ZIP_SIMILARITY = 100, 0.01, 0.01  # Shah et al. 2023, arXiv 2311.13600


def _job(desk: Desk, order: Order, loan: Loan) -> tuple[TrainConfig, Dataset]:
    """The job of an order on the lent model, and its pictures. Raises LoomError."""
    if order.resume:
        config = config_of(desk.runs_root() / order.resume)
        return config, open_sets(config)
    base = desk.host.base or str(order.settings.get("base", ""))
    sets = picture_sets(order.settings, desk.runs_root())
    return job_config(base, order.settings, order.preset, sets, loan.backend)


def _trained(desk: Desk, order: Order, loan: Loan, control: Control, more: Sequence[Listener] = ()) -> Result:
    """One run to its files in the host's lists, shown by the panel that is the newest. `more`: who else listens."""
    panel = desk.panels.running(NODE)
    assert panel is not None
    config, dataset = _job(desk, order, loan)
    root, shelf = desk.runs_root(), desk.host.shelf()
    folder = run_folder(
        root, config.name, bool(order.resume), ALONE, lambda name: shelf.holds(name, config, dataset.trigger)
    )
    panel.run = folder.name
    config = dataclasses.replace(config, name=folder.name)
    listeners = [PanelListener(panel), Publisher(shelf, panel), *more, *loan.listeners]
    job = _with_fixed(desk, Job(config, loan.backend, dataset, root, Listeners(listeners), control))
    if config.adapter.start_from:
        file = Library(desk.host).lora(config.adapter.start_from)
        start = start_of(lambda known: open_lora(file, known), job.backend, job.backend.family, config)
        job = dataclasses.replace(job, start=start)

    def deliver(files: Sequence[Path], cancelled: bool) -> None:
        shelf.publish_all(files, panel)
        desk.host.refresh_lists()

    export, warnings = exporter(folder.name, loan.backend.family), [*dataset.warnings, *loan.warnings]
    session = Session(job, folder, export, bool(order.resume), warnings, desk.host.version(), deliver=deliver)
    return session.train()


def train(desk: Desk, order: Order, loan: Loan, panel: Panel, control: Control) -> str:
    return _trained(desk, order, loan, control).outcome


def _trial(desk: Desk, order: Order, loan: Loan, panel: Panel, control: Control) -> Job:
    """What an order would train, for a try of which nothing is kept."""
    config, dataset = _job(desk, order, loan)
    for warning in (*dataset.warnings, *loan.warnings):
        panel.say(warning)
    listeners = Listeners([PanelListener(panel), *loan.listeners])
    return _with_fixed(desk, Job(config, loan.backend, dataset, desk.runs_root(), listeners, control))


def _with_fixed(desk: Desk, job: Job) -> Job:
    """The job with the LoRA that acts in training alone, by its name in the host's list or its path."""
    if not job.config.adapter.fixed or not job.config.trains_lora:
        return job
    file = Library(desk.host).file(job.config.adapter.fixed, field="adapter.fixed")
    fixed = fixed_of(lambda known: open_lora(file, known), job.backend, job.config)
    return dataclasses.replace(job, fixed=fixed)


def find_rate(desk: Desk, order: Order, loan: Loan, panel: Panel, control: Control) -> str:
    """A learning rate from a short test, as a sentence, a picture and a value for the page's field."""
    result = lr_range(_trial(desk, order, loan, panel, control), Trial(steps=_test_steps(order)))
    settings = {"optimizer.lr": float(f"{result.suggested:.2g}")}
    _show(panel, [result.message()], picture=desk.keep_picture(result.drawn()), settings=settings)
    return "stopped" if control.stopping else "finished"


def measure(desk: Desk, order: Order, loan: Loan, panel: Panel, control: Control) -> str:
    """How long a run takes and how much memory, from one real step."""
    job = _trial(desk, order, loan, panel, control)
    base = job.backend.base_model(job.config.objective)
    chosen, measured = dry_run(job)
    fits, message = verdict(job.config, chosen, measured, planned(job.config, job.dataset).steps)
    keep = {name: getattr(chosen, name) for name in ("batch_size", "grad_accum", "checkpointing")}
    lines = [message, base.message(), *base.warnings(job.config.objective, job.fixed is not None)]
    _show(panel, lines, settings={} if fits else keep)
    return "finished"


def _show(panel: Panel, lines: Sequence[Message], **more: Any) -> None:
    """A result that is said, with a picture or with settings to take over."""
    panel.changed(result={**panel.result, "lines": [line.as_json() for line in lines], **more})


def sweep(desk: Desk, order: Order, loan: Loan, panel: Panel, control: Control) -> str:
    """Several runs of one job on one lent model, and a sheet that compares them."""
    outcome, columns = "finished", []
    orders = variants(order)
    for number, variant in enumerate(orders):
        if number:
            settings = {key: value for key, value in variant.settings.items() if isinstance(value, str | int | float)}
            desk.panels.running(NODE).changed(status="finished")  # type: ignore[union-attr]
            desk.panels.begin(NODE, kind=order.work, inputs=settings)
        last = LastSamples()
        result = _trained(desk, variant, loan, control, [last])
        measures = [measure[1] for measure in result.facts["validation"]]
        prompts = sample_prompts(_job(desk, variant, loan)[0], result.facts["captions"])
        columns.append((variant.name, last.images, prompts, min(measures, default=None)))
        outcome = result.outcome
        if control.stopping:
            break
    newest = desk.panels.running(NODE)
    if newest is not None and any(images for _, images, _, _ in columns):
        line = Message.of("sweep.compared", count=len(columns))
        _show(newest, [line], picture=desk.keep_picture(sheet(columns)))
    return outcome


def variants(order: Order) -> list[Order]:
    """The runs of a sweep, from the `[[runs]]` of a job file. Raises LoomError."""
    try:
        runs = parse_toml(str(order.more.get("runs", ""))).get("runs")
    except ValueError as error:
        raise LoomError("sweep.no_toml", field="runs", reason=error) from error
    nested = over({section: {} for section in _sections(order.settings)}, order.settings)
    runs_of({**nested, "runs": runs}, Path())
    assert isinstance(runs, list)
    name = order.name
    for run in runs:
        check_name("runs", f"{name}_{run['name']}")
    return [
        dataclasses.replace(
            order, settings={**order.settings, **_flat(run), "name": f"{name}_{run['name']}"}, work="train"
        )
        for run in runs
    ]


def _sections(settings: Mapping[str, Any]) -> set[str]:
    return {path.partition(".")[0] for path in settings if "." in path}


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a job file by config path."""
    out: dict[str, Any] = {}
    for key, value in run.items():
        out |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return out


@dataclasses.dataclass(frozen=True)
class ZipPlan:
    """What a ZipLoRA learns from: two LoRAs, the folder of the second one's pictures."""

    files: tuple[Path, Path]
    folder: str
    steps: int
    similarity: float


def _zip_plan(desk: Desk, order: Order) -> ZipPlan:
    """Raises LoomError for what is missing or out of bounds."""
    library, more = Library(desk.host), order.more
    first, second = (library.file(str(more.get(key, "")), field=key) for key in ("first", "second"))
    if not (folder := str(more.get("folder", ""))):
        raise LoomError("upload.none", field="folder")
    steps = _number(order, "steps", ZIP_STEPS, 1, 10_000)
    return ZipPlan((first, second), folder, int(steps), _number(order, "similarity", ZIP_SIMILARITY, 0.0, 1.0))


def _number(order: Order, name: str, default: float, low: float, high: float) -> float:
    """What an order asks besides its settings. Raises LoomError."""
    value = order.more.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise LoomError("tool.number", field=name, value=repr(value), low=low, high=high)
    return value


def _test_steps(order: Order) -> int:
    return int(_number(order, "steps", Trial().steps, 10, 2000))


def zip_two(desk: Desk, order: Order, loan: Loan, panel: Panel, control: Control) -> str:
    """ZipLoRA: a subject and a style in one, learned on pictures of both."""
    plan, root = _zip_plan(desk, order), desk.runs_root()
    family = known_family(loan.backend.family)
    loras = [open_lora(file, family) for file in plan.files]
    settings = {key: value for key, value in order.settings.items() if key.startswith("data.")}
    both = [picture_sets(settings, root), picture_sets({**settings, "data.folder": plan.folder}, root)]
    sized = [sets.sized(int(settings.get("data.resolution", 0)), loan.backend) for sets in both]
    config = _zip_config(order, plan, sized[0])
    listeners = Listeners([PanelListener(panel), *loan.listeners])
    job = Job(config, loan.backend, sized[0].opened(), root, listeners, control)
    done = zipped(job, sized[1].opened(), loras, family, plan.similarity)
    path = free_path(desk.host.shelf().loras, order.name)
    source = ", ".join(file.stem for file in plan.files)
    written = write_lora(read(done.tensors, family=family), path, Options(), {"modelspec.merged_from": source})
    desk.host.refresh_lists()
    panel.result = prompts_for([path])
    _show(panel, [*done.lines, *written.notes])
    return "stopped" if control.stopping else "finished"


def _zip_config(order: Order, plan: ZipPlan, sets: PictureSets) -> TrainConfig:
    chosen = order.settings
    size, seed = int(chosen.get("batch_size", 1)), int(chosen.get("seed", 0))
    return zip_config(sets.parts()["data"], plan.steps, ZIP_RATE, size, seed, bool(chosen.get("checkpointing")))


WORKS = {
    "train": Work(train),
    "find-lr": Work(find_rate, lambda desk, order: _test_steps(order)),
    "check": Work(measure),
    "sweep": Work(sweep, lambda desk, order: variants(order)),
    "caption": Work(caption, caption_order, trains=False),
    "zip": Work(zip_two, lambda desk, order: _zip_plan(desk, order)),
}
