"""The sample pictures of a run: drawn as it goes, each time beside those of before the first step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..backends.base import SampleJob
from ..config import TrainConfig
from ..config.slider import lines_of
from ..data.batches import Batches, Feed
from ..data.dataset import Picture
from ..data.latents import LatentCache, View
from ..events import Listener
from ..messages.blame import first_line, is_foreign
from ..messages.errors import Problem, is_memory
from ..messages.message import Message
from ..pictures.moving import USUAL_RATE, animated_webp, side_by_side
from ..pictures.plots import grid
from .prompts import Pair, Prompt, job_of, prompts_in
from .run import Run

MAX_FAILED = 2
MAX_PAIRS = 64  # more prompts than this begin with the first pair again


class Samples:
    """Those of `run`, told to `listener`. `write(name, picture)` puts a picture, or the bytes of one, into the run folder and returns where.

    After MAX_FAILED times that the host could not draw, no more are drawn.
    """

    def __init__(self, run: Run, listener: Listener, write: Callable[[str, Image.Image | bytes], Path]):
        self._run, self._listener, self._write = run, listener, write
        self._failed = 0
        self._drawn: list[tuple[str, list[Image.Image]]] = []

    def draw(self, step: int) -> None:
        """After `step` steps: the sample prompts with the adapters as they are; the first time also without them, same seed, to compare against."""
        if self._failed >= MAX_FAILED or not (self._run.processes.main or self._run.processes.sharded):
            return
        try:
            if self._run.config.trains_slider:
                with self._run.finished_weights(), self._run.adapters.without_fixed():
                    self._strengths(step)
                return
            if not self._drawn:
                with self._run.adapters.switched_off(), self._texts_apart():
                    self._row("before", step)
            with self._run.finished_weights(), self._run.adapters.without_fixed(), self._texts_apart():
                self._row(f"step {step}", step)
        except BaseException as error:
            if isinstance(error, Problem) or not is_foreign(error):
                raise
            self._failed += 1
            failed = Message.of("samples.failed", reason=first_line(error))
            self._listener.on_warning(Message.of("samples.no_memory") if is_memory(error) else failed)

    @contextlib.contextmanager
    def _texts_apart(self) -> Iterator[None]:
        """Texts are encoded anew inside and after it, where other weights of the text encoders act inside."""
        forget = self._run.backend.forget_texts if self._run.adapters.changes_text else lambda: None
        forget()
        try:
            yield
        finally:
            forget()

    def _strengths(self, step: int) -> None:
        """One sheet: a row for each prompt, from the lowest strength of the slider to the highest."""
        jobs, strengths = sample_jobs(self._run.config, self._run.batches), sorted(self._run.config.slider.previewed())
        images: list[Image.Image] = []
        for job in jobs:
            for strength in strengths:
                self._listener.on_progress("progress.samples", len(images) + 1, len(jobs) * len(strengths))
                with self._run.adapters.at_strength(strength):
                    clip = self._run.backend.sample(job)[: job.frames]
                images.append(clip[len(clip) // 2])
        if self._run.processes.main:
            labels = [label for job in jobs for label in at_strengths(self._run.config, job.prompt)]
            cell_px = max(192, *(max(i.size) for i in images))
            sheet = grid(images, labels, len(strengths), cell_px)
            self._listener.on_sample(step, images, self._write(f"samples/step-{step}.png", sheet))
            self._write("before-after.png", sheet)

    def _row(self, label: str, step: int) -> None:
        probes = self._run.material.probes
        held_out = probes.held_out if probes is not None else None
        jobs = sample_jobs(self._run.config, self._run.batches, self._run.class_batches, held_out)
        clips: list[list[Image.Image]] = []
        for n, job in enumerate(jobs, 1):
            self._listener.on_progress("progress.samples", n, len(jobs))
            clips.append(self._run.backend.sample(job)[: job.frames])
        if not self._run.processes.main:  # it only lent its part of the model
            self._drawn.append((label, []))
            return
        images = [clip[len(clip) // 2] for clip in clips]
        path = self._write(f"samples/{label.replace(' ', '-')}.png", _sheet(images))
        if any(len(clip) > 1 for clip in clips):
            moments = [_sheet(moment) for moment in side_by_side(clips)]
            rate = trained_rate(self._run.batches.pictures) or USUAL_RATE
            self._write(f"samples/{label.replace(' ', '-')}.webp", animated_webp(moments, rate))
        self._drawn.append((label, images))
        if len(self._drawn) > 1:
            rows, columns = [self._drawn[0], self._drawn[-1]], len(images)
            labels = [f"{label}: {job.prompt}" for label, _ in rows for job in jobs]
            self._write("before-after.png", grid([i for _, row in rows for i in row], labels, columns))
        self._listener.on_sample(step, images, path)


def _sheet(images: Sequence[Image.Image]) -> Image.Image:
    return grid(images, columns=len(images), cell_px=max(192, *(max(i.size) for i in images)))


def trained_rate(pictures: Sequence[Picture]) -> float:
    """The fewest frames a second at which clips are trained; 0 where no set says it."""
    return min((picture.frame_rate for picture in pictures if picture.frame_rate), default=0.0)


def sample_jobs(
    config: TrainConfig, batches: Feed, prior: Feed | None = None, held_out: LatentCache | None = None
) -> list[SampleJob]:
    """One job per line of samples.prompt; without prompts, the first caption. With class pictures one for the class, to see whether it drifts.

    Where pictures have control pictures, each job edits those of another one: of the validation pictures where there are some, else of the set's own.
    A slider without prompts draws what it acts on and what it preserves.
    """
    pairs = pairs_of(held_out) if held_out is not None else []
    if not config.trains_slider or not config.slider.of_pairs:  # whose first pictures are shown to no network
        pairs = pairs or (pairs_of(batches.cache) if isinstance(batches, Batches) else [])
    prompts = prompts_in(config.samples.prompt) or [Prompt(text, {}) for text in _usual_prompts(config, batches, pairs)]
    jobs = [job_of(prompt, config, pairs[n % len(pairs)] if pairs else None) for n, prompt in enumerate(prompts)]
    if prior:
        word = config.prior.class_word if config.prior.without_pictures else ""
        jobs.append(job_of(Prompt(config.prior.prompt or word or prior.pictures[0].caption, {}), config))
    longest = max((len(clip) for picture in batches.pictures for clip in picture.clips), default=1)
    jobs = [job if job.config.frames else dataclasses.replace(job, frames=longest) for job in jobs]
    rate = trained_rate(batches.pictures)
    return [dataclasses.replace(job, frame_rate=rate if job.frames > 1 else 0.0) for job in jobs]


def _usual_prompts(config: TrainConfig, batches: Feed, pairs: Sequence[Pair]) -> list[str]:
    """Those of a job that names none."""
    if config.trains_slider:
        return slider_prompts(config, [picture.caption for picture in batches.pictures])
    return [pairs[0].caption if pairs else batches.pictures[0].caption]


def pairs_of(cache: LatentCache) -> list[Pair]:
    """The pictures of a set that have control pictures, and clips, the first MAX_PAIRS of them."""
    has_more = [e.picture.controls or e.picture.film or e.picture.data.input_mask != "none" for e in cache.entries]
    with_controls = [n for n, one in enumerate(has_more) if one]
    views = [View(n) for n in with_controls[:MAX_PAIRS]]
    pairs = [(cache.entries[v.entry].picture.caption, cache.fit(v).bucket, cache.shown(v)) for v in views]
    return [Pair(*pair) for pair in pairs if pair[2].identity]


def slider_prompts(config: TrainConfig, captions: Sequence[str]) -> list[str]:
    """Its targets, or an empty prompt, of pairs their first caption, and the prompts it preserves."""
    usual = captions[:1] if config.slider.of_pairs else []
    return [*(lines_of(config.slider.target) or usual or [""]), *lines_of(config.slider.preserve)]


def sample_prompts(config: TrainConfig, captions: Sequence[str]) -> list[str]:
    """What is drawn for the lines of samples.prompt, else the first caption."""
    usual = slider_prompts(config, captions) if config.trains_slider else [captions[0]]
    prompts = [job_of(prompt, config).prompt for prompt in prompts_in(config.samples.prompt)] or usual
    return [label for prompt in prompts for label in at_strengths(config, prompt)] if config.trains_slider else prompts


def at_strengths(config: TrainConfig, prompt: str) -> list[str]:
    """What stands under the pictures of a prompt on a slider's sheet."""
    return [f"{strength:+g}: {prompt}" for strength in sorted(config.slider.previewed())]
