"""What is drawn, how latents are corrupted, what the network should answer.

Conventions (Karras et al. 2022, arXiv 2206.00364): for eps and v models x_t = x0 + sigma * noise with sigma = sqrt((1 - abar) / abar);
for flow models x_t = (1 - sigma) * x0 + sigma * noise with sigma in [0, 1]. Scaling the network's input belongs to the backend.
Everything here is float64 until the result is handed over, since (x0 - A) / B cancels badly at small sigma in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from .config import ObjectiveConfig
from .processes import Processes
from .rng import randn_like

TIMESTEPS = 1000


class NoiseLevels(Protocol):
    """Maps u in [0, 1) (share of the way from clean to noise) to the objective's sigma, both float64 of shape (B,)."""

    def __call__(self, u: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class SizedLevels(Protocol):
    """Levels that depend on how large the latents are."""

    def of_shape(self, shape: Sequence[int]) -> NoiseLevels:
        """Those of latents (B, C, [T,] h, w)."""


@dataclasses.dataclass(frozen=True)
class DiscreteLevels:
    """A table of T sigmas (eps and v models): u picks entry floor(u * T)."""

    sigmas: torch.Tensor  # (T,) float64, rising

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        index = (u * len(self.sigmas)).long().clamp(0, len(self.sigmas) - 1)
        return self.sigmas[index]

    def share(self, sigma: torch.Tensor) -> torch.Tensor:
        """u of a level in the table."""
        table = self.sigmas.to(sigma.device)
        return torch.searchsorted(table, sigma.to(table.dtype)).to(sigma) / len(table)


@dataclasses.dataclass(frozen=True)
class FlowLevels:
    """Continuous levels of flow models with a time shift s: sigma = s u / (1 + (s - 1) u) (Esser et al. 2024, eq. 23)."""

    shift: float = 1.0

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)


def discrete_sigmas(abar: torch.Tensor) -> torch.Tensor:
    """sigma = sqrt((1 - abar) / abar) of each timestep, float64."""
    abar = abar.double()
    return ((1 - abar) / abar).sqrt()


def rescale_zero_terminal_snr(abar: torch.Tensor) -> torch.Tensor:
    """abar with the last step's signal removed and the first kept (Lin et al. 2023, arXiv 2305.08891, algorithm 1).

    The last value stays a hair above zero so sigma is finite; the host uses the same number.
    """
    root = abar.double().sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    out = root.square()
    out[-1] = 4.8973451890853435e-08
    return out


def widest(x: torch.Tensor) -> torch.Tensor:
    """float64, or float32 on Apple GPUs, which have no wider numbers."""
    return x.float() if x.device.type == "mps" else x.double()


def _spread(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    return sigma.to(wide).to(x.device).view(-1, *[1] * (x.ndim - 1))


def _corrupt_ve(x0: torch.Tensor, noise: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return x0 + s * noise


def _corrupt_flow(x0: torch.Tensor, noise: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return (1 - s) * x0 + s * noise


CORRUPT = {"epsilon": _corrupt_ve, "v": _corrupt_ve, "x0": _corrupt_ve, "flow": _corrupt_flow}
TARGETS = {
    "epsilon": lambda x0, noise, s: noise,
    "v": lambda x0, noise, s: (noise - s * x0) / (1 + s * s).sqrt(),  # Salimans & Ho 2022, v = alpha eps - sigma_vp x0
    "flow": lambda x0, noise, s: noise - x0,
    "x0": lambda x0, noise, s: x0,
}
DENOISED = {
    "epsilon": lambda x, out, s: x - s * out,
    "v": lambda x, out, s: x / (1 + s * s) - out * s / (1 + s * s).sqrt(),
    "flow": lambda x, out, s: x - s * out,
    "x0": lambda x, out, s: out,
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Noise schedule and prediction type of one model. `kind` is epsilon, v, x0 or flow."""

    kind: str
    levels: NoiseLevels
    config: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)

    def of_step(self, step: int) -> Objective:
        """The one that this step (from 0) draws from; of a model with one network always itself."""
        return self

    def of_shape(self, shape: Sequence[int]) -> Objective:
        """The one that latents (B, C, [T,] h, w) draw from; for most models always itself."""
        if not isinstance(self.levels, SizedLevels):
            return self
        return dataclasses.replace(self, levels=self.levels.of_shape(shape))

    def expert_of(self, step: int) -> str:
        """Which of several networks the step trains; empty for a model with one."""
        return ""

    def draw_sigma(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """(n,) float64 noise levels within [min_timestep, max_timestep) of 1000."""
        return self.levels(self.draw_share(n, rng))

    def draw_share(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """(n,) float64 shares of the way from clean to noise, of which `levels` makes noise levels."""
        how = self.config.timesteps
        if how == "auto":
            how = "logit_normal" if self.kind == "flow" else "uniform"
        if how == "uniform":
            u = torch.rand(n, generator=rng, dtype=torch.float64)
        else:
            u = torch.sigmoid(
                torch.randn(n, generator=rng, dtype=torch.float64) * self.config.logit_std + self.config.logit_mean
            )
        u = u.pow(2.0**-self.config.timestep_bias) if self.config.timestep_bias else u
        low, high = self.config.min_timestep / TIMESTEPS, self.config.max_timestep / TIMESTEPS
        return low + (high - low) * u

    def corrupt(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x_t, float32, of x0's shape."""
        return CORRUPT[self.kind](widest(x0), widest(noise), _spread(sigma, x0)).float()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the network should answer, float32, of x0's shape."""
        return TARGETS[self.kind](widest(x0), widest(noise), _spread(sigma, x0)).float()

    def denoised(self, x_t: torch.Tensor, answer: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The clean latents that the network's `answer` for x_t at sigma (B,) means, float32: x0 where the answer is the target."""
        return DENOISED[self.kind](widest(x_t), widest(answer), _spread(sigma, x_t)).float()

    def draw_noise(self, x0: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Gaussian noise of x0's shape; with noise_offset a number for each channel on top, with multires coarser noise, at standard deviation 1."""
        config, noise = self.config, randn_like(x0, rng)
        if config.multires_iterations:
            noise = multires(noise, config.multires_iterations, config.multires_discount, rng)
        if config.noise_offset:
            noise = noise + config.noise_offset * randn_like(x0.new_empty(*x0.shape[:2], *[1] * (x0.ndim - 2)), rng)
        return noise

    def perturbed(self, noise: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """The noise that goes into the network's input; the target keeps to `noise` (Ning et al. 2023, arXiv 2301.11706, algorithm 1)."""
        return (
            noise + self.config.input_perturbation * randn_like(noise, rng) if self.config.input_perturbation else noise
        )

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """(B,) loss weights. One everywhere, or by the signal-to-noise ratio 1 / sigma^2 of eps and v models; one for all others."""
        if self.kind not in ("epsilon", "v"):
            return torch.ones_like(sigma)
        return WEIGHTS[self.config.weighting](sigma.square().reciprocal(), self.kind == "v", self.config)

    def huber_delta(self, sigma: torch.Tensor, delta: float, schedule: str) -> torch.Tensor:
        """(B,) thresholds of the Huber losses: the same everywhere, or falling from 1 (clean) to `delta` (pure noise), as kohya schedules them."""
        if schedule == "constant":
            return torch.full_like(sigma, delta)
        share = self.levels.share(sigma) if isinstance(self.levels, DiscreteLevels) else sigma.clamp(max=1.0)
        if schedule == "exponential":
            return torch.exp(share * math.log(delta))
        spread = sigma / (1 - sigma).clamp_min(1e-6) if self.kind == "flow" else sigma
        return (1 - delta) / (1 + spread).square() + delta


@dataclasses.dataclass(frozen=True)
class AlternatingObjective(Objective):
    """Of a model whose noise levels two networks share: `every` steps draw from those of one, as many from those of the other, in turn.

    `members`: the networks' names and objectives, in the order of their turns.
    """

    members: tuple[tuple[str, Objective], ...] = dataclasses.field(kw_only=True)
    every: int = dataclasses.field(kw_only=True)

    @staticmethod
    def of(members: tuple[tuple[str, Objective], ...], every: int) -> AlternatingObjective:
        first = members[0][1]
        return AlternatingObjective(first.kind, first.levels, first.config, members=members, every=every)

    def of_step(self, step: int) -> Objective:
        return self._member(step)[1]

    def expert_of(self, step: int) -> str:
        return self._member(step)[0]

    def _member(self, step: int) -> tuple[str, Objective]:
        return self.members[step // self.every % len(self.members)]

    def corrupt(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.members[0][1].corrupt(x0, noise, sigma)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.members[0][1].target(x0, noise, sigma)


@dataclasses.dataclass(frozen=True)
class SharedObjective(Objective):
    """`whole` in one of several processes: each draws for all of them and takes its share, so that together they draw what one would for the whole batch."""

    whole: Objective = dataclasses.field(kw_only=True)
    processes: Processes = dataclasses.field(kw_only=True)

    @staticmethod
    def of(objective: Objective, processes: Processes) -> Objective:
        """The objective itself where a process is alone."""
        if processes.size == 1:
            return objective
        return SharedObjective(objective.kind, objective.levels, objective.config, whole=objective, processes=processes)

    def draw_share(self, n: int, rng: torch.Generator) -> torch.Tensor:
        return self.whole.draw_share(n * self.processes.size, rng)[self.processes.share(n)]

    def draw_noise(self, x0: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return self.whole.draw_noise(self._for_all(x0), rng)[self.processes.share(len(x0))]

    def perturbed(self, noise: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return self.whole.perturbed(self._for_all(noise), rng)[self.processes.share(len(noise))]

    def corrupt(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.whole.corrupt(x0, noise, sigma)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.whole.target(x0, noise, sigma)

    def denoised(self, x_t: torch.Tensor, answer: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.whole.denoised(x_t, answer, sigma)

    def _for_all(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, ...) once for each process: (B * size, ...)."""
        return x.repeat(self.processes.size, *[1] * (x.ndim - 1))


def _min_snr(snr: torch.Tensor, v: bool, config: ObjectiveConfig) -> torch.Tensor:
    return snr.clamp(max=config.min_snr_gamma) / (snr + 1 if v else snr)


def _debiased(snr: torch.Tensor, v: bool, config: ObjectiveConfig) -> torch.Tensor:
    snr = snr.clamp(max=1000.0)  # as kohya
    return 1 / (snr + 1) if v else snr.rsqrt()


def _p2(snr: torch.Tensor, v: bool, config: ObjectiveConfig) -> torch.Tensor:
    return (1 + snr).pow(-config.p2_gamma)


# min-SNR: Hang et al. 2023, arXiv 2303.09556; debiased estimation: Yu et al. 2023, arXiv 2310.08442; P2: Choi et al.
# 2022, arXiv 2204.00227, k = 1.
WEIGHTS = {"none": lambda snr, v, config: torch.ones_like(snr), "min_snr": _min_snr, "debiased": _debiased, "p2": _p2}


def multires(noise: torch.Tensor, iterations: int, discount: float, rng: torch.Generator) -> torch.Tensor:
    """Pyramid noise (Whitaker 2023): noise of ever coarser grids, enlarged and added with weight discount^i, scaled back to standard deviation 1."""
    flat = noise.flatten(0, 1) if noise.ndim == 5 else noise  # frames of a video are drawn one by one
    height, width = flat.shape[-2:]
    total = flat
    for i in range(1, iterations + 1):
        ratio = float(torch.rand(1, generator=rng)) * 2 + 2
        size = max(1, int(height / ratio**i)), max(1, int(width / ratio**i))
        coarse = randn_like(flat.new_empty(*flat.shape[:-2], *size), rng)
        total = total + F.interpolate(coarse, (height, width), mode="bilinear") * discount**i
        if 1 in size:
            break
    return (total / total.std()).view(noise.shape)
