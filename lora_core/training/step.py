"""One training step. Start reading here: the rest of the engine exists to call these functions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..data.batches import Batch
from ..events import StepReport
from ..losses import LOSSES, THRESHOLDED, mean
from ..messages.errors import NonFiniteError
from ..optim.optimizers import effective_lr
from ..rng import step_rng
from .run import Run


def diffusion_loss(
    predict: Callable, batch: Batch, objective, rng: torch.Generator, loss: str = "mse", huber_delta: float = 0.1, huber_schedule: str = "snr"
) -> torch.Tensor:
    """Weighted float32 loss of each sample, shape (B,)."""
    x0 = batch.latents  # (B, C, [T,] H, W), in the model's latent units
    mine = batch.world.share(len(x0))  # every process draws for all, and takes its share
    whole = x0 if batch.world.size == 1 else x0.repeat(batch.world.size, *[1] * (x0.ndim - 1))
    sigma = objective.draw_sigma(len(whole), rng)[mine]  # (B,)
    noise = objective.draw_noise(whole, rng)
    perturbed, noise = objective.perturbed(noise, rng)[mine], noise[mine]
    pred = predict(objective.corrupt(x0, perturbed, sigma), sigma, batch)
    delta = objective.huber_delta(sigma, huber_delta, huber_schedule) if loss in THRESHOLDED else None  # (B,)
    error = mean(LOSSES[loss](pred, objective.target(x0, noise, sigma), delta), batch.mask)  # (B,)
    return objective.weight(sigma).to(error) * batch.weight.to(error) * error


def optimizer_step(run: Run, step: int) -> StepReport:
    """Gradients of every micro batch, clip, update. Raises NonFiniteError before the weights move."""
    config = run.config
    totals = torch.zeros(2, device=run.backend.device)  # loss of the subject, of the class
    pictures: list[str] = []
    for micro in range(config.grad_accum):
        for n, (batches, weight, stream) in enumerate(run.sources()):
            batch = batches.at(step, micro)
            run.adapters.begin_pass(config.seed, step, micro, f"{stream}{run.world.rank or ''}")
            rng = step_rng(config.seed, 0, step, micro, f"{stream}noise")
            error = diffusion_loss(run.backend.predict, batch, run.objective, rng, config.loss, config.huber_delta, config.huber_schedule)
            share = error.mean() / config.grad_accum
            if share.requires_grad or len(run.adapters):  # captions without the token have nothing to teach an embedding
                run.scaler.scale(weight * share).backward()
            totals[n] += share.detach()
            pictures += batch.names
    run.world.average([totals])
    if not len(run.adapters) and not run.world.any(any(p.grad is not None for p in run.parameters())):
        loss, class_loss = totals.tolist()
        return StepReport(step + 1, loss, class_loss, 0.0, effective_lr(run.optimizer), pictures)
    if run.world.size > 1:
        for p in run.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        run.world.average([p.grad for p in run.parameters() if p.grad is not None])
    run.scaler.unscale_(run.optimizer)
    grad_norm = clip_grad_norm(run.parameters(), config.optimizer.max_grad_norm)
    norm, loss, class_loss = run.check_finite(grad_norm, totals, step, pictures)  # the step's one device sync, before the weights move
    with run.updating():
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.after_update(step)
    run.optimizer.zero_grad(set_to_none=True)
    return StepReport(step + 1, loss, class_loss, norm, effective_lr(run.optimizer), pictures)


def clip_grad_norm(params: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Total gradient norm before clipping; gradients are scaled in place to `max_norm` unless it is 0."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise NonFiniteError("step.no_gradient")
    norm = torch.nn.utils.get_total_norm(grads, foreach=True)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm, foreach=True)
    return norm
