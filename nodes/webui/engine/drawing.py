"""Sample pictures by the host's own sampler, as txt2img draws them, without leaving anything in the host: no file, no cached text, no state."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL import Image

from ....lora_core.backends.base import SampleJob, Samplers
from ....lora_core.config import SampleConfig

STATE = (
    "job", "job_no", "job_count", "job_timestamp", "sampling_step", "sampling_steps", "current_latent", "current_image",
    "current_image_sampling_step", "id_live_preview", "textinfo", "time_start", "interrupted", "skipped",
    "stopping_generation", "processing_has_refined_job_count",
)  # fmt: skip
DEFAULT_SAMPLER, USUAL_SCHEDULER = "Euler", "Automatic"
OF_ALL_PICTURES = "k_sched_type"  # the option of older hosts


@contextlib.contextmanager
def state_kept() -> Iterator[None]:
    """Whatever runs inside, `shared.state` and the progress of the current task are afterwards what they were."""
    from modules import progress, shared

    before = {name: getattr(shared.state, name) for name in STATE if hasattr(shared.state, name)}
    task = progress.current_task
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(shared.state, name, value)
        progress.current_task = task


def scheduler_for(config: SampleConfig, flow: bool) -> str:
    """What a job asks for; where it asks for nothing, the sampler's usual one, which flow models have not."""
    is_set = config.scheduler != SampleConfig().scheduler
    return scheduler_named(config.scheduler) if is_set or flow else USUAL_SCHEDULER


def sampler_named(name: str) -> str:
    """The host's sampler for a name of ours (`euler`, `dpmpp_2m`) or its own; Euler for one it does not have."""
    from modules import sd_samplers

    samplers = sd_samplers.samplers_map
    return samplers.get(name.lower()) or samplers.get(f"k_{name.lower()}") or DEFAULT_SAMPLER


def scheduler_named(name: str) -> str:
    """The host's noise schedule for a name of ours (`karras`, `sgm_uniform`) or its own; the sampler's usual one for one it does not have."""
    schedules = _schedules()
    return schedules.get(name) or schedules.get(name.lower()) or USUAL_SCHEDULER


def _schedules() -> Mapping[str, str]:
    """The host's word for each name of a noise schedule."""
    try:
        from modules import sd_schedulers
    except ImportError:  # an older host, which has some of them as an option for all of its pictures
        from modules import sd_samplers_kdiffusion

        return {name.lower(): name for name in sd_samplers_kdiffusion.k_diffusion_scheduler}
    return {name: scheduler.label for name, scheduler in sd_schedulers.schedulers_map.items()}


def samplers() -> Samplers:
    """The samplers and schedules that `sampler_named` and `scheduler_named` find."""
    from modules import sd_samplers

    names = dict.fromkeys(name.removeprefix("k_") for name in sd_samplers.samplers_map)
    return Samplers(tuple(names), (SampleConfig().scheduler, *_schedules()))


@contextlib.contextmanager
def _scheduled(scheduler: str) -> Iterator[dict[str, str]]:
    """What a request has to say for its pictures to be drawn with this noise schedule; inside, an older host is told by its option instead."""
    from modules import processing, shared

    if "scheduler" in {field.name for field in dataclasses.fields(processing.StableDiffusionProcessing)}:
        yield {"scheduler": scheduler}
        return
    data = shared.opts.data
    before = {OF_ALL_PICTURES: data[OF_ALL_PICTURES]} if OF_ALL_PICTURES in data else {}
    if scheduler != USUAL_SCHEDULER:
        data[OF_ALL_PICTURES] = scheduler
    try:
        yield {}
    finally:
        data.pop(OF_ALL_PICTURES, None)
        data.update(before)


def drawn(
    model: Any, job: SampleJob, prompt: str, scheduler: str, beside: torch.Tensor | None = None
) -> list[Image.Image]:
    """One picture of `prompt`, with what the network reads `beside` the noise. Runs inside whatever modes the caller has set."""
    from modules import processing

    config = job.config
    with _scheduled(scheduler) as schedule, state_kept():
        request = processing.StableDiffusionProcessingTxt2Img(
            sd_model=model,
            prompt=prompt,
            negative_prompt=config.negative,
            seed=config.seed,
            steps=config.steps,
            cfg_scale=config.cfg,
            width=job.width_px,
            height=job.height_px,
            sampler_name=sampler_named(config.sampler),
            **schedule,
            do_not_save_samples=True,
            do_not_save_grid=True,
            do_not_reload_embeddings=True,
        )
        request.scripts = None
        request.disable_extra_networks = True  # a LoRA in the prompt would be merged into the weights that are trained
        request.cached_c, request.cached_uc = (
            [None, None],
            [None, None],
        )  # else texts of this moment meet later pictures
        if beside is not None:
            request.txt2img_image_conditioning = lambda x, *size, **sizes: beside.to(x)
        with contextlib.closing(request):
            return [image.convert("RGB") for image in processing.process_images(request).images[:1]]
