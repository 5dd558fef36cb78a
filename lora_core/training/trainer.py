"""The loop: when to save, sample, validate, report and stop, and what is kept however it ends. The step itself is in step.py."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from ..adapters.base import TEXT_ENCODER
from ..backends.base import UNKNOWN_ENCODER, SampleJob
from ..config import TrainConfig, as_dict, parse
from ..data.batches import Batches
from ..disk import files
from ..events import Measure
from ..messages.blame import first_line, is_foreign
from ..messages.errors import LoomError, NonFiniteError, Problem, is_memory
from ..messages.message import Message
from ..optim.groups import frozen_at
from ..optim.schedules import lr_factor
from ..pictures.plots import curves, grid, loss_plot
from ..runs import checkpoints, step_log
from ..runs.guarded import Extras
from .advice import advice
from .assemble import assembled
from .conditions import conditions_of, difference
from .fitting import as_chosen
from .job import Job
from .prompts import Prompt, job_of, prompts_in
from .run import Run
from .step import optimizer_step
from .validation import History

log = logging.getLogger(__name__)
Product = tuple[dict[str, torch.Tensor], dict[str, str]]  # (tensors, metadata) of one file
Export = Callable[
    [dict[str, torch.Tensor], dict[str, Any]], dict[str, Product]
]  # trained values and facts -> file stem -> what is in it, the main one first
MAX_FAILED_SAMPLES = 2
POINTS_DRAWN, UNTOUCHED_NAMED = 200, 8
CHANGEABLE = (
    "steps",
    "save",
    "samples",
    "name",
    "auto_fit",
    "cache",
    "trackers",
)  # may differ between a run and its continuation


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves: `files` by what they hold (`products`, by stem), the main one first; one float of `losses` per step."""

    folder: Path
    files: list[Path]
    step: int
    outcome: str
    losses: list[float]
    products: dict[str, Product]
    facts: dict[str, Any]

    @property
    def file(self) -> Path:
        """The main file."""
        return self.files[0]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is in the main file."""
        return next(iter(self.products.values()))[0]

    @property
    def metadata(self) -> dict[str, str]:
        return next(iter(self.products.values()))[1]


def train(job: Job, folder: Path, export: Export, resume: bool = False) -> Result:
    """Trains adapters on the job's model, and writes everything into the run folder `folder`.

    Raises LoomError for bad input before the first step. Cancel and crashes keep the last finished step: the run folder then holds a
    checkpoint and a result file. With `resume`, continues the newest whole checkpoint of `folder`, bit for bit as if never interrupted.
    """
    if resume and job.config.auto_fit:
        job = job.with_config(as_fitted(job.config, folder))
    saved = checkpoints.all_steps(folder / "checkpoints") if resume else []
    first = checkpoints.step_of(saved[0]) if saved else 0
    with assembled(job, first, folder) as run:
        return Loop(run, job, folder, export, resume).go()


def as_fitted(config: TrainConfig, folder: Path) -> TrainConfig:
    """The job with the batch size, accumulation and checkpointing its run settled on: memory free today must not change a run that goes on."""
    checkpoint, _ = checkpoints.latest(folder / "checkpoints")
    if checkpoint is None:
        return config
    return dataclasses.replace(as_chosen(config, parse(checkpoint.facts["config"])), auto_fit=False)


class Loop:
    """One call of `train`: how far it is, what is saved, what was logged."""

    def __init__(self, run: Run, job: Job, folder: Path, export: Export, resume: bool):
        self.run, self.folder, self.export, self.listener, self.control = run, folder, export, job.listener, job.control
        self.config, self.processes = run.config, run.processes
        self.checkpoints = folder / "checkpoints"
        self.done, self.saved, self.samples_failed = 0, -1, 0
        self.losses: list[float] = []
        self.started = time.time()
        self.sampled: list[tuple[str, list[Image.Image]]] = []
        self.history = History()
        self.rates: list[float | None] = []  # learning rate of each step as it acted, Prodigy's d * lr; None: not known
        self.identity, self.conditions = identity_of(run), conditions_of(run.backend)
        self.extras = Extras(self.listener.on_warning)
        files.make_folders(folder)
        for place in (folder, self.checkpoints, folder / "samples") if self.processes.main else ():
            files.sweep_temps(place)
        self.processes.barrier()
        if resume:
            self._restore()
        elif checkpoints.all_steps(self.checkpoints):
            raise LoomError("name.run_exists", field="name", run=repr(folder.name))
        self.processes.barrier()
        if self.processes.main:
            files.write_json(folder / "config.json", as_dict(self.config))

    def go(self) -> Result:
        self.listener.on_start(self.done, self.config.steps, self.facts())
        outcome = "finished"
        try:
            with step_log.StepLog(self.folder if self.processes.main else None, self.extras) as log:
                if self.run.material.probes and not self.history.measures:
                    self.validate()
                for step in range(self.done, self.config.steps):
                    stopping = self.processes.any(self.control.stopping)
                    if stopping or self._no_longer_better():
                        outcome = "stopped early"
                        if stopping:
                            outcome = "paused" if self.control.pausing else "stopped"
                        break
                    self._step(step, log)
                    self._as_asked(log)
            if self.done == 0:
                raise LoomError("run.stopped_first")
            result = self._finish(outcome)
        except BaseException:
            self._rescue()
            raise
        for message in advice(self.losses, self.history) if outcome != "paused" else ():
            self.listener.on_warning(message)
        self.listener.on_end(outcome, self.done)
        return result

    def _step(self, step: int, log: step_log.StepLog) -> None:
        self.run.freeze(frozen_at(self.run.optimizer, step))
        factor = lr_factor(self.config.schedule, step, self.config.steps)
        for group in self.run.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        report = optimizer_step(self.run, step)
        self.done = report.step
        self.losses.append(report.loss)
        self.rates.append(report.lr)
        last = self.done == self.config.steps
        every = self.config.validation.every
        if every and (last or self.done % every == 0):
            self.listener.on_progress("progress.validating", self.done, self.config.steps)
        measure = self.validate() if every and (last or self.done % every == 0) else None
        row = {
            "step": self.done,
            "loss": report.loss,
            "lr": report.lr,
            **({"class_loss": report.class_loss} if self.run.class_batches else {}),
            "grad_norm": report.grad_norm if math.isfinite(report.grad_norm) else None,
            "time": round(time.time(), 3),
            **({"held_out": measure.held_out, "trained": measure.trained} if measure else {}),
        }
        log.write(row)
        self.listener.on_step(report)
        if self.done == 1 and (layers := self.run.untouched_layers()):
            values = {"count": len(layers), "all": len(self.run.adapters), "layer": layers[0]}
            self._tell_of(layers, Message.of("adapter.no_gradient", field="adapter.targets", **values))
        if self.done % self.config.save.every == 0 and not last:
            log.settle()
            self._tell_of_saving()
            self.save()
        if self.config.samples.every and self.done % self.config.samples.every == 0 and not last:
            self.draw_samples()

    def _as_asked(self, log: step_log.StepLog) -> None:
        """Saves and draws samples when another thread has asked for it. A save on request also writes the files a person uses."""
        if self.control.take_save():
            log.settle()
            if self.saved != self.done:
                self._tell_of_saving()
                self.save()
            self.listener.on_result(self.done, self._write_result("running").files)
        if self.control.take_sample():
            self.draw_samples()

    def validate(self) -> Measure:
        """Measures the probes, keeps the weights when they are the best so far, and draws both curves."""
        assert self.run.material.probes is not None
        with self.run.finished_weights():
            measure = self.run.material.probes.measure(self.run.backend, self.run.objective, self.done)
            if (
                self.processes.size > 1
            ):  # the same numbers everywhere, or one process would end the run and the others wait for it
                both = torch.tensor([measure.held_out, measure.trained, measure.error], device=self.run.backend.device)
                self.processes.average([both])
                measure = Measure(measure.step, *both.tolist())
            if not math.isfinite(measure.held_out):
                raise NonFiniteError("validation.not_finite", step=self.done, loss=measure.held_out)
            self.history.measures.append(measure)
            if self.history.best is measure and self.processes.main:
                file = self._best_file(self.done)
                with self.extras.writing(file.name):
                    files.make_folders(file.parent)
                    files.write_safetensors(file, self.run.adapters.state_dict())
        best = self.history.best
        assert best is not None
        if not self.processes.main:
            return measure
        for old in sorted(self.checkpoints.glob("best-*.safetensors"))[:-2]:
            with self.extras.writing(old.name):
                old.unlink()
        rows = self.history.measures
        drawn = {
            "held-out pictures": [(m.step, m.held_out) for m in rows],
            "trained pictures": [(m.step, m.trained) for m in rows],
        }
        self._picture("validation.png", curves(drawn, best.step))
        self.listener.on_validation(measure, best)
        return measure

    def _best_file(self, step: int) -> Path:
        return self.checkpoints / f"best-{step:08d}.safetensors"

    def _no_longer_better(self) -> bool:
        patience = self.config.validation.patience
        return bool(patience) and self.history.since_best() >= patience

    def _chosen_weights(self) -> dict[str, torch.Tensor]:
        """What the result holds: the weights as they are, or those of the best step where that is wanted and there."""
        best = self.history.best
        if self.config.validation.restore_best and best and best.step != self.done:
            file = self._best_file(best.step)
            if file.is_file():
                self.listener.on_note(Message.of("result.best", step=best.step))
                return load_file(file)
            self.listener.on_warning(Message.of("result.best_gone", step=best.step))
        with self.run.finished_weights():
            return self.run.adapters.state_dict()

    def save(self) -> Path:
        """Checkpoint of the steps done so far, then older ones pruned."""
        if not self.processes.main:
            self.saved = self.done
            return checkpoints.folder_of(self.checkpoints, self.done)
        facts = {
            **self.identity,
            "config": as_dict(self.config),
            "scaler": self.run.scaler.state_dict(),
            "skipped_in_a_row": self.run.skipped_in_a_row,
            "untouched": sorted(self.run.untouched),
            "conditions": self.conditions,
        }
        facts |= {"losses": self.losses, "frozen": self.run.frozen, "validation": self.history.as_list()}
        weights = self.run.adapters.state_dict() | (self.run.ema.state_dict() if self.run.ema else {})
        path = checkpoints.save(self.checkpoints, self.done, weights, self.run.optimizer, facts)
        with self.extras.writing("checkpoints"):
            checkpoints.prune(self.checkpoints, self.config.save.keep)
        self.saved = self.done
        self.listener.on_save(self.done, path)
        return path

    def draw_samples(self) -> None:
        """The sample prompts with the adapters as they are; the first time also without them, same seed, to compare against."""
        if self.samples_failed >= MAX_FAILED_SAMPLES or not (self.processes.main or self.processes.sharded):
            return
        try:
            if not self.sampled:
                with self.run.adapters.switched_off(), self._texts_apart():
                    self._draw("before")
            with self.run.finished_weights(), self._texts_apart():
                self._draw(f"step {self.done}")
        except BaseException as error:
            if isinstance(error, Problem) or not is_foreign(error):
                raise
            self.samples_failed += 1
            failed = Message.of("samples.failed", reason=first_line(error))
            self.listener.on_warning(Message.of("samples.no_memory") if is_memory(error) else failed)

    @contextlib.contextmanager
    def _texts_apart(self) -> Iterator[None]:
        """Texts are encoded anew inside and after it, where other weights of the text encoders act inside."""
        forget = self.run.backend.forget_texts if self.run.adapters.changes_text else lambda: None
        forget()
        try:
            yield
        finally:
            forget()

    def _draw(self, label: str) -> None:
        jobs = sample_jobs(self.config, self.run.batches, self.run.class_batches)
        images: list[Image.Image] = []
        for n, job in enumerate(jobs, 1):
            self.listener.on_progress("progress.samples", n, len(jobs))
            images += self.run.backend.sample(job)[:1]
        if not self.processes.main:  # it only lent its part of the model
            self.sampled.append((label, []))
            return
        sheet = grid(images, columns=len(images), cell_px=max(192, *(max(i.size) for i in images)))
        path = self._picture(f"samples/{label.replace(' ', '-')}.png", sheet)
        self.sampled.append((label, images))
        if len(self.sampled) > 1:
            rows, columns = [self.sampled[0], self.sampled[-1]], len(images)
            labels = [f"{label}: {job.prompt}" for label, _ in rows for job in jobs]
            self._picture("before-after.png", grid([i for _, row in rows for i in row], labels, columns))
        self.listener.on_sample(self.done, images, path)

    def facts(self) -> dict[str, Any]:
        """What the exporter and listeners may want to know about this run."""
        return {
            "config": as_dict(self.config),
            "started": self.started,
            "step": self.done,
            "layers": len(self.run.adapters),
            "trained_values": self.run.adapters.count(),
            "validation": self.history.as_list(),
            "best_step": self.history.best.step if self.history.best else None,
            "pictures": len(self.run.batches.pictures),
            "per_epoch": self.run.batches.per_epoch,
            "objective": self.run.objective.kind,
            "base_model": self.run.material.base.as_json(),
            "captions": [p.caption for p in self.run.batches.pictures],
            "repeats": [p.repeats for p in self.run.batches.pictures],
            **self.identity,
        }

    def _finish(self, outcome: str) -> Result:
        if self.done != self.saved:
            self._tell_of_saving()
            self.save()
        if self.config.samples.every and outcome != "paused":
            self.draw_samples()
        if outcome != "paused":
            self._tell_untouched()
        self.listener.on_progress("progress.writing", self.done, self.config.steps)
        return self._write_result(outcome)

    def _tell_of_saving(self) -> None:
        """Told where a run saves as it goes; a rescue asks no listener, which could end it."""
        self.listener.on_progress("progress.saving", self.done, self.config.steps)

    def _tell_of(self, layers: Sequence[str], message: Message) -> None:
        """Warns of layers of the model. That a text encoder's last ones give nothing is usual: SDXL and others read what comes before them."""
        usual = all(self.run.adapters[name].part == TEXT_ENCODER for name in layers)
        (self.listener.on_note if usual else self.listener.on_warning)(message)

    def _tell_untouched(self) -> None:
        """Says what was trained in name only."""
        if layers := self.run.untouched_layers():
            named = [*layers[:UNTOUCHED_NAMED], *(["…"] if len(layers) > UNTOUCHED_NAMED else [])]
            values = {"count": len(layers), "all": len(self.run.adapters), "layers": named}
            self._tell_of(layers, Message.of("adapter.left_out", field="adapter.targets", **values))
        for token in self.run.adapters.tokens:
            if token.token.placeholder in self.run.untouched:
                self.listener.on_warning(Message.of("embedding.no_gradient", token=token.token.placeholder))

    def _write_result(self, outcome: str) -> Result:
        if not self.processes.main:
            return Result(self.folder, [], self.done, outcome, self.losses, {}, self.facts())
        weights = {**self.run.adapters.facts(), **self._chosen_weights()}  # best weights of 0.1.0 came without alphas
        products = self.export(checkpoints.without_layers(weights, self.run.untouched_layers()), self.facts())
        written = [self.folder / f"{stem}.safetensors" for stem in products]
        for path, (tensors, metadata) in zip(written, products.values(), strict=True):
            files.write_safetensors(path, tensors, metadata)
        self._picture("loss.png", loss_plot(self.losses))
        points = [(float(n), rate) for n, rate in enumerate(self.rates, 1) if rate is not None]
        if points:
            drawn = points[:: max(1, len(points) // POINTS_DRAWN)]
            self._picture("learning-rate.png", curves({"learning rate": drawn}))
        return Result(self.folder, written, self.done, outcome, self.losses, products, self.facts())

    def _picture(self, name: str, picture: Image.Image) -> Path:
        """Writes a picture into the run folder; a disk that refuses it costs the picture, not the run."""
        path = self.folder / name
        with self.extras.writing(name):
            data = io.BytesIO()
            picture.save(data, "PNG")
            files.make_folders(path.parent)
            files.write_bytes(path, data.getvalue())
        return path

    def _rescue(self) -> None:
        """Keeps the finished steps of a run that was cancelled or failed, unless the failure struck inside an update."""
        if self.run.mid_update or self.done == 0:
            return
        try:
            if self.done != self.saved:
                self.save()
            self._write_result("interrupted")
        except Exception as error:  # noqa: BLE001 - the error that ended the run is the one to show
            log.exception("The last steps could not be kept")
            with contextlib.suppress(BaseException):  # a listener may raise a cancel here, which is under way already
                self.listener.on_warning(Message.of("run.not_kept", reason=error))

    def _restore(self) -> None:
        checkpoint, broken = checkpoints.latest(self.checkpoints)
        for name in broken:
            self.listener.on_warning(Message.of("checkpoint.passed_over", name=name))
        if checkpoint is None:
            raise LoomError("resume.no_checkpoint", run=self.folder.name)
        refuse_changes(self.config, checkpoint.facts, self.identity)
        warning = difference(checkpoint.facts.get("conditions"), self.conditions)
        if warning is not None:
            self.listener.on_warning(warning)
        self.run.restore(checkpoint)
        self.losses = list(checkpoint.facts["losses"])
        self.history = History.from_list(checkpoint.facts.get("validation", []))
        self.done = self.saved = checkpoint.step
        if self.processes.main:
            self.rates = step_log.mend(self.folder, self.losses, self.extras)


def sample_jobs(config: TrainConfig, batches: Batches, prior: Batches | None = None) -> list[SampleJob]:
    """One job per line of samples.prompt; without prompts, the first caption. With class pictures one for the class, to see whether it drifts."""
    prompts = prompts_in(config.samples.prompt) or [Prompt(batches.pictures[0].caption, {})]
    if prior:
        prompts.append(Prompt(config.prior.prompt or prior.pictures[0].caption, {}))
    return [job_of(prompt, config) for prompt in prompts]


def sample_prompts(config: TrainConfig, captions: Sequence[str]) -> list[str]:
    """What is drawn for the lines of samples.prompt, else the first caption."""
    return [job_of(prompt, config).prompt for prompt in prompts_in(config.samples.prompt)] or [captions[0]]


def identity_of(run: Run) -> dict[str, Any]:
    """What must be the same when the run goes on: base, encoders, pictures, arithmetic, number of processes."""
    backend = run.backend
    identity = {"base": backend.fingerprint(), "data": run.batches.fingerprint(), "dtype": str(backend.dtype)}
    if run.class_batches:
        identity["prior"] = run.class_batches.fingerprint()
    identity["text"] = backend.text_fingerprint()
    if not (pictures := backend.picture_fingerprint()).startswith(UNKNOWN_ENCODER):
        identity["vae"] = pictures
    if run.processes.size > 1:
        identity["processes"] = str(run.processes.size)
    return identity


def _without_demands(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the settings that only say what is refused: they change nothing that is trained."""
    plain = {**config, "prior": {k: v for k, v in config["prior"].items() if k != "required"}}
    return {**plain, **{part: _allowed(config[part]) for part in ("data", "sets")}}


def _allowed(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [_allowed(one) for one in part]
    return {k: v for k, v in part.items() if k != "allow_empty_captions"}


def refuse_changes(config: TrainConfig, facts: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises LoomError when anything that would change the continued run differs from the saved one."""
    now, then = (_without_demands(as_dict(c)) for c in (config, parse(facts["config"])))
    settings = [k for k in now if k not in (*CHANGEABLE, "data", "sets", "base")]
    changed = [message for k in settings for message in _differing(k, then[k], now[k])]
    if len(now["sets"]) != len(then["sets"]):
        changed.append(_then_and_now("sets", len(then["sets"]), len(now["sets"])))
    labels = ("data", *(f"sets[{n}]" for n in range(len(now["sets"]))))
    for label, mine, old in zip(labels, (now["data"], *now["sets"]), (then["data"], *then["sets"])):
        others_of = {k: v for k, v in old.items() if k != "folder"}
        changed += _differing(label, others_of, {k: v for k, v in mine.items() if k != "folder"})
    others = {
        "base": "resume.other_base",
        "prior": "resume.other_prior",
        "vae": "resume.other_vae",
        "text": "resume.other_text",
    }
    changed += [Message.of(code) for part, code in others.items() if identity.get(part) != facts.get(part)]
    if identity.get("processes", "1") != facts.get("processes", "1"):
        changed.append(
            Message.of("resume.processes", then=facts.get("processes", "1"), now=identity.get("processes", "1"))
        )
    if identity["dtype"] != facts.get("dtype"):
        changed.append(Message.of("resume.dtype", then=facts.get("dtype"), now=identity["dtype"]))
    if identity["data"] != facts["data"]:
        changed.append(Message.of("resume.other_data"))
    if changed:
        raise LoomError("resume.changed", changes=changed)


def _differing(setting: str, then: Any, now: Any) -> list[Message]:
    """A message for each single setting below `setting` that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [m for k in {**then, **now} for m in _differing(f"{setting}.{k}", then.get(k), now.get(k))]
    return [] if then == now else [_then_and_now(setting, then, now)]


def _then_and_now(setting: str, then: Any, now: Any) -> Message:
    return Message.of("resume.setting", field=setting, then=repr(then), now=repr(now))
