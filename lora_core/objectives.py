"""What is drawn, how latents are corrupted, what the network should answer.

Conventions (Karras et al. 2022, arXiv 2206.00364): for eps and v models x_t = x0 + sigma * noise with sigma = sqrt((1 - abar) / abar);
for flow models x_t = (1 - sigma) * x0 + sigma * noise with sigma in [0, 1]. Scaling the network's input belongs to the backend.
Everything here is float64 until the result is handed over, since (x0 - A) / B cancels badly at small sigma in float32.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch

from .config import ObjectiveConfig
from .errors import LoomError

TIMESTEPS = 1000


class NoiseLevels(Protocol):
    """Maps u in [0, 1) (share of the way from clean to noise) to the objective's sigma, both float64 of shape (B,)."""

    def __call__(self, u: torch.Tensor) -> torch.Tensor: ...


@dataclasses.dataclass(frozen=True)
class DiscreteLevels:
    """A table of T sigmas (eps and v models): u picks entry floor(u * T)."""

    sigmas: torch.Tensor  # (T,) float64, rising

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        index = (u * len(self.sigmas)).long().clamp(0, len(self.sigmas) - 1)
        return self.sigmas[index]


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


CORRUPT = {"epsilon": _corrupt_ve, "v": _corrupt_ve, "flow": _corrupt_flow}
TARGETS = {
    "epsilon": lambda x0, noise, s: noise,
    "v": lambda x0, noise, s: (noise - s * x0) / (1 + s * s).sqrt(),  # Salimans & Ho 2022, v = alpha eps - sigma_vp x0
    "flow": lambda x0, noise, s: noise - x0,
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Noise schedule and prediction type of one model. `kind` is epsilon, v or flow."""

    kind: str
    levels: NoiseLevels
    config: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)

    def draw_sigma(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """(n,) float64 noise levels within [min_timestep, max_timestep) of 1000."""
        how = self.config.timesteps
        if how == "auto":
            how = "logit_normal" if self.kind == "flow" else "uniform"
        if how == "uniform":
            u = torch.rand(n, generator=rng, dtype=torch.float64)
        else:
            u = torch.sigmoid(torch.randn(n, generator=rng, dtype=torch.float64) * self.config.logit_std + self.config.logit_mean)
        low, high = self.config.min_timestep / TIMESTEPS, self.config.max_timestep / TIMESTEPS
        return self.levels(low + (high - low) * u)

    def corrupt(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x_t, float32, of x0's shape."""
        return CORRUPT[self.kind](widest(x0), widest(noise), _spread(sigma, x0)).float()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the network should answer, float32, of x0's shape."""
        return TARGETS[self.kind](widest(x0), widest(noise), _spread(sigma, x0)).float()

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """(B,) loss weights: one everywhere, the loss stays in the network's own target."""
        return torch.ones_like(sigma)


def check_prediction(config: ObjectiveConfig, kind: str) -> None:
    """Refuses a prediction type that contradicts the model."""
    if config.prediction not in ("auto", kind):
        raise LoomError(f"objective.prediction: this model predicts {kind}, the job says {config.prediction}; set it to auto.")
    if config.zero_terminal_snr and kind == "flow":
        raise LoomError("objective.zero_terminal_snr: a flow model's last step is pure noise already; turn it off.")
    if config.zero_terminal_snr and kind == "epsilon":
        raise LoomError("objective.zero_terminal_snr: an eps model cannot learn from pure noise; it is for v models, turn it off.")
