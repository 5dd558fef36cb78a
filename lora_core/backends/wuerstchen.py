"""Würstchen v2 headless, in diffusers layout: the prior, and the decoder that reads text and a picture's features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..config import ObjectiveConfig
from ..data.batches import Batch
from ..messages.errors import LoomError
from ..objectives import Objective
from .base import SampleJob
from .base_model import BaseModel
from .clip_text import Text
from .effnet import EfficientNet, features
from .headless import Headless
from .layout import require_parts
from .two_stage import TwoStage, companion_folder, require_plain_schedule
from .whole import read_configured, read_whole, require_whole


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


class _Wuerstchen(TwoStage):
    """Continuous noise levels; both stages read the text, each by its own encoder."""

    latent_step_px = 32
    levels = CosineLevels()

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        return self.stage("epsilon", config)

    def objective(self, config: ObjectiveConfig) -> Objective:
        require_plain_schedule(config)
        return Objective(self.base_model(config).predicts.prediction, self.levels, config)

    def encode(self, texts: Sequence[str]) -> Text:
        tokenizer = self.parts["tokenizer"]
        length = tokenizer.model_max_length
        tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(self.device)
        return Text(self.parts["text_encoder"](tokens.input_ids.to(self.device), attention_mask=mask).last_hidden_state)

    def _scaled(self, x_t: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the network's input, its times) for our x_t = x0 + sigma noise."""
        sigma = sigma.to(x_t.device, torch.float64)
        x = x_t / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1).to(x_t)
        return x.to(self.dtype), self.levels.time(sigma).to(self.dtype)


class WuerstchenPrior(_Wuerstchen):
    """Latents are the picture encoder's features, scaled as the published training does: (features + 1) / 42."""

    prefix, family = "prior", "wuerstchen-prior"

    def __init__(self, folder: Path, companion: str = "", precision: str = "auto", device: str = ""):
        super().__init__(precision, device)
        self.parts = _text_parts(self, folder)
        self.network = _prior_network(self, folder)
        self.channels = self.network.config.c_in
        self.effnet = self.place(EfficientNet.read(folder))
        self._decoder = None
        if companion:
            self._decoder = WuerstchenDecoder(Path(companion), str(folder), precision, device, "companion")

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.effnet]

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return (features(self.effnet, pixels, self.device) + 1) / 42

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        x, time = self._scaled(x_t, sigma)
        return self.network(x, time, self.encoded(batch.captions).hidden.to(self.dtype)).float()

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        if self._decoder is None:
            raise LoomError("companion.wuerstchen_decoder", field="companion")
        return _draw({**self.parts, "prior": self.network}, self._decoder.pipeline_parts(), job)


class WuerstchenDecoder(_Wuerstchen):
    """Latents of the VQGAN; the network reads the text and the picture encoder's features."""

    prefix, family = "decoder", "wuerstchen-decoder"

    def __init__(
        self, folder: Path, companion: str = "", precision: str = "auto", device: str = "", field: str = "base"
    ):
        """`field`: the setting that names `folder`; `companion` is what the other one names."""
        from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
        from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt

        super().__init__(precision, device)
        require_parts(folder, ("decoder", "vqgan"), "layout.wuerstchen_decoder", field)
        self.parts = _text_parts(self, folder, field)
        self.network = self.place(read_whole(WuerstchenDiffNeXt, folder / "decoder", self.dtype, field))
        self.vqgan = self.place(read_whole(PaellaVQModel, folder / "vqgan", torch.float32, field))
        self._prior_folder = companion_folder(companion, "companion.wuerstchen_prior")
        self._prior_field = "companion" if field == "base" else "base"
        self.effnet = self.place(EfficientNet.read(self._prior_folder, self._prior_field))
        if (self._prior_folder / "prior").is_dir():  # read when samples are drawn
            require_whole(_prior_class(), self._prior_folder / "prior", self._prior_field)
        self.channels = self.vqgan.config.latent_channels

    def pipeline_parts(self) -> dict[str, Any]:
        """Everything of this stage, as its pipeline names it."""
        return {**self.parts, "decoder": self.network, "vqgan": self.vqgan}

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.vqgan, self.effnet]

    def picture_fingerprint(self) -> str:
        return f"{super().picture_fingerprint()} {self.vqgan.config.scale_factor}"

    @torch.no_grad()
    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vqgan.encode(pixels.permute(0, 3, 1, 2).to(self.device)).latents / self.vqgan.config.scale_factor

    def encode_beside(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 16, h, w): what the network is told about the picture."""
        return features(self.effnet, pixels, self.device)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.beside is not None
        x, time = self._scaled(x_t, sigma)
        hidden = self.encoded(batch.captions).hidden.to(self.dtype)
        return self.network(x, time, effnet=batch.beside.to(self.device, self.dtype), clip=hidden).float()

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        prior = _prior_network(self, self._prior_folder, self._prior_field)
        texts = _text_parts(self, self._prior_folder, self._prior_field)
        return _draw({**texts, "prior": prior}, self.pipeline_parts(), job)


def _text_parts(backend: Headless, folder: Path, field: str = "base") -> dict[str, Any]:
    """What every stage's folder, which `field` names, has beside its networks, as the pipelines name it."""
    from diffusers.schedulers import DDPMWuerstchenScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    require_parts(folder, ("text_encoder", "tokenizer", "scheduler"), "layout.wuerstchen", field)
    return {
        "text_encoder": backend.place(read_whole(CLIPTextModel, folder / "text_encoder", backend.dtype, field)),
        "tokenizer": read_configured(CLIPTokenizer, folder / "tokenizer", field),
        "scheduler": read_configured(DDPMWuerstchenScheduler, folder / "scheduler", field),
    }


def _prior_class() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior as Network

    return Network


def _prior_network(backend: Headless, folder: Path, field: str = "base") -> Any:
    require_parts(folder, ("prior",), "layout.wuerstchen_prior", field)
    return backend.place(read_whole(_prior_class(), folder / "prior", backend.dtype, field))


def _draw(prior: Mapping[str, Any], decoder: Mapping[str, Any], job: SampleJob) -> list[Image.Image]:
    from diffusers import WuerstchenDecoderPipeline, WuerstchenPriorPipeline

    first, second = WuerstchenPriorPipeline(**prior), WuerstchenDecoderPipeline(**decoder)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    config, rng = job.config, job.rng()  # both stages draw from it in turn
    embeddings = first(
        job.prompt,
        job.height_px,
        job.width_px,
        config.steps,
        guidance_scale=config.cfg,
        negative_prompt=config.negative or None,
        generator=rng,
    ).image_embeddings
    return second(embeddings, job.prompt, config.steps, guidance_scale=0.0, generator=rng, output_type="pil").images
