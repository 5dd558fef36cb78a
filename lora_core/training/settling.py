"""A job's settings with what they leave open filled in, and what this model or these processes cannot do refused."""

from __future__ import annotations

import dataclasses

from ..algebra.kinds import KINDS
from ..backends.base import HasNetwork, SkipsLayers, TrainsInTurn
from ..config import TrainConfig
from ..messages.errors import LoomError
from ..messages.message import Message
from ..optim.optimizers import check_installed, filled
from .job import Job
from .length import epochs_message, planned
from .memory import Weights, decided
from .prior import require_class_pictures
from .prompts import require_drawable, unknown_options


def settled(job: Job) -> TrainConfig:
    """The settings with what they leave open filled in. Raises LoomError for what this model or these processes cannot do."""
    ways = job.backend.recomputes
    config = filled(planned(_for_memory(job), job.dataset, job.processes.size))
    if (length := epochs_message(config, job.dataset)) is not None:
        job.listener.on_note(length)
    if (options := unknown_options(config)) is not None:
        job.listener.on_warning(options)
    for message in require_drawable(config, job.backend):
        job.listener.on_warning(message)
    skip, followed = (
        config.text_encoder.clip_skip,
        job.backend.clip_skip if isinstance(job.backend, SkipsLayers) else None,
    )
    if skip not in (1, followed):
        job.listener.on_warning(Message.of("text_encoder.clip_skip_idle", field="text_encoder.clip_skip", skip=skip))
    require_class_pictures(config.prior, job.dataset)
    if config.trains_slider:
        _require_strengths(config, job)
    if config.validation.calibrate and not KINDS[config.adapter.algorithm].proportional:
        kind = KINDS[config.adapter.algorithm].title
        raise LoomError("strength.of_kind", field="validation.calibrate", kind=kind)
    check_installed(config.optimizer.name)
    if config.switch_every and not isinstance(job.backend, TrainsInTurn):
        raise LoomError("experts.one_model", field="switch_every")
    if config.recomputed and not ways:
        raise LoomError("checkpointing.impossible", field="checkpointing")
    if config.recomputed and config.recomputed not in ways:
        raise LoomError("recompute.impossible", field="recompute", asked=config.recompute, allowed=list(ways))
    return config


def _for_memory(job: Job) -> TrainConfig:
    """The job with what its choice of memory decides on this model, which is told."""
    network = job.backend.network if isinstance(job.backend, HasNetwork) else None
    config, message = decided(job.config, job.backend.family, Weights.of(network))
    if message is not None and message.code == "memory.exceeded":
        job.listener.on_warning(message)
    elif message is not None:
        job.listener.on_note(message)
    if config.checkpointing and not job.config.checkpointing and not job.backend.recomputes:
        return dataclasses.replace(config, checkpointing=False)
    return config


def _require_strengths(config: TrainConfig, job: Job) -> None:
    """Refuses a slider of a kind that has no strengths but one, and one that several processes would draw apart. Raises LoomError."""
    kind = KINDS[config.adapter.algorithm]
    if not kind.proportional:
        raise LoomError("slider.no_strengths", field="adapter.algorithm", kind=kind.title)
    if job.processes.size > 1:
        raise LoomError("slider.several_processes", field="method")
