"""The loop: when to save, sample, report and stop, and what is kept however it ends. The step itself is in step.py."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from . import files, state
from .adapters import AdapterSet, LoraAdapter, choose_targets
from .adapters.targets import weight_shape
from .backends.base import Backend, SampleJob
from .config import TrainConfig, as_dict, parse
from .data.batches import Batches, LatentCache
from .data.folder import Dataset
from .errors import LoomError, NonFiniteError
from .events import Control, Listener
from .objectives import Objective, check_prediction
from .optimizers import make_optimizer
from .plots import grid, loss_plot
from .schedules import lr_factor
from .step import MAX_SKIPPED, optimizer_step

log = logging.getLogger(__name__)
Export = Callable[[dict[str, torch.Tensor], dict[str, Any]], tuple[dict[str, torch.Tensor], dict[str, str]]]
MAX_TEXTS_AHEAD = 2000
MAX_FAILED_SAMPLES = 2
CHANGEABLE = ("steps", "save", "samples", "name")  # may differ between a run and its continuation


@dataclasses.dataclass
class Run:
    """Everything a step needs. Built once by `train`."""

    config: TrainConfig
    backend: Backend
    adapters: AdapterSet
    batches: Batches
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    skipped_in_a_row: int = 0
    mid_update: bool = False

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Marks the moment in which the adapters lie between two steps; stays marked when the update fails."""
        self.mid_update = True
        yield
        self.mid_update = False

    def check_finite(self, grad_norm: torch.Tensor, loss: torch.Tensor, step: int, pictures: list[str]) -> tuple[float, float]:
        """(grad_norm, loss) as floats. Raises NonFiniteError naming step and pictures; an fp16 gradient overflow is allowed a few times."""
        norm_value, loss_value = torch.stack([grad_norm.float(), loss.float()]).tolist()
        finite = math.isfinite(norm_value) and math.isfinite(loss_value)
        overflow = self.scaler.is_enabled() and math.isfinite(loss_value) and not finite
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflow else 0
        if finite or (overflow and self.skipped_in_a_row <= MAX_SKIPPED):
            return norm_value, loss_value
        weight = self.backend.find_non_finite()
        if weight:
            raise NonFiniteError(f"The base model is damaged: weight {weight} is not finite; load another file of it. Step {step + 1} was not made.")
        raise NonFiniteError(
            f"Step {step + 1}: loss {loss_value}, gradient norm {norm_value} with {', '.join(dict.fromkeys(pictures))}; the run stopped before "
            "the weights moved. Lower optimizer.lr, or use a base model in bf16 or fp32."
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves: `file` holds the adapter in the chosen format (`tensors`, `metadata`); one float of `losses` per step."""

    folder: Path
    file: Path
    step: int
    outcome: str
    losses: list[float]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    facts: dict[str, Any]


def train(
    config: TrainConfig,
    backend: Backend,
    dataset: Dataset,
    folder: Path,
    export: Export,
    listener: Listener,
    control: Control | None = None,
    resume: bool = False,
) -> Result:
    """Trains adapters on `backend`'s model and writes everything below `folder`.

    Raises LoomError for bad input before the first step. Cancel and crashes keep the last finished step: the run folder then holds a
    checkpoint and a result file. With `resume`, continues the newest whole checkpoint of `folder`, bit for bit as if never interrupted.
    """
    with preserved_rng(config.seed):
        layers, adapters = make_adapters(config, backend)
        files.require_room(files.existing(folder), adapters.count() * 4 * 3 * (config.save.keep + 2))
        objective = backend.objective(config.objective)
        check_prediction(config.objective, objective.kind)
        cache = LatentCache(dataset, config, backend.encode_picture, lambda n, of: listener.on_message(f"Encoding pictures {n}/{of}"))
        for name, why in cache.skipped:
            listener.on_message(f"skipped {name}: {why}")
        batches = Batches(cache, config, backend.device)
        backend.encode_texts(captions_ahead(batches, config), lambda n, of: listener.on_message(f"Encoding captions {n}/{of}"))
        optimizer = make_optimizer(adapters.parameters(), config.optimizer)
        scaler = torch.amp.GradScaler(backend.device.type, init_scale=2.0**12, enabled=backend.dtype == torch.float16)
        run = Run(config, backend, adapters, batches, objective, optimizer, scaler)
        loop = Loop(run, folder, export, listener, control or Control(), resume)
        with backend.training(layers, adapters, config.checkpointing, (config.batch_size, *batches.shapes()[0])):
            return loop.go()


class Loop:
    """One call of `train`: how far it is, what is saved, what was logged."""

    def __init__(self, run: Run, folder: Path, export: Export, listener: Listener, control: Control, resume: bool):
        self.run, self.folder, self.export, self.listener, self.control = run, folder, export, listener, control
        self.config = run.config
        self.checkpoints = folder / "checkpoints"
        self.done, self.saved, self.samples_failed = 0, -1, 0
        self.losses: list[float] = []
        self.started = time.time()
        self.sampled: list[tuple[str, list[Image.Image]]] = []
        self.identity = {"base": run.backend.fingerprint(), "data": run.batches.fingerprint(), "dtype": str(run.backend.dtype)}
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, self.checkpoints):
            files.sweep_temps(place)
        if resume:
            self._restore()
        elif state.all_steps(self.checkpoints):
            raise LoomError(f"name: the run folder {folder.name!r} already holds checkpoints; continue it or choose another name.")
        files.write_json(folder / "config.json", as_dict(self.config))

    def go(self) -> Result:
        self.listener.on_start(self.done, self.config.steps, self.facts())
        outcome = "finished"
        try:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                for step in range(self.done, self.config.steps):
                    if self.control.stopping:
                        outcome = "stopped"
                        break
                    self._step(step, log)
            if self.done == 0:
                raise LoomError("The run was stopped before its first step; nothing was trained and nothing written.")
            result = self._finish(outcome)
        except BaseException:
            self._rescue()
            raise
        self.listener.on_end(outcome, self.done)
        return result

    def _step(self, step: int, log) -> None:
        lr = self.config.optimizer.lr * lr_factor(self.config.schedule, step, self.config.steps)
        for group in self.run.optimizer.param_groups:
            group["lr"] = lr
        report = optimizer_step(self.run, step)
        self.done = report.step
        self.losses.append(report.loss)
        log.write(
            json.dumps(
                {
                    "step": self.done,
                    "loss": report.loss,
                    "lr": lr,
                    "grad_norm": report.grad_norm if math.isfinite(report.grad_norm) else None,
                    "time": round(time.time(), 3),
                }
            )
            + "\n"
        )
        self.listener.on_step(report)
        last = self.done == self.config.steps
        if self.done % self.config.save.every == 0 and not last:
            log.flush()
            self.save()
        if self.config.samples.every and self.done % self.config.samples.every == 0 and not last:
            self.draw_samples()

    def save(self) -> Path:
        """Checkpoint of the steps done so far, then older ones pruned."""
        facts = {**self.identity, "config": as_dict(self.config), "scaler": self.run.scaler.state_dict(), "skipped_in_a_row": self.run.skipped_in_a_row}
        facts["losses"] = self.losses
        path = state.save(self.checkpoints, self.done, self.run.adapters.state_dict(), self.run.optimizer, facts)
        state.prune(self.checkpoints, self.config.save.keep)
        self.saved = self.done
        self.listener.on_save(self.done, path)
        return path

    def draw_samples(self) -> None:
        """The sample prompts with the adapters as they are; the first time also without them, same seed, to compare against."""
        if self.samples_failed >= MAX_FAILED_SAMPLES:
            return
        try:
            if not self.sampled:
                with self.run.adapters.switched_off():
                    self._draw("before")
            self._draw(f"step {self.done}")
        except torch.OutOfMemoryError:
            self.samples_failed += 1
            self.listener.on_message("Not enough memory for a sample picture; training goes on. Lower samples.width_px and height_px.")

    def _draw(self, label: str) -> None:
        jobs = sample_jobs(self.config, self.run.batches)
        images = [image for job in jobs for image in self.run.backend.sample(job)[:1]]
        path = self.folder / "samples" / f"{label.replace(' ', '-')}.png"
        path.parent.mkdir(exist_ok=True)
        sheet = grid(images, columns=len(images), cell_px=max(192, *(max(i.size) for i in images)))
        sheet.save(path)
        self.sampled.append((label, images))
        if len(self.sampled) > 1:
            rows, columns = [self.sampled[0], self.sampled[-1]], len(images)
            labels = [f"{label}: {job.prompt}" for label, _ in rows for job in jobs]
            grid([i for _, row in rows for i in row], labels, columns).save(self.folder / "before-after.png")
        self.listener.on_sample(self.done, images, path)

    def facts(self) -> dict[str, Any]:
        """What the exporter and listeners may want to know about this run."""
        return {
            "config": as_dict(self.config), "started": self.started, "step": self.done, "layers": len(self.run.adapters),
            "trained_values": self.run.adapters.count(),
            "pictures": len(self.run.batches.pictures), "per_epoch": self.run.batches.per_epoch, "objective": self.run.objective.kind,
            "captions": [p.caption for p in self.run.batches.pictures], "repeats": [p.repeats for p in self.run.batches.pictures], **self.identity,
        }  # fmt: skip

    def _finish(self, outcome: str) -> Result:
        if self.done != self.saved:
            self.save()
        if self.config.samples.every:
            self.draw_samples()
        return self._write_result(outcome)

    def _write_result(self, outcome: str) -> Result:
        alphas = {f"{name}.alpha": torch.tensor(a.alpha) for name, a in self.run.adapters if isinstance(a, LoraAdapter)}
        tensors, metadata = self.export({**self.run.adapters.state_dict(), **alphas}, self.facts())
        file = self.folder / f"{self.config.name}.safetensors"
        files.write_safetensors(file, tensors, metadata)
        loss_plot(self.losses).save(self.folder / "loss.png")
        return Result(self.folder, file, self.done, outcome, self.losses, tensors, metadata, self.facts())

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
                self.listener.on_message(f"The last steps could not be kept: {error}")

    def _restore(self) -> None:
        checkpoint, broken = state.latest(self.checkpoints)
        for name in broken:
            self.listener.on_message(f"{name} is damaged or incomplete and was passed over")
        if checkpoint is None:
            raise LoomError(f"{self.folder.name}: holds no complete checkpoint to continue from; start a new run.")
        refuse_changes(self.config, checkpoint.facts, self.identity)
        self.run.adapters.load_state_dict(checkpoint.adapter)
        self.run.optimizer.load_state_dict(checkpoint.optimizer)
        self.run.scaler.load_state_dict(checkpoint.facts["scaler"])
        self.run.skipped_in_a_row = checkpoint.facts["skipped_in_a_row"]
        self.losses = list(checkpoint.facts["losses"])
        self.done = self.saved = checkpoint.step
        log = self.folder / "log.jsonl"
        if log.exists():
            kept = itertools.islice(log.read_text(encoding="utf-8").splitlines(), self.done)
            files.write_bytes(log, "".join(line + "\n" for line in kept).encode())


def make_adapters(config: TrainConfig, backend: Backend) -> tuple[dict[str, nn.Module], AdapterSet]:
    """(layers, adapters) by file name, for the layers the config selects."""
    found = backend.layers()
    layers = {backend.file_name(path): found[path] for path in choose_targets(found, config.adapter)}
    a = config.adapter
    members = {
        name: LoraAdapter(name, layer, weight_shape(layer), a.rank, a.alpha, a.dropout, a.init, config.seed, backend.device) for name, layer in layers.items()
    }
    return layers, AdapterSet(members)


def captions_ahead(batches: Batches, config: TrainConfig) -> list[str]:
    """Captions worth encoding before the first step: each picture's own, and the empty one when captions are dropped."""
    captions = dict.fromkeys(p.caption for p in batches.pictures) if not config.data.shuffle_tags else {}
    if config.data.caption_dropout:
        captions[""] = None
    return list(captions)[:MAX_TEXTS_AHEAD]


def sample_jobs(config: TrainConfig, batches: Batches) -> list[SampleJob]:
    """One job per line of samples.prompt; without prompts, the first caption."""
    prompts = [line.strip() for line in config.samples.prompt.splitlines() if line.strip()] or [batches.pictures[0].caption]
    width, height = (side or config.data.resolution for side in (config.samples.width_px, config.samples.height_px))
    return [SampleJob(prompt, width, height, config.samples) for prompt in prompts]


def refuse_changes(config: TrainConfig, facts: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises LoomError when anything that would change the continued run differs from the saved one."""
    now, then = as_dict(config), as_dict(parse(facts["config"]))
    changed = [f"{k}: {then[k]!r} then, {now[k]!r} now" for k in now if k not in CHANGEABLE and k not in ("data", "base") and now[k] != then[k]]
    changed += [f"data.{k}: {then['data'][k]!r} then, {v!r} now" for k, v in now["data"].items() if k != "folder" and then["data"][k] != v]
    if identity["base"] != facts["base"]:
        changed.append("the base model is another one")
    if identity["dtype"] != facts.get("dtype"):
        changed.append(f"the base model computes in {identity['dtype']} now, in {facts.get('dtype')} then")
    if identity["data"] != facts["data"]:
        changed.append("pictures or captions changed")
    if changed:
        raise LoomError(f"The run cannot be continued: {'; '.join(changed)}. Put it back, or start a new run.")


@contextlib.contextmanager
def preserved_rng(seed: int) -> Iterator[None]:
    """Seeds torch's global generators inside; puts back the state of torch, numpy and Python as it was before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
