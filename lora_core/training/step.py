"""One training step. Start reading here: the rest of the engine exists to call these functions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator

import torch

from ..data.batches import Batch
from ..events import StepReport
from ..losses import MSE, Distance, mean
from ..messages.blame import blamed
from ..messages.errors import NonFiniteError
from ..objectives import Objective
from ..optim.optimizers import effective_lr, pieces
from ..rng import step_rng
from ..transfer import sent
from .run import Run, Source

Predict = Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]  # (x_t, sigma, batch) -> the network's raw output


def diffusion_loss(
    predict: Predict, batch: Batch, objective: Objective, rng: torch.Generator, distance: Distance = MSE
) -> torch.Tensor:
    """Weighted float32 loss of each sample, shape (B,)."""
    x0 = batch.latents  # (B, C, [T,] H, W), in the model's latent units
    drawn = objective.draw_sigma(len(x0), rng)  # (B,), on the CPU, so it is the same on every device
    noise = objective.draw_noise(x0, rng)
    # All that goes to the device is sent before the network begins: a copy behind it would wait for it.
    sigma = drawn if x0.device.type == "mps" else sent(drawn, x0.device)
    weight, threshold = (
        sent(objective.weight(drawn).float(), x0.device),
        distance.threshold(objective, drawn, x0.device),
    )
    x_t, target = objective.corrupt(x0, objective.perturbed(noise, rng), sigma), objective.target(x0, noise, sigma)
    pred = predict(batch.as_given(x_t), sigma, batch)
    error = mean(distance(pred, target, threshold), batch.asked)  # (B,)
    return weight.to(error) * batch.weight.to(error) * error


def optimizer_step(run: Run, step: int) -> StepReport:
    """Gradients of every micro batch, clip, update. Raises NonFiniteError before the weights move, LoomError for what a library fails with."""
    names: dict[str, None] = {}
    with blamed("step.failed", "", step=step + 1, pictures=names):
        return _step(run, step, names)


def _step(run: Run, step: int, names: dict[str, None]) -> StepReport:
    """The step itself, with the names of the pictures put into `names` when their turn comes."""
    config, objective = run.config, run.objective.of_step(step)
    losses = torch.zeros(2, device=run.backend.device)  # on the training pictures, on those of the class
    pictures: list[str] = []
    for micro in range(config.grad_accum):
        for n, source in enumerate(run.sources):
            batch = source.batches.at(step, micro)
            pictures += batch.names
            names.update(dict.fromkeys(batch.names))
            run.begin_pass(source, step, micro)
            rng = step_rng(config.seed, 0, step, micro, f"{source.stream}noise")
            with contextlib.closing(losses_of(run, source, objective, batch, rng)) as parts:
                for part in parts:
                    share = part.mean() / config.grad_accum
                    run.backward(source.weight * share)
                    losses[min(n, 1)] += share.detach()
    expert = run.objective.expert_of(step)
    if not run.gather(losses):
        loss, class_loss = losses.tolist()
        return StepReport(step + 1, loss, class_loss, 0.0, effective_lr(run.optimizer), pictures, expert)
    grad_norm = clip_grad_norm(pieces(run.optimizer), config.optimizer.max_grad_norm)
    loss, class_loss, norm = run.check_finite(
        losses, grad_norm, step, pictures
    )  # the step's one device sync, before the weights move
    run.update(step)
    return StepReport(step + 1, loss, class_loss, norm, effective_lr(run.optimizer), pictures, expert)


def losses_of(
    run: Run, source: Source, objective: Objective, batch: Batch, rng: torch.Generator
) -> Generator[torch.Tensor, None, None]:
    """The losses (B,) of a pass, one after the other; each is to be gone back through before the next one is asked for."""
    objective = objective.of_shape(batch.latents.shape)
    if source.lesson is None:
        yield diffusion_loss(run.backend.predict, batch, objective, rng, Distance.of(run.config))
    else:
        yield from source.lesson.losses(run, objective, batch, rng)


def clip_grad_norm(params: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Total gradient norm before clipping; gradients are scaled in place to `max_norm` unless it is 0."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise NonFiniteError("step.no_gradient")
    return torch.nn.utils.clip_grad_norm_(
        params, max_norm or math.inf
    )  # in lists of tensors where the device has such operations
