"""Kandinsky 2.2 and Würstchen v2 headless, in diffusers layout: a prior that turns text into an image embedding, and a decoder that turns it into pixels.

Either stage can be trained; `companion` names the folder of the other one, which encodes pictures and draws samples. Sampling is diffusers' own pipelines'.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..config import ObjectiveConfig
from ..data.batches import Batch
from ..data.lengths import TextLength
from ..messages.errors import LoomError
from ..objectives import DiscreteLevels, Objective, discrete_sigmas
from .base import SampleJob, weights_checksum
from .clip_text import Text, vocabulary
from .headless import LOCAL, Headless, nearest_timestep
from .layout import require_parts


def _companion(place: str, code: str) -> Path:
    if not place:
        raise LoomError(code, field="companion")
    return Path(place)


def _generator(job: SampleJob) -> torch.Generator:
    return torch.Generator().manual_seed(job.config.seed)


class _Kandinsky(Headless):
    """Discrete noise levels; images as CLIP sees them, by the prior's own image encoder."""

    scheduler: Any
    latent_step_px = 8
    kind = "epsilon"

    def _read_prior(self, folder: Path) -> dict[str, Any]:
        """Everything of a prior's folder."""
        from diffusers import PriorTransformer, UnCLIPScheduler
        from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

        wanted = ("prior", "image_encoder", "image_processor", "text_encoder", "tokenizer", "scheduler")
        require_parts(folder, wanted, "layout.kandinsky_prior")
        return {
            "prior": self.place(PriorTransformer.from_pretrained(folder / "prior", torch_dtype=self.dtype, **LOCAL)),
            "image_encoder": self.place(CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", torch_dtype=torch.float32, **LOCAL)),
            "text_encoder": self.place(CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", torch_dtype=self.dtype, **LOCAL)),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", **LOCAL),
            "scheduler": UnCLIPScheduler.from_pretrained(folder / "scheduler", **LOCAL),
            "image_processor": CLIPImageProcessor.from_pretrained(folder / "image_processor", **LOCAL),
        }  # fmt: skip

    @torch.no_grad()
    def _embedding(self, parts: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
        """(1, D) CLIP embedding of a picture (1, H, W, 3) in [0, 1]."""
        image = Image.fromarray((pixels[0].numpy() * 255).round().astype("uint8"))
        seen = parts["image_processor"](image, return_tensors="pt").pixel_values
        return parts["image_encoder"](seen.to(self.device, torch.float32)).image_embeds

    def objective(self, config: ObjectiveConfig) -> Objective:
        if config.zero_terminal_snr:
            raise LoomError("objective.zero_terminal_snr.not_v", field="objective.zero_terminal_snr")
        return Objective(self.kind, DiscreteLevels(self._table), config)

    @functools.cached_property
    def _table(self) -> torch.Tensor:
        """sigma of each timestep; above zero, so its logarithm is finite."""
        return discrete_sigmas(self.scheduler.alphas_cumprod).clamp_min(1e-12)

    def _scaled(self, x_t: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the network's input, its timesteps) for our x_t = x0 + sigma noise."""
        sigma = sigma.to(x_t.device, torch.float64)
        timestep = nearest_timestep(self._table.to(x_t.device), sigma)
        return (x_t / (1 + sigma.square()).sqrt().view(-1, *[1] * (x_t.ndim - 1)).to(x_t)).to(self.dtype), timestep


class KandinskyPrior(_Kandinsky):
    """Latents are normalised CLIP image embeddings, (1, D, 1, 1); the network answers with the clean embedding."""

    prefix, kind, family = "prior", "x0", "kandinsky2-2-prior"

    def __init__(self, folder: Path, companion: str = "", precision: str = "auto", device: str = ""):
        super().__init__(precision, device)
        self.parts = self._read_prior(folder)
        self.network, self.scheduler = self.parts["prior"], self.parts["scheduler"]
        self._decoder = _decoder_parts(self, Path(companion)) if companion else None

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.parts["image_encoder"]]

    def picture_fingerprint(self) -> str:
        return f"{super().picture_fingerprint()} {self.network.clip_mean.tolist()} {self.network.clip_std.tolist()}"

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = self.network.clip_mean.float(), self.network.clip_std.float()
        return ((self._embedding(self.parts, pixels) - mean) / std)[:, :, None, None]

    def encode(self, texts: Sequence[str]) -> Text:
        tokens = self.parts["tokenizer"](
            list(texts), padding="max_length", max_length=self.parts["tokenizer"].model_max_length, truncation=True, return_tensors="pt"
        )
        out = self.parts["text_encoder"](tokens.input_ids.to(self.device))
        return Text(out.last_hidden_state, out.text_embeds, tokens.attention_mask.bool().to(self.device))

    def text_fingerprint(self) -> str:
        return weights_checksum(self.parts["text_encoder"]) + vocabulary(self.parts["tokenizer"])

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        (x, timestep), text = self._scaled(x_t, sigma), self.encoded(batch.captions)
        out = self.network(x.flatten(1), timestep, proj_embedding=text.pooled, encoder_hidden_states=text.hidden, attention_mask=text.mask)
        return out.predicted_image_embedding.float()[:, :, None, None]

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        if self._decoder is None:
            raise LoomError("companion.kandinsky_decoder", field="companion")
        return _draw_kandinsky(self.parts, self._decoder, job)


class KandinskyDecoder(_Kandinsky):
    """Latents of the MoVQ; the network reads the CLIP embedding of the picture itself and no text."""

    prefix, family = "unet", "kandinsky2-2-decoder"

    def __init__(self, folder: Path, companion: str = "", precision: str = "auto", device: str = ""):
        super().__init__(precision, device)
        require_parts(folder, ("unet", "movq", "scheduler"), "layout.kandinsky_decoder")
        self.parts = self._read_prior(_companion(companion, "companion.kandinsky_prior"))
        self._own = _decoder_parts(self, folder)
        self.network, self.scheduler = self._own["unet"], self._own["scheduler"]
        self.latent_step_px = 2 ** (len(self._own["movq"].config.block_out_channels) - 1)

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self._own["movq"], self.parts["image_encoder"]]

    def text_length(self, caption: str) -> TextLength:
        return TextLength(0)  # reads no text

    @torch.no_grad()
    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._own["movq"].encode(pixels.permute(0, 3, 1, 2).to(self.device) * 2 - 1).latents

    def encode_beside(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, D): what the network is told about the picture."""
        return self._embedding(self.parts, pixels)

    def encode(self, texts: Sequence[str]) -> Text:
        return Text(torch.zeros(len(texts), 1, 1))  # this stage reads no text

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.beside is not None
        x, timestep = self._scaled(x_t, sigma)
        out = self.network(x, timestep, None, added_cond_kwargs={"image_embeds": batch.beside.to(self.device, self.dtype)}).sample
        return out[:, : x.shape[1]].float()  # the other half is the variance, which is not trained

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        return _draw_kandinsky(self.parts, self._own, job)


def _decoder_parts(backend: Headless, folder: Path) -> dict[str, Any]:
    from diffusers import DDPMScheduler, UNet2DConditionModel, VQModel

    return {
        "unet": backend.place(UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=backend.dtype, **LOCAL)),
        "movq": backend.place(VQModel.from_pretrained(folder / "movq", torch_dtype=torch.float32, **LOCAL)),
        "scheduler": DDPMScheduler.from_pretrained(folder / "scheduler", **LOCAL),
    }


def _draw_kandinsky(prior: dict[str, Any], decoder: dict[str, Any], job: SampleJob) -> list[Image.Image]:
    from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline

    first, second = KandinskyV22PriorPipeline(**prior), KandinskyV22Pipeline(**decoder)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    config, rng = job.config, _generator(job)
    made = first(job.prompt, config.negative or None, num_inference_steps=config.steps, guidance_scale=config.cfg, generator=rng)
    return second(
        image_embeds=made.image_embeds, negative_image_embeds=made.negative_image_embeds, height=job.height_px, width=job.width_px,
        num_inference_steps=config.steps, guidance_scale=config.cfg, generator=rng,
    ).images  # fmt: skip


# ---- Würstchen v2 ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CosineLevels:
    """Continuous cosine schedule of DDPMWuerstchenScheduler: abar(t) = cos^2((t + s) / (1 + s) pi / 2) / cos^2(s / (1 + s) pi / 2), s = 0.008."""

    s: float = 0.008

    def abar(self, t: torch.Tensor) -> torch.Tensor:
        first = math.cos(self.s / (1 + self.s) * math.pi / 2) ** 2
        return (torch.cos((t + self.s) / (1 + self.s) * math.pi / 2).square() / first).clamp(0.0001, 0.9999)

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        abar = self.abar(u.double())
        return ((1 - abar) / abar).sqrt()

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        """t of a level: the inverse of the above."""
        first = math.cos(self.s / (1 + self.s) * math.pi / 2) ** 2
        root = (first / (1 + sigma.double().square())).sqrt().clamp(max=1.0)
        return torch.acos(root) * 2 / math.pi * (1 + self.s) - self.s


class EfficientNet(nn.Module):
    """Würstchen's picture encoder: EfficientNetV2-S features and a 1x1 map to 16 channels, (B, 3, H, W) -> (B, 16, H / 32, W / 32)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        try:
            from torchvision.models import efficientnet_v2_s
        except ImportError as error:
            raise LoomError("base.needs_torchvision", field="base") from error
        self.backbone = efficientnet_v2_s().features
        self.mapper = nn.Sequential(nn.Conv2d(1280, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mapper(self.backbone(x))

    @staticmethod
    def read(folder: Path) -> EfficientNet:
        """From effnet/model.safetensors, the `effnet_state_dict` of the published model_v2_stage_b."""
        from safetensors.torch import load_file

        file = folder / "effnet" / "model.safetensors"
        if not file.is_file():
            raise LoomError("base.no_effnet", field="base", folder=folder)
        encoder = EfficientNet()
        encoder.load_state_dict(load_file(file))
        return encoder


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Wuerstchen(Headless):
    latent_step_px = 32
    parts: dict[str, Any]
    levels = CosineLevels()

    def _common(self, folder: Path) -> dict[str, Any]:
        from diffusers.schedulers import DDPMWuerstchenScheduler
        from transformers import CLIPTextModel, CLIPTokenizer

        require_parts(folder, ("text_encoder", "tokenizer", "scheduler"), "layout.wuerstchen")
        return {
            "text_encoder": self.place(CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=self.dtype, **LOCAL)),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", **LOCAL),
            "scheduler": DDPMWuerstchenScheduler.from_pretrained(folder / "scheduler", **LOCAL),
        }

    def objective(self, config: ObjectiveConfig) -> Objective:
        if config.zero_terminal_snr:
            raise LoomError("objective.zero_terminal_snr.not_v", field="objective.zero_terminal_snr")
        return Objective("epsilon", self.levels, config)

    def encode(self, texts: Sequence[str]) -> Text:
        tokenizer = self.parts["tokenizer"]
        tokens = tokenizer(list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(self.device)
        return Text(self.parts["text_encoder"](tokens.input_ids.to(self.device), attention_mask=mask).last_hidden_state)

    def text_fingerprint(self) -> str:
        return weights_checksum(self.parts["text_encoder"]) + vocabulary(self.parts["tokenizer"])

    @torch.no_grad()
    def _features(self, effnet: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        return effnet(((pixels.permute(0, 3, 1, 2) - mean) / std).to(self.device))

    def _scaled(self, x_t: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = sigma.to(x_t.device, torch.float64)
        return (x_t / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1).to(x_t)).to(self.dtype), self.levels.time(sigma).to(self.dtype)


class WuerstchenPrior(_Wuerstchen):
    """Latents are the picture encoder's features, scaled as the published training does: (features + 1) / 42."""

    prefix, family = "prior", "wuerstchen-prior"

    def __init__(self, folder: Path, companion: str = "", precision: str = "auto", device: str = ""):
        from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior as Network

        super().__init__(precision, device)
        require_parts(folder, ("prior",), "layout.wuerstchen_prior")
        self.parts = self._common(folder)
        self.network = self.place(Network.from_pretrained(folder / "prior", torch_dtype=self.dtype, **LOCAL))
        self.effnet = self.place(EfficientNet.read(folder))
        self._decoder = WuerstchenDecoder(Path(companion), str(folder), precision, device) if companion else None

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.effnet]

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self._features(self.effnet, pixels) + 1) / 42

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        x, time = self._scaled(x_t, sigma)
        return self.network(x, time, self.encoded(batch.captions).hidden.to(self.dtype)).float()

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        if self._decoder is None:
            raise LoomError("companion.wuerstchen_decoder", field="companion")
        return _draw_wuerstchen({**self.parts, "prior": self.network}, self._decoder, job)


class WuerstchenDecoder(_Wuerstchen):
    """Latents of the VQGAN; the network reads the text and the picture encoder's features."""

    prefix, family = "decoder", "wuerstchen-decoder"
    latent_step_px = 32

    def __init__(self, folder: Path, companion: str = "", precision: str = "auto", device: str = ""):
        from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
        from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt

        super().__init__(precision, device)
        require_parts(folder, ("decoder", "vqgan"), "layout.wuerstchen_decoder")
        self.parts = self._common(folder)
        self.network = self.place(WuerstchenDiffNeXt.from_pretrained(folder / "decoder", torch_dtype=self.dtype, **LOCAL))
        self.vqgan = self.place(PaellaVQModel.from_pretrained(folder / "vqgan", torch_dtype=torch.float32, **LOCAL))
        self._prior_folder = _companion(companion, "companion.wuerstchen_prior")
        self.effnet = self.place(EfficientNet.read(self._prior_folder))

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.vqgan, self.effnet]

    def picture_fingerprint(self) -> str:
        return f"{super().picture_fingerprint()} {self.vqgan.config.scale_factor}"

    @torch.no_grad()
    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vqgan.encode(pixels.permute(0, 3, 1, 2).to(self.device)).latents / self.vqgan.config.scale_factor

    def encode_beside(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 16, h, w): what the network is told about the picture."""
        return self._features(self.effnet, pixels)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.beside is not None
        x, time = self._scaled(x_t, sigma)
        hidden = self.encoded(batch.captions).hidden.to(self.dtype)
        return self.network(x, time, effnet=batch.beside.to(self.device, self.dtype), clip=hidden).float()

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior as Network

        prior = self.place(Network.from_pretrained(self._prior_folder / "prior", torch_dtype=self.dtype, **LOCAL))
        return _draw_wuerstchen({**self._common(self._prior_folder), "prior": prior}, self, job)


def _draw_wuerstchen(prior: dict[str, Any], decoder: WuerstchenDecoder, job: SampleJob) -> list[Image.Image]:
    from diffusers import WuerstchenDecoderPipeline, WuerstchenPriorPipeline

    first = WuerstchenPriorPipeline(**prior)
    second = WuerstchenDecoderPipeline(**decoder.parts, decoder=decoder.network, vqgan=decoder.vqgan)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    config, rng = job.config, _generator(job)
    made = first(job.prompt, job.height_px, job.width_px, config.steps, guidance_scale=config.cfg, negative_prompt=config.negative or None, generator=rng)
    return second(made.image_embeddings, job.prompt, config.steps, guidance_scale=0.0, generator=rng, output_type="pil").images


KINDS = {
    "KandinskyV22PriorPipeline": KandinskyPrior, "KandinskyV22Pipeline": KandinskyDecoder, "WuerstchenPriorPipeline": WuerstchenPrior,
    "WuerstchenDecoderPipeline": WuerstchenDecoder,
}  # fmt: skip
