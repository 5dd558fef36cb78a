"""Headless training on a model of the Stable Diffusion family (SD1.x, SD2.x, SDXL) in diffusers layout: unet, vae, text_encoder(s), tokenizer(s), scheduler."""

from __future__ import annotations

import math
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
from ..messages.message import Message
from ..objectives import DiscreteLevels, Objective, discrete_sigmas, rescale_zero_terminal_snr
from ..transfer import sent
from .base import SampleJob, Samplers, weights_checksum
from .base_model import BaseModel, predicts, require_plain_network
from .clip_text import ClipText, Text, vocabulary
from .headless import nearest_timestep
from .layout import LOCAL, class_in, require_parts, stored_dtype
from .marks import require_discrete_scheduler, scheduler_witness
from .sharded import Sharded
from .vae import other_vae
from .whole import read_whole

_STATISTICS = ("latents_mean", "latents_std")  # of a VAE, where its latents are scaled channel by channel
LCM_SIGN = "time_cond_proj_dim"  # of a UNet's config: it reads the guidance it was distilled at


_SIZES = 6  # height, width, top, left, target height, target width
_CLASSES = {  # what a folder of Stable Diffusion has, by the class that each part's config names
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}


def euler(x: torch.Tensor, denoised: torch.Tensor, sigma: float, lower: float) -> torch.Tensor:
    """One step of Euler's method from `sigma` to `lower`."""
    return x + (x - denoised) / sigma * (lower - sigma)


class Ancestral:
    """Euler's method to a lower level than asked for, and fresh noise up to it: ancestral sampling (Song et al. 2021, arXiv 2011.13456, appendix F)."""

    def __init__(self, rng: torch.Generator) -> None:
        self._rng = rng

    def __call__(self, x: torch.Tensor, denoised: torch.Tensor, sigma: float, lower: float) -> torch.Tensor:
        up = min(lower, lower * math.sqrt(sigma**2 - lower**2) / sigma)
        x = euler(x, denoised, sigma, math.sqrt(lower**2 - up**2))
        return x + up * torch.randn(x.shape, generator=self._rng).to(x)


class Multistep:
    """Steps of DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), algorithm 2, in x = x0 + sigma * noise; the last one, to 0, is of first order."""

    def __init__(self) -> None:
        self._before: tuple[torch.Tensor, float] | None = None  # what was denoised one step ago, and that step's length

    def __call__(self, x: torch.Tensor, denoised: torch.Tensor, sigma: float, lower: float) -> torch.Tensor:
        if lower == 0:
            return denoised
        length, target = math.log(sigma / lower), denoised  # of the step, in the logarithm of the signal-to-noise ratio
        if self._before is not None:
            earlier, earlier_length = self._before
            target = denoised + (denoised - earlier) * length / (2 * earlier_length)
        self._before = denoised, length
        return lower / sigma * x - math.expm1(-length) * target


Solver = Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]  # (x, denoised, sigma, lower) -> x at lower
_SOLVERS: Mapping[str, Callable[[torch.Generator], Solver]] = {
    "euler": lambda rng: euler,
    "ddim": lambda rng: (
        euler
    ),  # in x = x0 + sigma * noise the same steps, as Song et al. 2020 (arXiv 2010.02502) show in equation 14
    "euler_ancestral": Ancestral,
    "dpmpp_2m": lambda rng: Multistep(),  # DPM-Solver++ of second order
}


class DiffusersBackend(Sharded):
    """Lends a UNet with its CLIP text encoders. Everything is read from `folder`; nothing is ever downloaded.

    `pipe`: the same parts read already, from a single file, with the scheduler of the folder that describes it.
    """

    def __init__(self, folder: Path, precision: str = "auto", device: str = "", pipe: Any = None):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        if pipe is None:
            folders = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
            _require_own_kind(folder)
            require_parts(folder, folders, "layout.stable_diffusion")
            schedule = DDPMScheduler.load_config(folder / "scheduler", **LOCAL)
            require_discrete_scheduler(folder, schedule)
            super().__init__(precision, device, stored_dtype(folder / "unet"))
            unet = read_whole(UNet2DConditionModel, folder / "unet", self.dtype)
            vae = read_whole(AutoencoderKL, folder / "vae", torch.float32)
            texts: tuple[list[Any], ...] = ClipText.parts_of(folder)
        else:
            schedule = dict(pipe.scheduler.config)
            super().__init__(precision, device, stored_dtype(folder))
            unet, vae = pipe.unet.to(self.dtype), pipe.vae.float()
            parts = sorted(pipe.components.items())
            encoders = [part for name, part in parts if name.startswith("text_encoder")]
            texts = encoders, [part for name, part in parts if name.startswith("tokenizer")]
        require_plain_network(unet.config, vae.config.latent_channels)
        _require_base(folder, unet.config, texts[0])
        self.network = self.unet = self.place_network(unet)
        self.vae = self.idle(vae)
        self.text = ClipText([self.idle(model) for model in texts[0]], texts[1], self.device)
        self.latent_step_px = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._layer_name: Callable[[str, str], str] = _unet_name
        # Stretched by us where it has to be: diffusers' own stretching ends in no signal at all, at an infinite sigma.
        self.scheduler = DDPMScheduler.from_config({**schedule, "rescale_betas_zero_snr": False})
        self._told_by_scheduler = scheduler_witness(schedule)
        self._abar = self.scheduler.alphas_cumprod.double()
        self._prediction, zero_snr = self._told_by_scheduler.prediction, self._told_by_scheduler.zero_snr
        self._table = self._levels(bool(zero_snr))  # sigma of each timestep, as sampling and training see it
        self._table_sent = self._table, self._table

    def use_vae(self, place: Path) -> None:
        vae = other_vae(place, self.vae)
        self._idle.remove(self.vae)
        self.vae = self.idle(vae)

    @property
    def clip_skip(self) -> int | None:
        """From which layer captions are read, from the end; None for SDXL, which always reads the same ones."""
        return None if self.text.two else self.text.skip

    def skip_layers(self, skip: int) -> None:
        """From now on captions are read from the `skip`th layer from the end. Raises LoomError where the text encoder has fewer."""
        self.text.skip_layers(skip)
        self.forget_texts()

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
        return "sd2-v" if self._prediction == "v" else "sd2"

    @property
    def side_px(self) -> int:
        side = self.unet.config.sample_size
        return side * self.latent_step_px if isinstance(side, int) else super().side_px

    def name_layers(self, name: Callable[[str, str], str]) -> None:
        """From now on a layer of the UNet is called `name(family, path)` in files."""
        self._layer_name = name

    def text_layers(self) -> Mapping[str, nn.Module]:
        return self.text.layers()

    def token_tables(self) -> Mapping[str, TokenTable]:
        return self.text.tables()

    def file_name(self, path: str) -> str:
        if path.split(".", 1)[0] in self.text.encoders:
            return self.text.file_name(path)
        return self._layer_name(self.family, path)

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        distilled = self.marks.distilled
        if distilled is None and self.unet.config.get(LCM_SIGN):
            distilled = Message.of("base.sign.setting", setting=LCM_SIGN)
        return BaseModel(
            self.family,
            predicts([*self.marks.witnesses, self._told_by_scheduler], config),
            self.vae.config.latent_channels,
            self.stored_type,
            distilled=distilled,
            clip_skip=self.clip_skip,
            anime=self.marks.anime if self.family == "sd1" else None,
        )

    def objective(self, config: ObjectiveConfig) -> Objective:
        decided = self.base_model(config).predicts
        self._prediction, self._table = decided.prediction, self._levels(decided.zero_snr)
        return Objective(decided.prediction, DiscreteLevels(self._table), config)

    def _levels(self, zero_snr: bool) -> torch.Tensor:
        """(T,) float64 sigma of each timestep."""
        return discrete_sigmas(rescale_zero_terminal_snr(self._abar) if zero_snr else self._abar)

    @torch.no_grad()
    def _encoded(self, pixels: torch.Tensor) -> Any:
        """What the VAE says of a picture, a distribution, in its own units."""
        x = pixels.permute(0, 3, 1, 2).to(self.device) * 2 - 1
        return self.wake(self.vae).encode(x).latent_dist

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, scale = self._latent_units()
        return (self._encoded(pixels).mean - mean) * scale

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, standard deviation) of the latents, both in the model's units."""
        answer, (mean, scale) = self._encoded(pixels), self._latent_units()
        return (answer.mean - mean) * scale, answer.std * scale

    def _latent_units(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """(what is taken off the VAE's latents, what they are then multiplied with) to have the network's."""
        config = self.vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return 0.0, config.scaling_factor
        mean, std = (torch.tensor(config[name], device=self.device).view(1, -1, 1, 1) for name in _STATISTICS)
        return mean, config.scaling_factor / std

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.vae]

    def picture_fingerprint(self) -> str:
        statistics = [self.vae.config.get(name) for name in _STATISTICS]
        more = f" {statistics}" if any(statistics) else ""
        return f"{super().picture_fingerprint()} {self.vae.config.scaling_factor}{more}"

    def text_length(self, caption: str) -> TextLength:
        return self.text.length(caption)

    def encode(self, texts: Sequence[str]) -> Text:
        return self.text.encode(texts, self._trained.tokens)

    def text_encoders(self) -> Sequence[nn.Module]:
        return [e.model for e in self.text.encoders.values()]

    def text_fingerprint(self) -> str:
        skip = [f"clip skip {self.text.skip}"] if self.text.skip > 1 else []
        return " ".join(
            [*(weights_checksum(e.model) + vocabulary(e.tokenizer) for e in self.text.encoders.values()), *skip]
        )

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self._network(x_t, sigma, self.encoded(batch.captions), batch.fits)

    def _network(self, x_t: torch.Tensor, sigma: torch.Tensor, text: Text, fits: Sequence[Fit]) -> torch.Tensor:
        sigma = sigma.to(x_t.device, torch.float64)
        timestep = nearest_timestep(self._table_on(x_t.device), sigma)
        scaled = x_t / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1).to(x_t.dtype)
        added = None
        if text.pooled is not None:
            # SDXL reads (height, width, top, left, target height, target width), Podell et al. 2023, section 2.2
            sizes = [(*f.original[::-1], *f.crop[::-1], *f.bucket[::-1]) for f in fits]
            times = sent(torch.tensor(sizes, dtype=self.dtype), x_t.device)
            added = {"text_embeds": text.pooled.to(self.dtype), "time_ids": times}
        hidden = text.hidden.to(self.dtype)
        more = {"timestep_cond": self._embedded_guidance(len(x_t)), "added_cond_kwargs": added}
        return self.unet(scaled.to(self.dtype), timestep, hidden, **more).sample.float()

    def _table_on(self, device: torch.device) -> torch.Tensor:
        """The table there, sent once."""
        table, lying = self._table_sent
        if table is not self._table or lying.device != device:
            self._table_sent = self._table, lying = self._table, sent(self._table, device)
        return lying

    def _embedded_guidance(self, count: int) -> torch.Tensor | None:
        """(count, D) for UNets that read their guidance (LCM; Luo et al. 2023, arXiv 2310.04378), at guidance 1; None for all others.

        Pipelines embed guidance - 1: sines of it, then cosines.
        """
        width = self.unet.config.get(LCM_SIGN)
        if not width:
            return None
        row = torch.cat([torch.zeros(width // 2), torch.ones(width - width // 2)])
        return sent(row.to(self.dtype), self.device).repeat(count, 1)

    def samplers(self) -> Samplers:
        return Samplers(tuple(_SOLVERS), ("simple",))

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        """With classifier-free guidance on the same sigmas and noise as the host's `simple`, so pictures agree."""
        config, step = job.config, self.latent_step_px
        shape = (1, self.unet.config.in_channels, job.height_px // step, job.width_px // step)
        table = self._table
        picks = [len(table) - 1 - int(n * len(table) / config.steps) for n in range(config.steps)]
        sigmas = [*(float(table[i]) for i in picks), 0.0]
        rng = job.rng()
        noise = torch.randn(shape, generator=rng)
        x = (noise * (1 + sigmas[0] ** 2) ** 0.5).to(self.device)
        text, size = self.encoded([job.prompt, config.negative]), (job.width_px, job.height_px)
        fits = [Fit(size, size, (0, 0), size)] * 2
        solver = _SOLVERS[config.sampler](rng)
        for sigma, lower in zip(sigmas, sigmas[1:], strict=False):
            out = self._network(x.repeat(2, 1, 1, 1), torch.full((2,), sigma), text, fits)
            denoised = _denoised(self._prediction, x, out, sigma)
            guided = denoised[1:] + config.cfg * (denoised[:1] - denoised[1:])
            x = solver(x, guided, sigma, lower)
        mean, scale = self._latent_units()
        pixels = self.wake(self.vae).decode(x / scale + mean).sample
        if self.lent:
            self.rest()
        array = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(a) for a in array]


def _require_own_kind(folder: Path) -> None:
    """Refuses a folder whose networks are not those of Stable Diffusion, such as Kolors and DeepFloyd IF, which have a UNet too. Raises LoomError."""
    if not (folder / "text_encoder").is_dir() and (folder / "text_encoder_2").is_dir():
        raise LoomError("base.refiner", field="base", file=folder.name)
    for part, allowed in _CLASSES.items():
        kind = class_in(folder / part)
        if kind and kind not in allowed:
            raise LoomError("base.other_part", field="base", file=f"{folder.name}/{part}", kind=kind, allowed=allowed)


def _require_base(place: Path, unet: Mapping[str, Any], encoders: Sequence[Any]) -> None:
    """Refuses a UNet of SDXL's kind that reads other numbers beside the pooled text than the six sizes of a picture, as the refiner. Raises LoomError."""
    if unet.get("addition_embed_type") != "text_time":
        return
    pooled, width = encoders[-1].config.projection_dim, unet["addition_time_embed_dim"]
    if unet["projection_class_embeddings_input_dim"] != pooled + _SIZES * width:
        raise LoomError("base.refiner", field="base", file=place.name)


def _denoised(prediction: str, x: torch.Tensor, out: torch.Tensor, sigma: float) -> torch.Tensor:
    """The clean latents that the network's answer `out` for x = x0 + sigma noise means."""
    if prediction == "x0":
        return out
    if prediction == "epsilon":
        return x - sigma * out
    return x / (1 + sigma**2) - out * sigma / (1 + sigma**2) ** 0.5


def _unet_name(family: str, path: str) -> str:
    """As the Kohya scripts call a layer by its diffusers path."""
    return "lora_unet_" + path.replace(".", "_")
