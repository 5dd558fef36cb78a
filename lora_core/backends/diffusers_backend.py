"""Headless training on a model of the Stable Diffusion family (SD1.x, SD2.x, SDXL) in diffusers layout: unet, vae, text_encoder(s), tokenizer(s), scheduler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from PIL import Image
from torch import nn

from ..adapters import AdapterSet, attach
from ..config import ObjectiveConfig
from ..data.batches import Batch
from ..data.buckets import Fit
from ..errors import LoomError
from ..objectives import DiscreteLevels, Objective, discrete_sigmas, rescale_zero_terminal_snr
from ..tokens import TokenTable
from .base import SampleJob, weights_fingerprint
from .clip_text import ClipText, Text

DTYPES = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = {"epsilon": "epsilon", "v_prediction": "v"}


class DiffusersBackend:
    """Lends a UNet with its CLIP text encoders. Everything is read from `folder`; nothing is ever downloaded."""

    def __init__(self, folder: Path, precision: str = "auto", device: str = ""):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if not (folder / part).is_dir()]
        if missing:
            raise LoomError(f"base: {folder} has no folder {', '.join(missing)}; give a Stable Diffusion model in diffusers layout, or toy.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = DTYPES[precision]
        local = {"local_files_only": True}
        self.unet = self._place(UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=self.dtype, **local))
        self.vae = self._place(AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, **local))
        self.text, self.text_device = ClipText(folder, self.device), self.device
        self.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", **local)
        self.latent_step_px = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._abar = self.scheduler.alphas_cumprod.double()
        self._table = discrete_sigmas(self._abar)  # sigma of each timestep, as sampling and training see it
        self._texts: dict[str, Text] = {}
        self._trained = AdapterSet({})

    @property
    def family(self) -> str:
        """sd1, sd2, sd2-v or sdxl, by the text encoders, the width of the text and the prediction type."""
        if self.text.two:
            return "sdxl"
        if self.unet.config.cross_attention_dim != 1024:
            return "sd1"
        return "sd2-v" if self.scheduler.config.prediction_type == "v_prediction" else "sd2"

    def _place(self, module: Any) -> Any:
        return module.to(self.device).eval().requires_grad_(False)

    def layers(self) -> Mapping[str, nn.Module]:
        return {path: m for path, m in self.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}

    def text_layers(self) -> Mapping[str, nn.Module]:
        return self.text.layers()

    def token_tables(self) -> Mapping[str, TokenTable]:
        return self.text.tables()

    @staticmethod
    @contextlib.contextmanager
    def weight(layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        yield layer.weight.detach().float(), None if layer.bias is None else layer.bias.detach().float()

    def file_name(self, path: str) -> str:
        return self.text.file_name(path) if path.split(".", 1)[0] in self.text.encoders else "lora_unet_" + path.replace(".", "_")

    def fingerprint(self) -> str:
        return weights_fingerprint(self.unet)

    def objective(self, config: ObjectiveConfig) -> Objective:
        kind = KINDS.get(self.scheduler.config.prediction_type)
        if kind is None:
            raise LoomError(f"base: prediction type {self.scheduler.config.prediction_type!r} cannot be trained; allowed are {', '.join(KINDS)}.")
        abar = rescale_zero_terminal_snr(self._abar) if config.zero_terminal_snr else self._abar
        self._table = discrete_sigmas(abar)
        return Objective(kind, DiscreteLevels(self._table), config)

    @torch.no_grad()
    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.permute(0, 3, 1, 2).to(self.device) * 2 - 1
        return self.vae.encode(x).latent_dist.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        for done, caption in enumerate(captions):
            progress(done, len(captions))
            self._texts.setdefault(caption, self.text.encode([caption], self._trained.tokens))

    def text_fingerprint(self) -> str:
        return " ".join(weights_fingerprint(e.model) for e in self.text.encoders.values())

    def forget_texts(self) -> None:
        self._texts.clear()

    def _encoded(self, texts: Sequence[str]) -> Text:
        """One batch of texts: under training, encoded with gradients; else each encoded once."""
        if self._trained.trains_text:
            return self.text.encode(texts, self._trained.tokens)
        self.encode_texts([t for t in dict.fromkeys(texts) if t not in self._texts], lambda n, of: None)
        return Text.joined([self._texts[t] for t in texts])

    @contextlib.contextmanager
    def training(self, layers: Mapping[str, nn.Module], adapters: AdapterSet, checkpointing: bool, largest: tuple[int, ...] = ()) -> Iterator[None]:
        before, self._trained = self.unet.is_gradient_checkpointing, adapters
        if adapters.changes_text:
            self.forget_texts()
        with attach(layers, adapters):
            try:
                if checkpointing:
                    self.unet.enable_gradient_checkpointing(self._checkpoint)
                    self.unet.train()  # diffusers checkpoints only in training mode; the UNet has neither dropout nor batch norm
                yield
            finally:
                self.unet.eval()
                if checkpointing and not before:
                    self.unet.disable_gradient_checkpointing()
                if adapters.changes_text:
                    self.forget_texts()
                self._trained = AdapterSet({})

    @staticmethod
    def _checkpoint(module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self._network(x_t, sigma, self._encoded(batch.captions), batch.fits)

    def _network(self, x_t: torch.Tensor, sigma: torch.Tensor, text: Text, fits: Sequence[Fit]) -> torch.Tensor:
        sigma = sigma.to(x_t.device, torch.float64)
        timestep = (sigma.log()[:, None] - self._table.to(x_t.device).log()).abs().argmin(1)
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
        text, size = self._encoded([job.prompt, config.negative]), (job.width_px, job.height_px)
        fits = [Fit(size, size, (0, 0), size)] * 2
        kind = KINDS[self.scheduler.config.prediction_type]
        for here, there in zip(sigmas, sigmas[1:], strict=False):
            out = self._network(x.repeat(2, 1, 1, 1), torch.full((2,), here), text, fits)
            denoised = x - here * out if kind == "epsilon" else x / (1 + here**2) - out * here / (1 + here**2) ** 0.5
            guided = denoised[1:] + config.cfg * (denoised[:1] - denoised[1:])
            x = x + (x - guided) / here * (there - here)
        pixels = self.vae.decode(x / self.vae.config.scaling_factor).sample
        array = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(a) for a in array]

    def find_non_finite(self) -> str | None:
        return next((name for name, p in self.unet.named_parameters() if not torch.isfinite(p).all()), None)
