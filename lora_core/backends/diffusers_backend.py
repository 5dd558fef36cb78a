"""Headless training on a model of the Stable Diffusion family (SD1.x, SD2.x, SDXL) in diffusers layout: unet, vae, text_encoder(s), tokenizer(s), scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..adapters.tokens import TokenTable
from ..config import ObjectiveConfig
from ..data.batches import Batch
from ..data.buckets import Fit
from ..data.lengths import TextLength
from ..messages.errors import LoomError
from ..objectives import DiscreteLevels, Objective, discrete_sigmas, rescale_zero_terminal_snr
from .base import SampleJob, weights_checksum
from .clip_text import ClipText, Text, vocabulary
from .headless import LOCAL, Headless, nearest_timestep
from .layout import require_parts, stored_dtype, variant_of

KINDS = {"epsilon": "epsilon", "v_prediction": "v"}


class DiffusersBackend(Headless):
    """Lends a UNet with its CLIP text encoders. Everything is read from `folder`; nothing is ever downloaded.

    `pipe`: the same parts read already, from a single file. `name(family, path)`: what files call a layer of the UNet.
    """

    name: Callable[[str, str], str] = staticmethod(lambda family, path: "lora_unet_" + path.replace(".", "_"))

    def __init__(self, folder: Path, precision: str = "auto", device: str = "", pipe: Any = None):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        if pipe is None:
            require_parts(folder, ("unet", "vae", "text_encoder", "tokenizer", "scheduler"), "layout.stable_diffusion")
            super().__init__(precision, device, stored_dtype(folder / "unet"))
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=self.dtype, **variant_of(folder / "unet"), **LOCAL)
            vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, **variant_of(folder / "vae"), **LOCAL)
            texts: tuple[list[Any], ...] = ClipText.parts_of(folder)
            self.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", **LOCAL)
        else:
            super().__init__(precision, device, stored_dtype(folder))
            unet, vae = pipe.unet.to(self.dtype), pipe.vae.float()
            parts = sorted(pipe.components.items())
            texts = tuple([part for name, part in parts if name.startswith(kind)] for kind in ("text_encoder", "tokenizer"))
            self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.network = self.unet = self.place_network(unet)
        self.vae = self.idle(vae)
        self.text = ClipText([self.idle(model) for model in texts[0]], texts[1], self.device)
        self.latent_step_px = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._abar = self.scheduler.alphas_cumprod.double()
        self._table = discrete_sigmas(self._abar)  # sigma of each timestep, as sampling and training see it

    def to_device(self, device: str) -> None:
        super().to_device(device)
        self.text.device = self.device

    @property
    def family(self) -> str:
        """sd1, sd2, sd2-v or sdxl, by the text encoders, the width of the text and the prediction type."""
        if self.text.two:
            return "sdxl"
        if self.unet.config.cross_attention_dim != 1024:
            return "sd1"
        return "sd2-v" if self.scheduler.config.prediction_type == "v_prediction" else "sd2"

    def text_layers(self) -> Mapping[str, nn.Module]:
        return self.text.layers()

    def token_tables(self) -> Mapping[str, TokenTable]:
        return self.text.tables()

    def file_name(self, path: str) -> str:
        return self.text.file_name(path) if path.split(".", 1)[0] in self.text.encoders else self.name(self.family, path)

    def objective(self, config: ObjectiveConfig) -> Objective:
        kind = KINDS.get(self.scheduler.config.prediction_type)
        if kind is None:
            raise LoomError(
                "base.prediction_type", field="base", type=repr(self.scheduler.config.prediction_type), allowed=KINDS
            )
        abar = rescale_zero_terminal_snr(self._abar) if config.zero_terminal_snr else self._abar
        self._table = discrete_sigmas(abar)
        return Objective(kind, DiscreteLevels(self._table), config)

    @torch.no_grad()
    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.permute(0, 3, 1, 2).to(self.device) * 2 - 1
        return self.wake(self.vae).encode(x).latent_dist.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, standard deviation) of the latents, both in the model's units."""
        answer, scale = self.wake(self.vae).encode(pixels.permute(0, 3, 1, 2).to(self.device) * 2 - 1).latent_dist, self.vae.config.scaling_factor
        return answer.mean * scale, answer.std * scale

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.vae]

    def picture_fingerprint(self) -> str:
        return f"{super().picture_fingerprint()} {self.vae.config.scaling_factor}"

    def text_length(self, caption: str) -> TextLength:
        return self.text.length(caption)

    def encode(self, texts: Sequence[str]) -> Text:
        return self.text.encode(texts, self._trained.tokens)

    def text_encoders(self) -> Sequence[nn.Module]:
        return [e.model for e in self.text.encoders.values()]

    def text_fingerprint(self) -> str:
        return " ".join(weights_checksum(e.model) + vocabulary(e.tokenizer) for e in self.text.encoders.values())

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self._network(x_t, sigma, self.encoded(batch.captions), batch.fits)

    def _network(self, x_t: torch.Tensor, sigma: torch.Tensor, text: Text, fits: Sequence[Fit]) -> torch.Tensor:
        sigma = sigma.to(x_t.device, torch.float64)
        timestep = nearest_timestep(self._table.to(x_t.device), sigma)
        scaled = x_t / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1).to(x_t.dtype)
        added = None
        if text.pooled is not None:  # SDXL reads (height, width, top, left, target height, target width), Podell et al. 2023, section 2.2
            sizes = [(*f.original[::-1], *f.crop[::-1], *f.bucket[::-1]) for f in fits]
            added = {"text_embeds": text.pooled.to(self.dtype), "time_ids": torch.tensor(sizes, device=x_t.device, dtype=self.dtype)}
        return self.unet(scaled.to(self.dtype), timestep, text.hidden.to(self.dtype), added_cond_kwargs=added).sample.float()

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        """Euler with classifier-free guidance on the same sigmas and noise as the host's `euler` and `simple`, so pictures agree."""
        config, step = job.config, self.latent_step_px
        shape = (1, self.unet.config.in_channels, job.height_px // step, job.width_px // step)
        table = self._table
        picks = [len(table) - 1 - int(n * len(table) / config.steps) for n in range(config.steps)]
        sigmas = [*(float(table[i]) for i in picks), 0.0]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
        x = (noise * (1 + sigmas[0] ** 2) ** 0.5).to(self.device)
        text, size = self.encoded([job.prompt, config.negative]), (job.width_px, job.height_px)
        fits = [Fit(size, size, (0, 0), size)] * 2
        kind = KINDS[self.scheduler.config.prediction_type]
        for here, there in zip(sigmas, sigmas[1:], strict=False):
            out = self._network(x.repeat(2, 1, 1, 1), torch.full((2,), here), text, fits)
            denoised = x - here * out if kind == "epsilon" else x / (1 + here**2) - out * here / (1 + here**2) ** 0.5
            guided = denoised[1:] + config.cfg * (denoised[:1] - denoised[1:])
            x = x + (x - guided) / here * (there - here)
        pixels = self.wake(self.vae).decode(x / self.vae.config.scaling_factor).sample
        if self.lent:
            self.rest()
        array = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(a) for a in array]
