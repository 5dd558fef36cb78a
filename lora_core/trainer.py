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
from .adapters import AdapterSet
from .backends.base import Backend, SampleJob
from .build import make_adapters
from .config import TrainConfig, as_dict, parse
from .data.batches import Batches, LatentCache
from .data.captions import with_trigger
from .data.folder import Dataset
from .data.prior import CLASS_PICTURES, class_dataset
from .ema import PREFIX as EMA_PREFIX
from .ema import Ema
from .errors import LoomError, NonFiniteError
from .events import Control, Listener
from .groups import drop, frozen_at, make_groups
from .objectives import Objective, check_prediction
from .optimizers import averaged, check_installed, filled, make_optimizer, settle
from .plots import grid, loss_plot
from .rng import derive
from .schedules import lr_factor
from .step import MAX_SKIPPED, optimizer_step
from .tokens import TokenSet

log = logging.getLogger(__name__)
Start = dict[str, dict[str, torch.Tensor]]  # layer name -> what its adapter starts from: lora_down, lora_up, alpha, ...
Product = tuple[dict[str, torch.Tensor], dict[str, str]]  # (tensors, metadata) of one file
Export = Callable[[dict[str, torch.Tensor], dict[str, Any]], dict[str, Product]]  # trained values and facts -> file stem -> what is in it, the main one first
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
    ema: Ema | None = None
    prior: Batches | None = None
    skipped_in_a_row: int = 0
    mid_update: bool = False
    frozen: list[str] = dataclasses.field(default_factory=list)  # names of the groups whose time is over

    def parameters(self) -> list[nn.Parameter]:
        """What this step trains."""
        return [p for g in self.optimizer.param_groups for p in g["params"]]

    def sources(self) -> list[tuple[Batches, float, str]]:
        """(batches, weight of their loss, name of their random streams): the training pictures, and those of the class."""
        prior = [(self.prior, self.config.prior.weight, "class ")] if self.prior else []
        return [(self.batches, 1.0, ""), *prior]

    def freeze(self, groups: list[dict[str, Any]]) -> None:
        """Ends the training of these groups: their averages become their weights, which nothing changes any more."""
        for group in groups:
            if self.ema:
                self.ema.settle(group["params"])
            settle(self.optimizer, group)
            drop(self.optimizer, group)
            self.frozen.append(group["name"])
        if groups:
            self.backend.forget_texts()

    def after_update(self, step: int) -> None:
        """What follows update number `step` (from 0) directly: limits on the weights, and the moving average."""
        if self.config.adapter.max_norm:
            for _, adapter in self.adapters:
                adapter.limit_norm(self.config.adapter.max_norm)
        if self.config.embedding.keep_norm:
            for token in self.adapters.tokens:
                token.pull_back_norm()
        if self.ema:
            self.ema.update(step + 1)

    def restore(self, checkpoint: state.Checkpoint) -> None:
        """Puts everything to where it was when the checkpoint was saved."""
        own = {k: v for k, v in checkpoint.adapter.items() if not k.startswith(EMA_PREFIX)}
        self.adapters.load_state_dict(own)
        if self.ema:
            self.ema.load_state_dict(checkpoint.adapter)
        self.frozen = list(checkpoint.facts.get("frozen", []))
        for group in [g for g in self.optimizer.param_groups if g["name"] in self.frozen]:
            drop(self.optimizer, group)
        stops = {g["name"]: g["stop"] for g in self.optimizer.param_groups}
        self.optimizer.load_state_dict(checkpoint.optimizer)
        for group in self.optimizer.param_groups:
            group["stop"] = stops[group["name"]]  # a continued run may have another number of steps
        self.scaler.load_state_dict(checkpoint.facts["scaler"])
        self.skipped_in_a_row = checkpoint.facts["skipped_in_a_row"]

    @contextlib.contextmanager
    def finished_weights(self) -> Iterator[None]:
        """Inside, the weights are those to sample with and to save; on exit exactly those to go on with."""
        with averaged(self.optimizer), self.ema.in_place() if self.ema else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Marks the moment in which the adapters lie between two steps; stays marked when the update fails."""
        self.mid_update = True
        yield
        self.mid_update = False

    def check_finite(self, grad_norm: torch.Tensor, losses: torch.Tensor, step: int, pictures: list[str]) -> tuple[float, float, float]:
        """(grad_norm, loss, class loss) as floats. Raises NonFiniteError naming step and pictures; an fp16 gradient overflow is allowed a few times."""
        norm_value, *both = torch.cat([grad_norm.float().view(1), losses.float()]).tolist()
        loss_value = sum(both)
        finite = math.isfinite(norm_value) and math.isfinite(loss_value)
        overflow = self.scaler.is_enabled() and math.isfinite(loss_value) and not finite
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflow else 0
        if finite or (overflow and self.skipped_in_a_row <= MAX_SKIPPED):
            return norm_value, both[0], both[1]
        weight = self.backend.find_non_finite()
        if weight:
            raise NonFiniteError(f"The base model is damaged: weight {weight} is not finite; load another file of it. Step {step + 1} was not made.")
        raise NonFiniteError(
            f"Step {step + 1}: loss {loss_value}, gradient norm {norm_value} with {', '.join(dict.fromkeys(pictures))}; the run stopped before "
            "the weights moved. Lower optimizer.lr, or use a base model in bf16 or fp32."
        )


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


def train(
    config: TrainConfig,
    backend: Backend,
    dataset: Dataset,
    folder: Path,
    export: Export,
    listener: Listener,
    control: Control | None = None,
    resume: bool = False,
    start: Start | None = None,
) -> Result:
    """Trains adapters on `backend`'s model, from `start` where given, and writes everything below `folder`.

    Raises LoomError for bad input before the first step. Cancel and crashes keep the last finished step: the run folder then holds a
    checkpoint and a result file. With `resume`, continues the newest whole checkpoint of `folder`, bit for bit as if never interrupted.
    """
    config = filled(config)
    check_installed(config.optimizer.name)
    with preserved_rng(config.seed):
        layers, adapters = make_adapters(config, backend, dataset.trigger, start or {})
        dataset = with_tokens(dataset, adapters.tokens)
        files.require_room(files.existing(folder), adapters.count() * 4 * 3 * (config.save.keep + 2))
        objective = backend.objective(config.objective)
        check_prediction(config.objective, objective.kind)
        cache = LatentCache(dataset, config, backend.encode_picture, lambda n, of: listener.on_message(f"Encoding pictures {n}/{of}"))
        for name, why in cache.skipped:
            listener.on_message(f"skipped {name}: {why}")
        if config.data.masks != "none" and not cache.masked:
            raise LoomError(
                f"data.masks: {config.data.masks} was chosen, but no picture has a mask that leaves anything out ({cache.unmasked} are white everywhere); "
                "add masks, or choose none."
            )
        if cache.unmasked:
            listener.on_message(f"{cache.unmasked} masks are white everywhere and change nothing")
        batches, prior = Batches(cache, config, backend.device), _class_batches(config, backend, dataset, adapters.tokens, folder, listener)
        if not adapters.changes_text:
            ahead = captions_ahead(batches, config) + (captions_ahead(prior, config) if prior else [])
            backend.encode_texts(ahead, lambda n, of: listener.on_message(f"Encoding captions {n}/{of}"))
        with backend.training(layers, adapters, config.checkpointing, (config.batch_size, *batches.shapes()[0])):
            adapters.prepare()
            optimizer = make_optimizer(make_groups(config, adapters), config.optimizer)
            scaler = torch.amp.GradScaler(backend.device.type, init_scale=2.0**12, enabled=backend.dtype == torch.float16)
            ema = Ema(adapters, config.ema_decay) if config.ema_decay else None
            run = Run(config, backend, adapters, batches, objective, optimizer, scaler, ema, prior)
            return Loop(run, folder, export, listener, control or Control(), resume).go()


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
        if run.prior:
            self.identity["prior"] = run.prior.fingerprint()
        if run.adapters.changes_text:
            self.identity["text"] = run.backend.text_fingerprint()
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
        self.run.freeze(frozen_at(self.run.optimizer, step))
        factor = lr_factor(self.config.schedule, step, self.config.steps)
        for group in self.run.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        report = optimizer_step(self.run, step)
        self.done = report.step
        self.losses.append(report.loss)
        log.write(
            json.dumps(
                {
                    "step": self.done,
                    "loss": report.loss,
                    "lr": report.lr,
                    **({"class_loss": report.class_loss} if self.run.prior else {}),
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
        facts |= {"losses": self.losses, "frozen": self.run.frozen}
        weights = self.run.adapters.state_dict() | (self.run.ema.state_dict() if self.run.ema else {})
        path = state.save(self.checkpoints, self.done, weights, self.run.optimizer, facts)
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
                with self.run.adapters.switched_off(), self._texts_apart():
                    self._draw("before")
            with self.run.finished_weights(), self._texts_apart():
                self._draw(f"step {self.done}")
        except torch.OutOfMemoryError:
            self.samples_failed += 1
            self.listener.on_message("Not enough memory for a sample picture; training goes on. Lower samples.width_px and height_px.")

    @contextlib.contextmanager
    def _texts_apart(self) -> Iterator[None]:
        """Texts are encoded anew inside and after it, where other weights of the text encoders act inside."""
        if self.run.adapters.changes_text:
            self.run.backend.forget_texts()
        yield
        if self.run.adapters.changes_text:
            self.run.backend.forget_texts()

    def _draw(self, label: str) -> None:
        jobs = sample_jobs(self.config, self.run.batches, self.run.prior)
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
            "tokens": [{"placeholder": t.token.placeholder, "vectors": t.token.vectors} for t in self.run.adapters.tokens],
            "captions": [p.caption for p in self.run.batches.pictures], "repeats": [p.repeats for p in self.run.batches.pictures], **self.identity,
        }  # fmt: skip

    def _finish(self, outcome: str) -> Result:
        if self.done != self.saved:
            self.save()
        if self.config.samples.every:
            self.draw_samples()
        return self._write_result(outcome)

    def _write_result(self, outcome: str) -> Result:
        with self.run.finished_weights():
            weights = self.run.adapters.state_dict()
        alphas = {f"{name}.alpha": torch.tensor(a.alpha) for name, a in self.run.adapters if a.alpha}
        products = self.export({**weights, **alphas}, self.facts())
        written = [self.folder / f"{stem}.safetensors" for stem in products]
        for path, (tensors, metadata) in zip(written, products.values(), strict=True):
            files.write_safetensors(path, tensors, metadata)
        loss_plot(self.losses).save(self.folder / "loss.png")
        return Result(self.folder, written, self.done, outcome, self.losses, products, self.facts())

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
        self.run.restore(checkpoint)
        self.losses = list(checkpoint.facts["losses"])
        self.done = self.saved = checkpoint.step
        log = self.folder / "log.jsonl"
        if log.exists():
            kept = itertools.islice(log.read_text(encoding="utf-8").splitlines(), self.done)
            files.write_bytes(log, "".join(line + "\n" for line in kept).encode())


def with_tokens(dataset: Dataset, tokens: TokenSet) -> Dataset:
    """The dataset with the first token in front of every caption, when no caption has any; pictures without it are meant to be when some do."""
    if not len(tokens) or any(tokens.names_in(p.caption) for p in dataset.pictures):
        return dataset
    first = next(iter(tokens)).token.placeholder
    return dataclasses.replace(dataset, pictures=tuple(dataclasses.replace(p, caption=with_trigger(p.caption, first)) for p in dataset.pictures))


def _class_batches(config: TrainConfig, backend: Backend, dataset: Dataset, tokens: TokenSet, folder: Path, listener: Listener) -> Batches | None:
    """The class pictures as batches with an order of their own; None without prior preservation."""
    found = class_dataset(
        config, backend, dataset, tokens, folder.parent / CLASS_PICTURES, lambda n, of: listener.on_message(f"Making class pictures {n}/{of}")
    )
    if found is None:
        return None
    own = dataclasses.replace(config, seed=derive(config.seed, "class"))
    cache = LatentCache(found, own, backend.encode_picture, lambda n, of: listener.on_message(f"Encoding class pictures {n}/{of}"))
    return Batches(cache, own, backend.device)


def captions_ahead(batches: Batches, config: TrainConfig) -> list[str]:
    """Captions worth encoding before the first step: each picture's own, and the empty one when captions are dropped."""
    captions = dict.fromkeys(p.caption for p in batches.pictures) if not config.data.shuffle_tags else {}
    if config.data.caption_dropout:
        captions[""] = None
    return list(captions)[:MAX_TEXTS_AHEAD]


def sample_jobs(config: TrainConfig, batches: Batches, prior: Batches | None = None) -> list[SampleJob]:
    """One job per line of samples.prompt; without prompts, the first caption. With class pictures one for the class, to see whether it drifts."""
    prompts = [line.strip() for line in config.samples.prompt.splitlines() if line.strip()] or [batches.pictures[0].caption]
    prompts += [config.prior.prompt or prior.pictures[0].caption] if prior else []
    width, height = (side or config.data.resolution for side in (config.samples.width_px, config.samples.height_px))
    return [SampleJob(prompt, width, height, config.samples) for prompt in prompts]


def refuse_changes(config: TrainConfig, facts: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises LoomError when anything that would change the continued run differs from the saved one."""
    now, then = as_dict(config), as_dict(parse(facts["config"]))
    changed = [f"{k}: {then[k]!r} then, {now[k]!r} now" for k in now if k not in CHANGEABLE and k not in ("data", "base") and now[k] != then[k]]
    changed += [f"data.{k}: {then['data'][k]!r} then, {v!r} now" for k, v in now["data"].items() if k != "folder" and then["data"][k] != v]
    if identity["base"] != facts["base"]:
        changed.append("the base model is another one")
    if identity.get("prior") != facts.get("prior"):
        changed.append("the class pictures changed")
    if identity.get("text") != facts.get("text"):
        changed.append("the text encoder is another one")
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
