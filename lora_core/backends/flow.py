"""Flow-matching transformers headless: Stable Diffusion 3 and 3.5, Flux.1, Z-Image, Qwen-Image, in diffusers layout.

What differs between them is one row of FLOW_FAMILIES. Texts are encoded and pictures drawn by diffusers' own pipelines.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..compat import needed
from ..config import ObjectiveConfig
from ..data.batches import Batch
from ..data.lengths import TextLength
from ..messages.blame import blamed
from ..messages.message import Message
from ..objectives import FlowLevels, Objective
from .base import TRAINING_GUIDANCE, SampleJob, Samplers, weights_checksum
from .base_model import BaseModel, Strength, Witness, predicts, require_plain_network
from .clip_text import Text, length_of, vocabulary
from .layout import LOCAL, pipeline_name, require_parts, stored_dtype
from .marks import require_flow_scheduler
from .networks import DIFFUSERS
from .pipelines import plain_name
from .sharded import Sharded
from .vae import other_vae
from .whole import class_named, read_file, read_whole


@dataclasses.dataclass(frozen=True)
class FlowFamily:
    """One family. `ask(backend, x, sigma, text)` gives the velocity; `drawing(text, negative, cfg)` what the pipeline takes beside sizes and noise."""

    name: str
    transformer: str  # diffusers' class of the network
    encode: Callable[[Any, list[str], torch.device], Text]
    ask: Callable[[FlowBackend, torch.Tensor, torch.Tensor, Text], torch.Tensor]
    drawing: Callable[[Text, Text, float], dict[str, Any]]
    reader: tuple[str, int]  # the tokenizer of the encoder the network reads, and how many tokens of it
    reads_negative: bool = True  # samples are drawn with classifier-free guidance
    takes_frames: bool = False  # the VAE reads a picture as a video of one frame, (B, C, 1, H, W)


class FlowBackend(Sharded):
    """Lends a transformer. Text encoders stay frozen and, where there is a GPU, are on it only while they encode."""

    prefix = "transformer"

    def __init__(self, folder: Path, precision: str = "auto", device: str = "", file: Path | None = None):
        """`file`: the transformer's weights, where they lie apart from the folder."""
        needed("diffusers", DIFFUSERS)
        require_parts(folder, ("vae", "tokenizer", "text_encoder", "scheduler"), "layout.flow")
        require_flow_scheduler(folder)
        super().__init__(precision, device, stored_dtype(file or folder / "transformer"))
        self.row = FLOW_FAMILIES[plain_name(pipeline_name(folder))]
        self.pipe = self._read(folder, file)
        self.pipe.set_progress_bar_config(disable=True)
        config = self.pipe.vae.config
        require_plain_network(
            self.pipe.transformer.config, config["z_dim"] if "z_dim" in config else config["latent_channels"]
        )
        self.network = self.place_network(self.pipe.transformer)
        self.vae = self.idle(self.pipe.vae)
        self.encoders = [self.idle(encoder) for encoder in self._parts_named("text_encoder")]
        unneeded = ("text_encoder", "image_encoder", "feature_extractor")
        without = {name: None for name in self.pipe.components if name.startswith(unneeded)}
        self._drawing = type(self.pipe)(**{**self.pipe.components, **without})
        self._drawing.set_progress_bar_config(disable=True)
        self.latent_step_px = self.pipe.vae_scale_factor * 2  # the network reads patches of 2 x 2

    def _read(self, folder: Path, file: Path | None) -> Any:
        """The pipeline with all its networks, each read whole. Raises LoomError that names the part that cannot be read."""
        diffusers, networks = needed("diffusers"), {}
        kind = getattr(diffusers, self.row.transformer)
        if file is None:
            networks["transformer"] = read_whole(kind, folder / "transformer", self.dtype)
        else:
            networks["transformer"] = read_file(kind, file, folder, "transformer", self.dtype)
        for place in sorted(folder.iterdir()):
            if place.name == "vae" or place.name.startswith("text_encoder"):
                part = class_named(folder, place.name)
                if part is not None:
                    dtype = torch.float32 if place.name == "vae" else self.dtype
                    networks[place.name] = read_whole(part, place, dtype)
        with blamed("base.unreadable", "base", memory="base.no_memory", file=folder.name):  # tokenizers and scheduler
            return getattr(diffusers, plain_name(pipeline_name(folder))).from_pretrained(folder, **networks, **LOCAL)

    def use_vae(self, place: Path) -> None:
        vae = other_vae(place, self.vae)
        self._idle.remove(self.vae)
        self.vae = self.idle(vae)
        for pipe in (self.pipe, self._drawing):
            pipe.register_modules(vae=self.vae)

    def _parts_named(self, prefix: str) -> list[Any]:
        """The parts of the pipeline whose names begin so, where it has them."""
        named = [part for name, part in self.pipe.components.items() if name.startswith(prefix)]
        return [part for part in named if part is not None]

    @property
    def family(self) -> str:
        return self.row.name

    @property
    def side_px(self) -> int:
        side = getattr(self.pipe, "default_sample_size", None)  # not every pipeline has one
        return side * self.pipe.vae_scale_factor if isinstance(side, int) else super().side_px

    @property
    def _embeds_guidance(self) -> bool:
        return bool(getattr(self.network.config, "guidance_embeds", False))

    @property
    def shift(self) -> float:
        """The model's own time shift: that of its scheduler, for one that depends on the size the largest, as ComfyUI has it."""
        config = self.pipe.scheduler.config
        return math.exp(config.max_shift) if config.use_dynamic_shifting else config.shift

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        vae, guidance = self.vae.config, TRAINING_GUIDANCE if self._embeds_guidance else None
        witness = Witness(Message.of("base.source.scheduler"), "flow", strength=Strength.WEIGHTS)
        distilled = self.marks.distilled
        if distilled is None and self.family == "flux1" and not self._embeds_guidance:
            distilled = Message.of("base.sign.setting", setting="guidance_embeds: false")
        return BaseModel(
            self.family,
            predicts([witness], config),
            vae["z_dim"] if "z_dim" in vae else vae["latent_channels"],
            self.stored_type,
            guidance,
            config.shift or self.shift,
            distilled=distilled,
        )

    def objective(self, config: ObjectiveConfig) -> Objective:
        self.base_model(config)  # refuses what it cannot be asked
        return Objective("flow", FlowLevels(config.shift or self.shift), config)

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def _latents(self, raw: torch.Tensor, shifted: bool = True) -> torch.Tensor:
        """What the VAE gives -> the network's units; of a spread only the scale counts."""
        config = self.vae.config
        if hasattr(config, "latents_mean") and config.latents_mean is not None:
            statistics = (config.latents_mean, config.latents_std)
            mean, std = (torch.tensor(v, device=raw.device).view(1, -1, 1, 1, 1) for v in statistics)
            return (raw - mean if shifted else raw) / std
        if shifted:
            raw = raw - (config.shift_factor or 0.0)
        return raw * config.scaling_factor

    @torch.no_grad()
    def _encoded(self, pixels: torch.Tensor) -> Any:
        x = pixels.permute(0, 3, 1, 2).to(self.device) * 2 - 1
        if self.row.takes_frames:
            x = x.unsqueeze(2)
        return self.wake(self.vae).encode(x).latent_dist

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._latents(self._encoded(pixels).mean)

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, standard deviation) of the latents, both in the model's units."""
        answer = self._encoded(pixels)
        return self._latents(answer.mean), self._latents(answer.std, shifted=False)

    def picture_encoders(self) -> Sequence[nn.Module]:
        return [self.vae]

    def picture_fingerprint(self) -> str:
        config = self.vae.config
        scale = [config.get(name) for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")]
        return f"{super().picture_fingerprint()} {scale}"

    # ---- texts -------------------------------------------------------------------------------------------------------

    def text_encoders(self) -> Sequence[nn.Module]:
        return self.encoders

    def encode(self, texts: Sequence[str]) -> Text:
        return self.row.encode(self.pipe, list(texts), self.device)

    def text_fingerprint(self) -> str:
        tokenizers = self._parts_named("tokenizer")
        return " ".join([*map(weights_checksum, self.encoders), *map(vocabulary, tokenizers)])

    def text_length(self, caption: str) -> TextLength:
        name, window = self.row.reader
        tokenizer = getattr(self.pipe, name) or self.pipe.tokenizer
        return length_of(caption, tokenizer, window)

    # ---- training and drawing ----------------------------------------------------------------------------------------

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        text = self.encoded(batch.captions).of(self.dtype)
        return self.row.ask(self, x_t.to(self.dtype), sigma.to(x_t.device, torch.float32), text).float()

    def guidance(self, count: int) -> torch.Tensor | None:
        """(count,) guidance for networks that read it."""
        if not self._embeds_guidance:
            return None
        return torch.full((count,), TRAINING_GUIDANCE, device=self.device)

    def samplers(self) -> Samplers:
        guided = self.row.reads_negative or self._embeds_guidance
        return Samplers(("euler",), ("simple",), negative=self.row.reads_negative, guided=guided)

    @torch.no_grad()
    def sample(self, job: SampleJob) -> list[Image.Image]:
        config = job.config
        text, negative = (self.encoded([words]).of(self.dtype) for words in (job.prompt, config.negative))
        self.wake(self.vae)
        try:
            return self._drawing(
                height=job.height_px,
                width=job.width_px,
                num_inference_steps=config.steps,
                generator=job.rng(),
                output_type="pil",
                **self.row.drawing(text, negative, config.cfg),
            ).images
        finally:
            if self.lent:
                self.rest()


# ---- the families ----------------------------------------------------------------------------------------------------

_QWEN_TOKENS = 1024  # what the model reads of a caption; its pipeline would draw from half of them


def _sd3_text(pipe: Any, texts: list[str], device: torch.device) -> Text:
    hidden, _, pooled, _ = pipe.encode_prompt(texts, texts, texts, device=device, do_classifier_free_guidance=False)
    return Text(hidden, pooled)


def _sd3(backend: FlowBackend, x: torch.Tensor, sigma: torch.Tensor, text: Text) -> torch.Tensor:
    words = {"encoder_hidden_states": text.hidden, "pooled_projections": text.pooled}
    return backend.network(x, timestep=sigma * 1000, **words).sample


def _sd3_drawing(text: Text, negative: Text, cfg: float) -> dict[str, Any]:
    return {
        "prompt_embeds": text.hidden,
        "pooled_prompt_embeds": text.pooled,
        "negative_prompt_embeds": negative.hidden,
        "negative_pooled_prompt_embeds": negative.pooled,
        "guidance_scale": cfg,
    }


def _flux_text(pipe: Any, texts: list[str], device: torch.device) -> Text:
    hidden, pooled, _ = pipe.encode_prompt(texts, texts, device=device)
    return Text(hidden, pooled)


def _flux(backend: FlowBackend, x: torch.Tensor, sigma: torch.Tensor, text: Text) -> torch.Tensor:
    height, width = x.shape[-2:]
    axes = (torch.arange(n, device=x.device, dtype=torch.float32) for n in (1, height // 2, width // 2))
    places = torch.cartesian_prod(*axes)  # (frame, row, column) of each patch
    out = backend.network(
        patches(x),
        timestep=sigma,
        guidance=backend.guidance(len(x)),
        pooled_projections=text.pooled,
        encoder_hidden_states=text.hidden,
        txt_ids=places.new_zeros(text.hidden.shape[1], 3),
        img_ids=places,
    ).sample
    return pixels(out, height, width)


def _flux_drawing(text: Text, negative: Text, cfg: float) -> dict[str, Any]:
    return {"prompt_embeds": text.hidden, "pooled_prompt_embeds": text.pooled, "guidance_scale": cfg}


def _z_image_text(pipe: Any, texts: list[str], device: torch.device) -> Text:
    hidden, _ = pipe.encode_prompt(texts, device=device, do_classifier_free_guidance=False)  # (length, width) of each
    masks = [torch.ones(1, len(t), dtype=torch.bool, device=t.device) for t in hidden]
    return Text.joined([Text(t[None], None, mask) for t, mask in zip(hidden, masks, strict=True)])


def _z_image(backend: FlowBackend, x: torch.Tensor, sigma: torch.Tensor, text: Text) -> torch.Tensor:
    out = backend.network(list(x.unsqueeze(2)), 1 - sigma, _lists(text), return_dict=False)[0]
    return -torch.stack(list(out)).squeeze(2)


def _z_image_drawing(text: Text, negative: Text, cfg: float) -> dict[str, Any]:
    return {"prompt_embeds": _lists(text), "negative_prompt_embeds": _lists(negative), "guidance_scale": cfg}


def _lists(text: Text) -> list[torch.Tensor]:
    """Each sample's own tokens, (length, width)."""
    assert text.mask is not None
    if text.lengths is not None:  # a GPU would have to be asked how many a mask has
        return [hidden[:length] for hidden, length in zip(text.hidden, text.lengths, strict=True)]
    return [hidden[mask] for hidden, mask in zip(text.hidden, text.mask, strict=True)]


def _qwen_text(pipe: Any, texts: list[str], device: torch.device) -> Text:
    hidden, mask = pipe.encode_prompt(texts, device=device)
    if mask is None:
        mask = torch.ones(hidden.shape[:2], device=device)
    return Text(hidden, None, mask.bool())


def _qwen(backend: FlowBackend, x: torch.Tensor, sigma: torch.Tensor, text: Text) -> torch.Tensor:
    height, width = x.shape[-2:]
    out = backend.network(
        patches(x.squeeze(2)),
        timestep=sigma,
        guidance=backend.guidance(len(x)),
        encoder_hidden_states=text.hidden,
        encoder_hidden_states_mask=text.mask,
        img_shapes=[[(1, height // 2, width // 2)]] * len(x),
    ).sample
    return pixels(out, height, width).unsqueeze(2)


def _qwen_drawing(text: Text, negative: Text, cfg: float) -> dict[str, Any]:
    return {
        "prompt_embeds": text.hidden,
        "prompt_embeds_mask": text.mask,
        "negative_prompt_embeds": negative.hidden,
        "negative_prompt_embeds_mask": negative.mask,
        "true_cfg_scale": cfg,
        "max_sequence_length": _QWEN_TOKENS,
    }


def patches(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, 4 C), as Flux and Qwen-Image read latents."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def pixels(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `patches`."""
    b, _, c = x.shape
    return x.view(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


FLOW_FAMILIES = {
    "StableDiffusion3Pipeline": FlowFamily(
        "sd3", "SD3Transformer2DModel", _sd3_text, _sd3, _sd3_drawing, ("tokenizer_3", 256)
    ),
    "FluxPipeline": FlowFamily(
        "flux1",
        "FluxTransformer2DModel",
        _flux_text,
        _flux,
        _flux_drawing,
        ("tokenizer_2", 512),
        reads_negative=False,
    ),
    "ZImagePipeline": FlowFamily(
        "z-image", "ZImageTransformer2DModel", _z_image_text, _z_image, _z_image_drawing, ("tokenizer", 512)
    ),
    "QwenImagePipeline": FlowFamily(
        "qwen-image",
        "QwenImageTransformer2DModel",
        _qwen_text,
        _qwen,
        _qwen_drawing,
        ("tokenizer", _QWEN_TOKENS),
        takes_frames=True,
    ),
}
