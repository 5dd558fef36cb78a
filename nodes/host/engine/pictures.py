"""Pictures through the host's VAE: to latents in the model's units, and back."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from PIL import Image
from torch import nn

from ....lora_core.adapters.attach import override
from ....lora_core.backends.base import UNKNOWN_ENCODER, whole_fingerprint
from ....lora_core.messages.blame import blamed
from ....lora_core.messages.errors import LoomError
from ....lora_core.pictures.previews import as_picture


class HostPictures:
    """A VAE for the model of `patcher`. Raises LoomError for one whose latents the model cannot read."""

    def __init__(self, patcher: Any, vae: Any):
        self._patcher, self._model, self._vae = patcher, patcher.model, vae
        channels, expected = getattr(vae, "latent_channels", self.channels), self.channels
        if channels != expected:
            raise LoomError("vae.channels", field="vae", channels=channels, wanted=expected)

    @property
    def channels(self) -> int:
        """Of the latents the model reads."""
        return self._patcher.get_model_object("latent_format").latent_channels

    @property
    def step_px(self) -> int:
        """Pixels along each side of one latent pixel."""
        ratio = getattr(self._vae, "downscale_ratio", 8)
        return ratio if isinstance(ratio, int) else int(ratio[-1])

    def clip_lengths_near(self, frames: int) -> tuple[int, int] | None:
        """By how the VAE counts frames up and down; None where its latents have no time, or every picture is its own."""
        if self._model.latent_format.latent_dimensions != 3 or getattr(self._vae, "not_video", False):
            return None
        down, up = self._over_time("downscale_ratio"), self._over_time("upscale_ratio")
        if down is None or up is None:
            return None
        above = frames
        while up(down(above)) != above:
            above += 1
        below = frames
        while below > 0 and up(down(below)) != below:
            below -= 1
        return below, above

    def latent_frames(self, frames: int) -> int:
        """How many a clip has in latents; 1 where they have no time."""
        down = self._over_time("downscale_ratio")
        return 1 if down is None else max(1, down(frames))

    def _over_time(self, name: str) -> Callable[[int], int] | None:
        """How the VAE counts frames one way; None where it has a number for pictures alone."""
        ratio = getattr(self._vae, name, None)
        return ratio[0] if isinstance(ratio, tuple | list) and callable(ratio[0]) else None

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1 or frames, H, W, 3) float32 in [0, 1] -> latents (1, C, [T,] h, w) in the model's units. Raises LoomError."""
        with blamed("vae.failed", "vae"), torch.inference_mode():
            latent = self._model.process_latent_in(self._vae.encode(pixels))
            expected = self.channels
            if latent.shape[1] != expected:
                raise LoomError("vae.channels_made", field="vae", channels=latent.shape[1], wanted=expected)
            if self._model.latent_format.latent_dimensions == 3 and latent.ndim == 4:
                latent = latent.unsqueeze(2)
        return latent.clone()

    def encode_shown(self, pixels: torch.Tensor) -> torch.Tensor:
        """A control picture (1, H, W, 3) float32 in [0, 1] -> latents as the host's VAE gives them, which is how its conditionings hold them."""
        with blamed("vae.failed", "vae"), torch.inference_mode():
            latent = self._vae.encode(pixels)
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
            expected = self.channels
            if samples.shape[1] != expected:
                raise LoomError("dataset.latent_channels", field="dataset", channels=samples.shape[1], wanted=expected)
            return self._model.process_latent_in(samples).clone()

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents as the host's sampler gives them -> pictures, one for each frame. Inside inference mode."""
        with blamed("vae.failed", "vae"):
            pixels = self._vae.decode(latents)  # (B, [T,] H, W, 3) in [0, 1]
        return [as_picture(frame) for frame in pixels.reshape(-1, *pixels.shape[-3:])]

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
