"""Pictures through the host's VAE: to latents in the model's units, and back."""

from __future__ import annotations

import uuid
from typing import Any

import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from PIL import Image
from torch import nn

from ....lora_core.adapters.base import override
from ....lora_core.backends.base import UNKNOWN_ENCODER, whole_fingerprint
from ....lora_core.messages.blame import blamed
from ....lora_core.messages.errors import LoomError


class HostPictures:
    """A VAE for the model of `patcher`. Raises LoomError for one whose latents the model cannot read."""

    def __init__(self, patcher: Any, vae: Any):
        self._patcher, self._model, self._vae = patcher, patcher.model, vae
        channels, wanted = getattr(vae, "latent_channels", self._channels), self._channels
        if channels != wanted:
            raise LoomError("vae.channels", field="vae", channels=channels, wanted=wanted)

    @property
    def _channels(self) -> int:
        """Of the latents the model reads."""
        return self._patcher.get_model_object("latent_format").latent_channels

    @property
    def step_px(self) -> int:
        """Pixels along each side of one latent pixel."""
        ratio = getattr(self._vae, "downscale_ratio", 8)
        return ratio if isinstance(ratio, int) else int(ratio[-1])

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, H, W, 3) float32 in [0, 1] -> latents (1, C, [T,] h, w) in the model's units. Raises LoomError."""
        with blamed("vae.failed", "vae"), torch.inference_mode():
            latent = self._model.process_latent_in(self._vae.encode(pixels))
            wanted = self._channels
            if latent.shape[1] != wanted:
                raise LoomError("vae.channels_made", field="vae", channels=latent.shape[1], wanted=wanted)
            if self._model.latent_format.latent_dimensions == 3 and latent.ndim == 4:
                latent = latent.unsqueeze(2)
        return latent.clone()

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, standard deviation) of the latents, both in the model's units. Raises LoomError for a VAE that gives one answer only."""
        form = getattr(getattr(self._vae, "first_stage_model", None), "regularization", None)
        if not isinstance(form, DiagonalGaussianRegularizer):
            raise LoomError("data.latents.no_spread", field="data.latents")
        forward, answers = form.forward, []

        def noted(answer: torch.Tensor) -> Any:
            answers.append(answer)  # (1, 2 C, h, w): means, then logarithms of variances
            return forward(answer)

        with override(form, "forward", noted):
            mean = self.encode(pixels)
        if len(answers) != 1:
            raise LoomError("data.latents.tiled", field="data.latents")
        with torch.inference_mode():
            log_variance = answers[0].float().chunk(2, 1)[1].clamp(-30, 20)
            deviation = (0.5 * log_variance).exp().to(mean.device)
            raw = self._model.process_latent_out(mean.float())
            into = self._model.process_latent_in
            spread = into(raw + deviation.view_as(raw)) - into(raw)
        return mean, spread.clone()

    def encode_wired(self, samples: torch.Tensor) -> torch.Tensor:
        """Latents as they travel between nodes -> the model's units. Raises LoomError."""
        with torch.inference_mode():
            wanted = self._channels
            if samples.shape[1] != wanted:
                raise LoomError("dataset.latent_channels", field="dataset", channels=samples.shape[1], wanted=wanted)
            return self._model.process_latent_in(samples).clone()

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents as the host's sampler gives them -> pictures, one for each frame. Inside inference mode."""
        with blamed("vae.failed", "vae"):
            pixels = self._vae.decode(latents)  # (B, [T,] H, W, 3) in [0, 1]
        frames = (pixels.reshape(-1, *pixels.shape[-3:]).clamp(0, 1) * 255).round().byte().cpu().numpy()
        return [Image.fromarray(frame) for frame in frames]

    def fingerprint(self) -> str:
        """Identifies everything `encode` depends on."""
        network = getattr(self._vae, "first_stage_model", None)
        if not isinstance(network, nn.Module):
            # Another pack's VAE, which we cannot tell from others: pictures are encoded anew each time.
            return f"{UNKNOWN_ENCODER} {uuid.uuid4()}"
        form = self._patcher.get_model_object("latent_format")
        made_by = (type(network).__name__, getattr(self._vae, "vae_dtype", None), type(form).__name__)
        scale = tuple(getattr(form, name, None) for name in ("scale_factor", "shift_factor"))
        return f"{whole_fingerprint(network)} {made_by} {scale}"
