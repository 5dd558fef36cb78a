"""Kandinsky 2.2 headless, in diffusers layout: the prior, and the decoder that reads CLIP embeddings of pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
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
from ..transfer import sent
from .base import SampleJob
from .base_model import BaseModel
from .clip_text import Text
from .headless import Headless, nearest_timestep
from .layout import require_parts
from .two_stage import TwoStage, companion_folder, require_plain_schedule
from .whole import read_configured, read_whole

_PRIOR_PARTS = ("prior", "image_encoder", "image_processor", "text_encoder", "tokenizer", "scheduler")


class _Kandinsky(TwoStage):
    """Discrete noise levels; images as CLIP sees them, by the prior's own image encoder."""

    scheduler: Any
    latent_step_px = 8
    prediction = "epsilon"

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        return self.stage(self.prediction, config)

    def objective(self, config: ObjectiveConfig) -> Objective:
        require_plain_schedule(config)
        return Objective(self.base_model(config).predicts.prediction, DiscreteLevels(self._table), config)

    @torch.no_grad()
    def _embedding(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, D) CLIP embedding of a picture (1, H, W, 3) in [0, 1]."""
        image = Image.fromarray((pixels[0].numpy() * 255).round().astype("uint8"))
        processed = self.parts["image_processor"](image, return_tensors="pt").pixel_values
        return self.parts["image_encoder"](processed.to(self.device, torch.float32)).image_embeds

    @functools.cached_property
    def _table(self) -> torch.Tensor:
        """sigma of each timestep; above zero, so its logarithm is finite."""
        return discrete_sigmas(self.scheduler.alphas_cumprod).clamp_min(1e-12)

    def _scaled(self, x_t: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the network's input, its timesteps) for our x_t = x0 + sigma noise."""
        sigma = sigma.to(x_t.device, torch.float64)
        timestep = nearest_timestep(sent(self._table, x_t.device), sigma)
        x = x_t / (1 + sigma.square()).sqrt().view(-1, *[1] * (x_t.ndim - 1)).to(x_t)
        return x.to(self.dtype), timestep


class KandinskyPrior(_Kandinsky):
    """Latents are normalised CLIP image embeddings, (1, D, 1, 1); the network answers with the clean embedding."""

    prefix, prediction, family = "prior", "x0", "kandinsky2-2-prior"

    def __init__(self, folder: Path, companion: str = "", precision: str = "auto", device: str = ""):
        super().__init__(precision, device)
        self.parts = _prior_parts(self, folder)
        self.network, self.scheduler = self.parts["prior"], self.parts["scheduler"]
        self.channels = self.network.config.embedding_dim
        self._decoder = _decoder_parts(self, Path(companion), "companion") if companion else None

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.parts["image_encoder"]]

    def picture_fingerprint(self) -> str:
        return f"{super().picture_fingerprint()} {self.network.clip_mean.tolist()} {self.network.clip_std.tolist()}"

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = self.network.clip_mean.float(), self.network.clip_std.float()
        return ((self._embedding(pixels) - mean) / std)[:, :, None, None]

    def encode(self, texts: Sequence[str]) -> Text:
        tokenizer = self.parts["tokenizer"]
        length = tokenizer.model_max_length
        tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        out = self.parts["text_encoder"](tokens.input_ids.to(self.device))
        return Text(out.last_hidden_state, out.text_embeds, tokens.attention_mask.bool().to(self.device))

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        (x, timestep), text = self._scaled(x_t, sigma), self.encoded(batch.captions)
        out = self.network(
            x.flatten(1),
            timestep,
            proj_embedding=text.pooled,
            encoder_hidden_states=text.hidden,
            attention_mask=text.mask,
        )
        return out.predicted_image_embedding.float()[:, :, None, None]

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        if self._decoder is None:
            raise LoomError("companion.kandinsky_decoder", field="companion")
        return _draw(self.parts, self._decoder, job)


class KandinskyDecoder(_Kandinsky):
    """Latents of the MoVQ; the network reads the CLIP embedding of the picture itself and no text."""

    prefix, family = "unet", "kandinsky2-2-decoder"

    def __init__(self, folder: Path, companion: str = "", precision: str = "auto", device: str = ""):
        super().__init__(precision, device)
        require_parts(folder, ("unet", "movq", "scheduler"), "layout.kandinsky_decoder")
        prior = companion_folder(companion, "companion.kandinsky_prior")
        self.parts = _prior_parts(self, prior, "companion")
        self._decoder = _decoder_parts(self, folder)
        self.network, self.scheduler = self._decoder["unet"], self._decoder["scheduler"]
        self.channels = self._decoder["movq"].config.latent_channels
        self.latent_step_px = 2 ** (len(self._decoder["movq"].config.block_out_channels) - 1)

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self._decoder["movq"], self.parts["image_encoder"]]

    @torch.no_grad()
    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._decoder["movq"].encode(pixels.permute(0, 3, 1, 2).to(self.device) * 2 - 1).latents

    def encode_beside(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, D): what the network is told about the picture."""
        return self._embedding(pixels)

    # This stage reads no text.

    def text_length(self, caption: str) -> TextLength:
        return TextLength(0)

    def text_fingerprint(self) -> str:
        return ""

    def encode(self, texts: Sequence[str]) -> Text:
        return Text(torch.zeros(len(texts), 1, 1))

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.beside is not None
        x, timestep = self._scaled(x_t, sigma)
        beside = {"image_embeds": batch.beside.to(self.device, self.dtype)}
        out = self.network(x, timestep, None, added_cond_kwargs=beside).sample
        return out[:, : x.shape[1]].float()  # the other half is the variance, which is not trained

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        return _draw(self.parts, self._decoder, job)


def _prior_parts(backend: Headless, folder: Path, field: str = "base") -> dict[str, Any]:
    """Everything of a prior's folder, which `field` names, as its pipeline names it."""
    from diffusers import PriorTransformer, UnCLIPScheduler
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    require_parts(folder, _PRIOR_PARTS, "layout.kandinsky_prior", field)

    def read(kind: Any, part: str, dtype: torch.dtype) -> nn.Module:
        return backend.place(read_whole(kind, folder / part, dtype, field))

    def configured(kind: Any, part: str) -> Any:
        return read_configured(kind, folder / part, field)

    return {
        "prior": read(PriorTransformer, "prior", backend.dtype),
        "image_encoder": read(CLIPVisionModelWithProjection, "image_encoder", torch.float32),
        "text_encoder": read(CLIPTextModelWithProjection, "text_encoder", backend.dtype),
        "tokenizer": configured(CLIPTokenizer, "tokenizer"),
        "scheduler": configured(UnCLIPScheduler, "scheduler"),
        "image_processor": configured(CLIPImageProcessor, "image_processor"),
    }


def _decoder_parts(backend: Headless, folder: Path, field: str = "base") -> dict[str, Any]:
    """Everything of a decoder's folder, which `field` names, as its pipeline names it."""
    from diffusers import DDPMScheduler, UNet2DConditionModel, VQModel

    require_parts(folder, ("unet", "movq", "scheduler"), "layout.kandinsky_decoder", field)
    unet = read_whole(UNet2DConditionModel, folder / "unet", backend.dtype, field)
    movq = read_whole(VQModel, folder / "movq", torch.float32, field)
    scheduler = read_configured(DDPMScheduler, folder / "scheduler", field)
    return {"unet": backend.place(unet), "movq": backend.place(movq), "scheduler": scheduler}


def _draw(prior: Mapping[str, Any], decoder: Mapping[str, Any], job: SampleJob) -> list[Image.Image]:
    from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline

    first, second = KandinskyV22PriorPipeline(**prior), KandinskyV22Pipeline(**decoder)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    config = job.config
    shared: dict[str, Any] = {
        "num_inference_steps": config.steps,
        "guidance_scale": config.cfg,
        "generator": job.rng(),  # one for both stages, which draw from it in turn
    }
    embeddings = first(job.prompt, config.negative or None, **shared)
    return second(
        image_embeds=embeddings.image_embeds,
        negative_image_embeds=embeddings.negative_image_embeds,
        height=job.height_px,
        width=job.width_px,
        **shared,
    ).images
