"""What the engine asks of a base model. A backend lends one model and takes it back unchanged when its `training` block ends."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from PIL import Image
from torch import nn

from ..adapters import AdapterSet
from ..config import ObjectiveConfig, SampleConfig
from ..data.batches import Batch
from ..objectives import Objective
from ..tokens import TokenTable


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """One sample picture to draw; sizes in px."""

    prompt: str
    width_px: int
    height_px: int
    config: SampleConfig


class Backend(Protocol):
    """A frozen text-to-image model."""

    device: torch.device
    text_device: torch.device  # where the text encoders run while they are trained
    dtype: torch.dtype  # the base model's arithmetic
    latent_step_px: int  # pictures must be multiples of this

    def layers(self) -> Mapping[str, nn.Module]:
        """Linear and convolution layers that can carry an adapter, by the model's own module path."""

    def text_layers(self) -> Mapping[str, nn.Module]:
        """Linear layers of the text encoders that can carry an adapter, by `<encoder>.<path>`; empty where text encoders cannot be trained."""

    def token_tables(self) -> Mapping[str, TokenTable]:
        """The input embeddings of each CLIP text encoder, by ComfyUI's name for it (clip_l, clip_g, clip_h)."""

    def weight(self, layer: nn.Module) -> AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]:
        """The layer's (weight, bias) as its forward uses them, float32 on the training device, valid inside the block."""

    def file_name(self, path: str) -> str:
        """The layer's name in the file that will be written, e.g. lora_unet_mid_block_attentions_0_proj_in."""

    def fingerprint(self) -> str:
        """Identifies the base weights; two models that differ give different strings."""

    def objective(self, config: ObjectiveConfig) -> Objective:
        """Noise schedule and prediction type of this model."""

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, H, W, 3) float32 in [0, 1] -> latents (1, C, [T,] h, w) in the model's own units."""

    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        """Encodes captions ahead of time; `predict` finds them by text, as long as text encoders and tokens are not trained."""

    def text_fingerprint(self) -> str:
        """Identifies the weights of the text encoders."""

    def forget_texts(self) -> None:
        """Drops what was encoded: the text encoders or tokens have changed."""

    def training(
        self, layers: Mapping[str, nn.Module], adapters: AdapterSet, checkpointing: bool, largest: tuple[int, ...] = ()
    ) -> AbstractContextManager[None]:
        """Adapters attached and the model ready for `predict` on batches up to the shape `largest`; all taken off again on exit, however the block ends."""

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The network's raw output for corrupted latents x_t (B, ...) at sigma (B,), float32, with gradients to the adapters."""

    def sample(self, job: SampleJob) -> list[Image.Image]:
        """Pictures drawn by the model's own sampler with whatever adapters are attached."""

    def find_non_finite(self) -> str | None:
        """Name of a base weight that is not finite, or None."""


def weights_fingerprint(module: nn.Module, instead: Mapping[str, torch.Tensor] | None = None) -> str:
    """Hash over names, shapes and a few values of every weight: tells two models apart in milliseconds without reading them whole.

    `instead` gives the values of weights that are replaced at the moment.
    """
    digest = hashlib.sha256()
    for name, p in module.named_parameters():
        value = (instead or {}).get(name, p).detach()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if value.device.type != "meta" and value.numel() and not hasattr(value, "_qdata"):
            digest.update(value.reshape(-1)[:: max(1, value.numel() // 4)][:4].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
