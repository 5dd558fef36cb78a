"""The loop: when to save, sample, validate, report and stop, and what is kept however it ends. The step itself is in step.py."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from ..adapters.base import TEXT_ENCODER
from ..config import AS_SET, as_dict
from ..disk import files
from ..events import Measure
from ..messages.errors import LoomError, NonFiniteError
from ..messages.message import Message
from ..optim.groups import frozen_at
from ..optim.schedules import lr_factor
from ..pictures.encoded import as_png
from ..pictures.plots import curves, loss_plot, smoothed
from ..runs import checkpoints, step_log
from ..runs.guarded import Extras
from ..runs.listing import STRENGTH
from .advice import advice
from .assemble import assembled
from .auto import chosen, ends_unjudged, kept, messages_of
from .calibration import Calibration, calibrated, holding
from .conditions import conditions_of, difference
from .continuing import as_fitted, identity_of, refuse_changes
from .job import Job
from .run import Run
from .samples import Samples
from .step import optimizer_step
from .validation import History
from .watched import Watched

log = logging.getLogger(__name__)
Product = tuple[dict[str, torch.Tensor], dict[str, str]]  # (tensors, metadata) of one file
Export = Callable[
    [dict[str, torch.Tensor], dict[str, Any]], dict[str, Product]
]  # trained values and facts -> file stem -> what is in it, the main one first
POINTS_DRAWN, UNTOUCHED_NAMED = 200, 8
CHOICES = "choices.json"  # in a run folder: what auto has decided, and why


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
    if resume and (job.config.auto or job.config.auto_fit or job.config.memory != AS_SET):
        job = job.with_config(as_fitted(job.config, folder))
    elif job.config.auto:
        job = chosen(job)
    saved = checkpoints.all_steps(folder / "checkpoints") if resume else []
    first = checkpoints.step_of(saved[0]) if saved else 0
    with assembled(job, first, folder) as run:
        return Loop(run, job, folder, export, resume).go()


class Loop:
    """One call of `train`: how far it is, what is saved, what was logged."""

    def __init__(self, run: Run, job: Job, folder: Path, export: Export, resume: bool):
        self.run, self.folder, self.export, self.listener, self.control = run, folder, export, job.listener, job.control
        self.config, self.processes = run.config, run.processes
        self.checkpoints = folder / "checkpoints"
        self.from_weights = bool(job.start)  # what the first step finds is no untrained LoRA
        self.done, self.saved = 0, -1
        self.losses: list[float] = []
        self.started = time.time()
        self.samples = Samples(run, self.listener, self._picture)
        self.history = History()
        self.calibration: Calibration | None = None
        self.rates: list[float | None] = []  # learning rate of each step as it acted, Prodigy's d * lr; None: not known
        self.identity, self.conditions = identity_of(run), conditions_of(run.backend)
        self.extras = Extras(self.listener.on_warning)
        self.watched = Watched(run, folder if self.processes.main else None, self.extras)
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
            if job.choices:
                with self.extras.writing(CHOICES):
                    files.write_json(folder / CHOICES, messages_of(job.choices))

    def go(self) -> Result:
        self.listener.on_start(self.done, self.config.steps, self.facts())
        outcome = "finished"
        try:
            with step_log.StepLog(self.folder if self.processes.main else None, self.extras) as log:
                if self.run.material.probes and not self.history.measures:
                    self._tell_of_validating()
                    self.validate()
                self.listener.on_progress("progress.first_step", self.done, self.config.steps)
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
        for message in self._advice() if outcome != "paused" else ():
            self.listener.on_warning(message)
        self.listener.on_end(outcome, self.done)
        return result

    def _advice(self) -> list[Message]:
        """What to say about the course, of networks trained in turn each its own, then about concepts and pictures."""
        messages: list[Message] = []
        history = History() if self._judges_nothing("validation.restore_best") else self.history
        for line in self._losses_by_expert().values():
            losses = [loss for _, loss in line]
            messages += [message for message in advice(losses, history) if message not in messages]
        return [*messages, *self.watched.messages()]

    def _losses_by_expert(self) -> dict[str, list[tuple[int, float]]]:
        """Expert -> (step, loss) of its steps; "" -> all of a model with one network."""
        lines: dict[str, list[tuple[int, float]]] = {}
        for step, loss in enumerate(self.losses):
            lines.setdefault(self.run.objective.expert_of(step), []).append((step + 1, loss))
        return lines

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
            self._tell_of_validating()
        measure = self.validate() if every and (last or self.done % every == 0) else None
        row = {
            "step": self.done,
            "loss": report.loss,
            "lr": report.lr,
            **({"expert": report.expert} if report.expert else {}),
            **({"class_loss": report.class_loss} if self.run.class_batches else {}),
            "grad_norm": report.grad_norm if math.isfinite(report.grad_norm) else None,
            "time": round(time.time(), 3),
            **({"held_out": measure.held_out, "trained": measure.trained} if measure else {}),
        }
        log.write(row)
        self.listener.on_step(report)
        if self.done == self._all_began() and (layers := self.run.untouched_layers()):
            values = {"count": len(layers), "all": len(self.run.adapters), "layer": layers[0]}
            self._tell_of(layers, Message.of("adapter.no_gradient", field="adapter.targets", **values))
        if self.done % self.config.save.every == 0 and not last:
            log.settle()
            self._tell_of_saving()
            self.save()
        if self.config.samples.every and self.done % self.config.samples.every == 0 and not last:
            self.samples.draw(self.done)

    def _all_began(self) -> int:
        """The step after which every network has been trained once."""
        first = self.run.objective.expert_of(0)
        return 1 if not first else self.config.switch_every + 1

    def _as_asked(self, log: step_log.StepLog) -> None:
        """Saves and draws samples when another thread has asked for it. A save on request also writes the files a person uses."""
        if self.control.take_save():
            log.settle()
            if self.saved != self.done:
                self._tell_of_saving()
                self.save()
            self.listener.on_result(self.done, self._write_result("running").files)
        if self.control.take_sample():
            self.samples.draw(self.done)

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
            self.watched.measure(self.done)
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
        if not patience or self.history.since_best() < patience:
            return False
        if self._judges_nothing("validation.patience"):
            return ends_unjudged(self.config, self.done, len(self.run.batches.pictures))
        return True

    def _judges_nothing(self, setting: str) -> bool:
        """Whether auto, which decides on this setting, has nothing to go by: no step was better on validation pictures than none at all."""
        return self._never_better() and self.config.auto and setting not in kept(self.config)

    def _never_better(self) -> bool:
        best = self.history.best
        return best is not None and best.step == 0 < self.done

    def _chosen_weights(self) -> dict[str, torch.Tensor]:
        """What the result holds: the weights as they are, or those of the best step where that is wanted and there; never untrained ones."""
        best = self.history.best if self.config.validation.restore_best else None
        unjudged = self._judges_nothing("validation.restore_best")
        if best and (unjudged or (self._never_better() and not self.from_weights)):
            if best is not self.history.measures[-1]:  # something was measured since
                code = "auto.unjudged" if unjudged else "result.none_better"
                self.listener.on_warning(Message.of(code, step=self.done))
        elif best and best.step != self.done:
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
        facts |= {"watched": self.watched.as_json()}
        weights = self.run.adapters.state_dict() | (self.run.ema.state_dict() if self.run.ema else {})
        path = checkpoints.save(self.checkpoints, self.done, weights, self.run.optimizer, facts)
        with self.extras.writing("checkpoints"):
            checkpoints.prune(self.checkpoints, self.config.save.keep)
        self.saved = self.done
        self.listener.on_save(self.done, path)
        return path

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
            "calibration": self.calibration.as_json() if self.calibration else None,
            "pictures": len(self.run.batches.pictures),
            "per_epoch": self.run.batches.per_epoch,
            "objective": self.run.objective.kind,
            "base_model": self.run.material.base.as_json(),
            "fixed_lora": self.run.material.fixed,
            "captions": [p.caption for p in self.run.batches.pictures],
            "repeats": [p.repeats for p in self.run.batches.pictures],
            **self.identity,
        }

    def _finish(self, outcome: str) -> Result:
        if self.done != self.saved:
            self._tell_of_saving()
            self.save()
        if self.config.samples.every and outcome != "paused":
            self.samples.draw(self.done)
        if outcome != "paused":
            self._tell_untouched()
        weights = self._chosen_weights() if self.processes.main else {}
        measures = self.config.validation.calibrate and not self._judges_nothing("validation.calibrate")
        if measures and outcome != "paused":
            self._calibrate(weights)
        self.listener.on_progress("progress.writing", self.done, self.config.steps)
        return self._write_result(outcome, weights)

    def _calibrate(self, weights: dict[str, torch.Tensor]) -> None:
        """Finds the strength that the result should be used at, which goes into its header; says it, and keeps the figures in the run folder."""

        def tell(done: int, total: int) -> None:
            self.listener.on_progress("progress.calibrating", done, total)

        with holding(self.run.adapters, self.processes.of_main(weights)):
            self.calibration = calibrated(self.run, tell)
        self.listener.on_note(self.calibration.message())
        if self.processes.main:
            self._picture("strength.png", self.calibration.drawn())
            with self.extras.writing(STRENGTH):
                files.write_json(self.folder / STRENGTH, self.calibration.as_json())

    def _tell_of_validating(self) -> None:
        self.listener.on_progress("progress.validating", self.done, self.config.steps)

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

    def _write_result(self, outcome: str, chosen: dict[str, torch.Tensor] | None = None) -> Result:
        """Writes the files that a person uses. `chosen`: the weights they hold, where these were read already."""
        if not self.processes.main:
            return Result(self.folder, [], self.done, outcome, self.losses, {}, self.facts())
        weights = {
            **self.run.adapters.facts(),
            **(chosen or self._chosen_weights()),
        }  # best weights of 0.1.0 came without alphas
        products = self.export(checkpoints.without_layers(weights, self.run.untouched_layers()), self.facts())
        written = [self.folder / f"{stem}.safetensors" for stem in products]
        for path, (tensors, metadata) in zip(written, products.values(), strict=True):
            files.write_safetensors(path, tensors, metadata)
        self._picture("loss.png", self._loss_drawn())
        points = [(float(n), rate) for n, rate in enumerate(self.rates, 1) if rate is not None]
        if points:
            drawn = points[:: max(1, len(points) // POINTS_DRAWN)]
            self._picture("learning-rate.png", curves({"learning rate": drawn}))
        return Result(self.folder, written, self.done, outcome, self.losses, products, self.facts())

    def _loss_drawn(self) -> Image.Image:
        """The loss over the steps; of several networks trained in turn a line for each."""
        lines = self._losses_by_expert()
        if lines.keys() <= {""}:
            return loss_plot(self.losses)
        drawn = {}
        for name, line in lines.items():
            smooth = smoothed([loss for _, loss in line])
            drawn[name] = [(float(step), loss) for (step, _), loss in zip(line, smooth, strict=True)]
        return curves(drawn)

    def _picture(self, name: str, picture: Image.Image | bytes) -> Path:
        """Writes a picture, or a file's bytes, into the run folder; a disk that refuses it costs the picture, not the run."""
        path = self.folder / name
        with self.extras.writing(name):
            files.make_folders(path.parent)
            files.write_bytes(path, picture if isinstance(picture, bytes) else as_png(picture))
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
        self.watched.restore(checkpoint.facts.get("watched", {}))
        self.done = self.saved = checkpoint.step
        if self.processes.main:
            self.rates = step_log.mend(self.folder, self.losses, self.extras)
