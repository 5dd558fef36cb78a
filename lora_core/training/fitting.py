"""The dry run: one real forward and backward pass on the largest bucket, measured, before anything is trained; and what to change when it does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence

import torch

from .. import compat
from ..config import AS_SET, Recompute, TrainConfig
from ..data.batches import Batch
from ..losses import Distance
from ..messages.errors import LoomError
from ..messages.figures import figure
from ..messages.message import Message
from ..rng import step_rng
from ..runs.pace import resident_bytes
from .run import Material
from .step import diffusion_loss


@dataclasses.dataclass(frozen=True)
class Measured:
    """One pass of `batch_size` pictures: seconds, and the peak of memory in bytes (of the GPU, else of the process; 0 where the system does not tell)."""

    batch_size: int
    grad_accum: int
    recomputed: Recompute
    seconds: float
    peak_bytes: int

    def message(self, steps: int) -> Message:
        """What it means for a run of `steps`."""
        step = self.seconds * self.grad_accum
        batch = Message.of("fit.batch", batch=self.batch_size, accum=self.grad_accum)
        if self.recomputed:
            batch = Message.of("fit.recomputed", batch=batch, recomputed=self.recomputed)
        memory = Message.of("fit.unmeasured")
        if self.peak_bytes:
            memory = Message.of("fit.peak", size=figure(self.peak_bytes / 2**30))
        return Message.of(
            "fit.measured", batch=batch, step=figure(step), time=_clock(step * steps), steps=steps, memory=memory
        )


def as_chosen(config: TrainConfig, chosen: TrainConfig) -> TrainConfig:
    """`config` with the batch size, accumulation, checkpointing and recompute of `chosen`."""
    names = ("batch_size", "grad_accum", "checkpointing", "recompute")
    return dataclasses.replace(config, **{name: getattr(chosen, name) for name in names})


def verdict(config: TrainConfig, chosen: TrainConfig, measured: Measured, steps: int) -> tuple[bool, Message]:
    """(whether the job fits as it was asked for, what to say about it)."""
    fits = config.memory != AS_SET or as_chosen(config, chosen) == config  # a choice of memory leaves these open
    message = measured.message(steps)
    return fits, message if fits else Message.of("fit.other_settings", measured=message)


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def candidates(
    config: TrainConfig, recomputes: Sequence[Recompute] = (Recompute.CHEAP, Recompute.ALL)
) -> list[TrainConfig]:
    """The job as it is, then with more and more recomputed where the model can, then with the batch halved again and again and more accumulation instead."""
    ways = [Recompute.NONE, *recomputes]
    more = ways[ways.index(config.recomputed) + 1 :]
    out = [config, *(dataclasses.replace(config, checkpointing=True, recompute=how.value) for how in more)]
    batch, accum = config.batch_size, config.grad_accum
    while batch > 1:
        parts = (
            2 if batch % 2 == 0 else batch
        )  # an odd batch is split whole, so as many pictures make an update as before
        batch, accum = batch // parts, accum * parts
        out.append(dataclasses.replace(out[-1], batch_size=batch, grad_accum=accum))
    return out


def first_fitting(material: Material) -> tuple[TrainConfig, Measured]:
    """The first of `candidates` that runs, and what it took. Raises LoomError when none does."""
    for choice in candidates(material.config, material.backend.recomputes):
        try:
            return choice, measure(material.with_config(choice))
        except compat.OutOfMemoryError:
            pass
        finally:
            for p in material.adapters.parameters():
                p.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise LoomError("batch_size.one_too_many", field="batch_size", resolution=material.config.data.resolution)


def measure(material: Material) -> Measured:
    """Two passes on a full batch of the largest bucket of all sources, the second one timed. No weight moves."""
    config, device = material.config, material.backend.device
    batch = max(
        (source.batches.largest(config.batch_size) for source in material.sources),
        key=lambda batch: batch.latents.numel(),
    )
    with material.lent(batch.latents.shape[1:]):
        material.adapters.prepare()
        with _peak(device) as peak:
            for _ in range(2):
                began = time.perf_counter()
                _pass(material, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds = time.perf_counter() - began
    return Measured(config.batch_size, config.grad_accum, config.recomputed, seconds, peak[0])


def _pass(material: Material, batch: Batch) -> None:
    config = material.config
    material.adapters.begin_pass(config.seed, 0, 0, "dry run")
    rng = step_rng(config.seed, 0, 0, 0, "dry run")
    loss = diffusion_loss(material.backend.predict, batch, material.objective, rng, Distance.of(config))
    if loss.requires_grad:
        loss.mean().backward()


@contextlib.contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """A list whose only number is, after the block, the largest amount of memory in use within it."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], resident_bytes())
