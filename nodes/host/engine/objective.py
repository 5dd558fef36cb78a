"""Noise schedule and target read off the host's own `model_sampling`, for every model it can load.

`calculate_denoised(sigma, out, x)` is affine in `out`: denoised = A + B * out. So the answer the network should give is (x0 - A) / B,
computed in float64 because the division cancels at small sigma.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import comfy.model_sampling as ms
import torch

from ....lora_core.adapters.attach import override
from ....lora_core.config import ObjectiveConfig
from ....lora_core.messages.errors import LoomError
from ....lora_core.objectives import DiscreteLevels, FlowLevels, NoiseLevels, Objective, widest

_UNKNOWN = "model.sampling_type"
# Classes of the host's samplings, the most special ones first, what their networks answer, and where they are not to be
# trained the code of the sentence that says why. V_PREDICTION_DDPM is CogVideoX's: it is given pictures with noise as
# they are, on a scale that only VOID_DDIM keeps to.
_PREDICTIONS = (
    ("IMG_TO_IMG", "", _UNKNOWN),
    ("IMG_TO_IMG_FLOW", "", _UNKNOWN),
    ("V_PREDICTION_DDPM", "", "model.void_sampling"),
    ("X0", "x0", ""),
    ("EDM", "v", ""),
    ("V_PREDICTION", "v", ""),
    ("COSMOS_RFLOW", "flow", ""),
    ("CONST", "flow", ""),
    ("EPS", "epsilon", ""),
)


def kind_of(sampling: Any) -> str:
    """epsilon, v, flow or x0. Raises LoomError for models that do not denoise."""
    kind, refusal = _row(sampling)
    if refusal:
        raise LoomError(refusal, field="model", type=type(sampling).__mro__[1].__name__)
    return kind


def _row(sampling: Any) -> tuple[str, str]:
    """What the table says of it: (what the network answers, the code of a refusal)."""
    for name, kind, refusal in _PREDICTIONS:
        base = getattr(ms, name, None)
        if base is not None and isinstance(sampling, base):
            return kind, refusal
    return "", _UNKNOWN


@dataclasses.dataclass(frozen=True)
class HostLevels:
    """u -> sigma through the model's own `percent_to_sigma` (continuous models; carries the model's time shift)."""

    sampling: Any

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        shares = [min(1.0, max(1e-9, 1.0 - v)) for v in u.tolist()]  # of the way from noise to picture
        return torch.tensor([float(self.sampling.percent_to_sigma(share)) for share in shares], dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class RatioLevels:
    """Levels of Cosmos: sigma = t / (1 - t) of the `levels` t, between `low` and `high`."""

    levels: FlowLevels
    low: float
    high: float

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        t = self.levels(u)
        return (t / (1 - t)).clamp(self.low, self.high)


@dataclasses.dataclass(frozen=True)
class LtxLevels(FlowLevels):
    """As LTXVScheduler gives them: the time shift grows with the number of latent pixels, which are tokens. `shift` is that of a film of usual size."""

    def of_shape(self, shape: Sequence[int]) -> FlowLevels:
        tokens = math.prod(shape[2:])
        return FlowLevels(math.exp(0.95 + (2.05 - 0.95) * (tokens - 1024) / (4096 - 1024)))


@dataclasses.dataclass(frozen=True)
class IdeogramLevels:
    """As Ideogram4Scheduler gives them at mu 0: the logits of levels are 1.75 times those of u, more for larger pictures."""

    mean: float = 0.0
    step_px: int = 16

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.mean + 1.75 * torch.logit(u, 1e-9))

    def of_shape(self, shape: Sequence[int]) -> IdeogramLevels:
        area = math.prod(shape[-2:]) * self.step_px**2
        return dataclasses.replace(self, mean=0.5 * math.log(area / 512**2))


def sized_levels(patcher: Any) -> NoiseLevels | None:
    """Of a MODEL whose kind is sampled by a schedule that depends on the size, without a node of another one before it; None for every other one."""
    if "model_sampling" in getattr(patcher, "object_patches", {}):
        return None
    name = type(patcher.model).__name__
    if name in ("LTXV", "LTXAV"):
        return LtxLevels(math.exp(patcher.model.model_sampling.shift))
    return IdeogramLevels() if name == "Ideogram4" else None


# Time shift that the host's own workflows give a model by a node, in place of the one it is loaded with.
_IN_WORKFLOWS = {"Chroma": 1.0, "ChromaRadiance": 1.0, "Kandinsky5": 5.0}
_OVIS = 3.0


def usual_shift(patcher: Any) -> float:
    """For a MODEL without such a node before it, whose kind is sampled through one; 0 for every other one."""
    model = patcher.model
    if "model_sampling" in getattr(patcher, "object_patches", {}):
        return 0.0
    if model.model_config.unet_config.get("yak_mlp"):  # Ovis, of Flux's class
        return _OVIS
    return _IN_WORKFLOWS.get(type(model).__name__, 0.0)


@dataclasses.dataclass(frozen=True)
class HostObjective(Objective):
    """An Objective whose corruption and target come from `sampling` instead of a formula."""

    sampling: Any = None

    def corrupt(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self._corrupt(x0, noise, _beside(sigma, x0)).float()

    def _corrupt(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        own_noise = widest(noise).clone()  # the host adds to it in place
        return self.sampling.noise_scaling(sigma, own_noise, widest(x0), False)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma = _beside(sigma, x0)
        x_t = self._corrupt(x0, noise, sigma)
        zero = self.sampling.calculate_denoised(sigma, torch.zeros_like(x_t), x_t)
        slope = self.sampling.calculate_denoised(sigma, torch.ones_like(x_t), x_t) - zero
        return ((widest(x0) - zero) / slope).float()

    def denoised(self, x_t: torch.Tensor, answer: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma = _beside(sigma, x_t)
        return self.sampling.calculate_denoised(sigma, widest(answer), widest(x_t)).float()


def raw_output(sampling: Any) -> AbstractContextManager[None]:
    """For one call of apply_model: hands back what the network said instead of the denoised latents."""
    return override(sampling, "calculate_denoised", lambda sigma, out, x: out)


def _beside(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Noise levels on x's device, as wide as it allows."""
    return sigma.to(widest(x[:0]).dtype).to(x.device)


def time_shift(sampling: Any, config: ObjectiveConfig, usual: float = 0.0) -> float | None:
    """The time shift that noise levels are drawn with: the job's, else `usual`, else the model's own; None where it has none."""
    if config.shift or usual:
        return config.shift or usual
    shift = getattr(sampling, "shift", None)
    if shift is None:
        return None
    flux = getattr(ms, "ModelSamplingFlux", None)  # whose shift is an exponent
    return math.exp(shift) if flux is not None and isinstance(sampling, flux) else float(shift)


def has_table(sampling: Any) -> bool:
    """Whether noise levels are a table of the SD family's kind, on which a network may predict the noise or v."""
    others = tuple(getattr(ms, name) for name in ("ModelSamplingDiscreteEDM", "StableCascadeSampling"))
    return isinstance(sampling, ms.ModelSamplingDiscrete) and not isinstance(sampling, others)


def sampling_for(prediction: str, sampling: Any) -> Any:
    """A sampling with the same table of noise levels for a network that predicts `prediction` (epsilon or v), as the node ModelSamplingDiscrete makes it."""
    answer = {"epsilon": ms.EPS, "v": ms.V_PREDICTION}[prediction]
    made = type("ModelSamplingAsked", (ms.ModelSamplingDiscrete, answer), {})()
    made.set_sigmas(sampling.sigmas)
    made.sigma_data, made.zsnr = sampling.sigma_data, getattr(sampling, "zsnr", False)
    return made


def host_objective(
    sampling: Any, config: ObjectiveConfig, usual: float = 0.0, sized: NoiseLevels | None = None
) -> HostObjective:
    """The objective of a model with this `model_sampling`.

    `usual`, `sized`: the time shift, or levels by size, where the job says none; without them the sampling's own.
    """
    kind = kind_of(sampling)
    if config.zero_terminal_snr and not getattr(sampling, "zsnr", False):
        raise LoomError("objective.zero_terminal_snr.host", field="objective.zero_terminal_snr")
    levels = sized if sized is not None and not config.shift else _levels(sampling, kind, config, usual)
    return HostObjective(kind, levels, config, sampling)


def _levels(sampling: Any, kind: str, config: ObjectiveConfig, usual: float) -> NoiseLevels:
    if isinstance(sampling, ms.ModelSamplingDiscrete) and not isinstance(sampling, ms.ModelSamplingDiscreteEDM):
        return DiscreteLevels(sampling.sigmas.double().cpu().clone())
    shift = config.shift or usual
    if kind != "flow" or not shift:
        return HostLevels(sampling)
    ratio = getattr(ms, "COSMOS_RFLOW", None)
    if ratio is not None and isinstance(sampling, ratio):
        return RatioLevels(FlowLevels(shift), float(sampling.sigma_min), float(sampling.sigma_max))
    return FlowLevels(shift)
