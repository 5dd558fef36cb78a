"""A CLIP and a VAE for random models without real ones (the text is a seed, the latents are given), and layers as the GGUF pack has them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import architectures
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch


class RandomClip:
    """Encodes a caption as random numbers that depend on the caption alone; longer captions give more tokens."""

    layer_idx = None  # read at the host's own layer

    def __init__(self, name: str):
        self._name = name

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        return architectures.conditioning(self._name, zlib.crc32(text.encode()), tokens=4 + len(text.split()))


class SeeingClip(RandomClip):
    """The same for a text encoder that sees pictures: the numbers depend on them and on what is written around the caption as well."""

    def tokenize(self, text: str, images: Sequence[torch.Tensor] = (), llama_template: str = "") -> str:
        marks = [f"{tuple(image.shape)} {image.double().sum():.6f}" for image in images]
        return " ".join([text, *marks, llama_template])


class SmallVae:
    """Latents that show the picture: means of its squares, mixed into as many channels as the model reads."""

    def __init__(self, model: Any, ratio: int = 8):
        form = model.get_model_object("latent_format")
        self.latent_channels, self.downscale_ratio = form.latent_channels, ratio
        self._spread = form.latent_dimensions == 3
        self._mix = torch.randn(self.latent_channels, 3, generator=torch.Generator().manual_seed(2))
        self.encoded = 0

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.encoded += 1
        small = torch.nn.functional.avg_pool2d(pixels[..., :3].float().movedim(-1, 1) - 0.5, self.downscale_ratio)
        latent = torch.einsum("ck,bkhw->bchw", self._mix, small)
        return latent.unsqueeze(2) if self._spread else latent

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        flat = latents.reshape(len(latents), self.latent_channels, *latents.shape[-2:])
        pixels = torch.einsum("ck,bchw->bkhw", self._mix, flat) / self.latent_channels + 0.5
        return torch.nn.functional.interpolate(pixels, scale_factor=self.downscale_ratio).movedim(1, -1)


class NoVae:
    """Fits any model; never asked to encode in tests that bring their own latents."""

    downscale_ratio = 8

    def __init__(self, model: Any):
        self.latent_channels = model.get_model_object("latent_format").latent_channels


class PackedTensor(torch.Tensor):
    """A weight as the GGUF pack keeps it: packed bytes of one shape that says it has another, never copied, and of a class that must not leak."""

    def __new__(cls, data: torch.Tensor, *, stored: str, logical: torch.Size) -> PackedTensor:
        return data.as_subclass(cls)

    def __init__(self, data: torch.Tensor, *, stored: str, logical: torch.Size):
        super().__init__()
        self.tensor_type, self.tensor_shape = stored, logical

    def detach(self) -> PackedTensor:
        return self

    def clone(self) -> PackedTensor:
        return self

    def to(self, *args: Any, **kwargs: Any) -> PackedTensor:
        new = super().to(*args, **kwargs)
        new.tensor_type, new.tensor_shape = self.tensor_type, self.tensor_shape
        return new

    @property
    def shape(self) -> torch.Size:
        return self.tensor_shape


class PackedLayer:
    """A layer that dequantises its own weight whenever it is used, by a `cast_bias_weight` of its own: a byte for each value, a scale for each row."""

    comfy_cast_weights = True

    def cast_bias_weight(self, input=None, dtype=None, device=None, bias_dtype=None):
        like = input if input is not None else torch.empty(0, dtype=dtype, device=device)
        bias = None if self.bias is None else self.unpacked(self.bias, like)
        return self.unpacked(self.weight, like), bias

    def unpacked(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if getattr(value, "tensor_type", "plain") == "plain":
            return torch.Tensor(value.to(like.device, like.dtype))
        return unpack(value).to(like.device, like.dtype)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        self.weight = torch.nn.Parameter(state_dict[f"{prefix}weight"], requires_grad=False)
        if f"{prefix}bias" in state_dict:
            self.bias = torch.nn.Parameter(state_dict[f"{prefix}bias"], requires_grad=False)


class PackedOps(comfy.ops.manual_cast):
    """The host's operations with such linear layers."""

    class Linear(PackedLayer, comfy.ops.manual_cast.Linear):
        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features, self.weight, self.bias = in_features, out_features, None, None

        def forward_comfy_cast_weights(self, input):
            return torch.nn.functional.linear(input, *self.cast_bias_weight(input))


def pack(value: torch.Tensor) -> PackedTensor:
    """(out, in) float -> (out, 4 + in) bytes: a float32 scale and whole numbers from -127 to 127."""
    scale = value.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    whole = (value / scale).round().to(torch.int8).view(torch.uint8)
    return PackedTensor(torch.cat([scale.contiguous().view(torch.uint8), whole], 1), stored="Q8", logical=value.shape)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    rows = packed.as_subclass(torch.Tensor)
    scale = rows[:, :4].contiguous().view(torch.float32)
    return rows[:, 4:].contiguous().view(torch.int8).float() * scale


def packed_weights(name: str) -> dict[str, PackedTensor]:
    """Of the tiny model `name`: its larger matrices packed, everything else a plain tensor of the pack's class."""
    weights = {
        key: value.clone().float()
        for key, value in architectures.build(name).model.diffusion_model.state_dict().items()
    }
    packs = {
        key for key, value in weights.items() if key.endswith("weight") and value.ndim == 2 and min(value.shape) >= 16
    }
    return {
        key: pack(value) if key in packs else PackedTensor(value, stored="plain", logical=value.shape)
        for key, value in weights.items()
    }


def packed_model(name: str, weights: dict[str, PackedTensor]) -> Any:
    """The tiny model `name` as the pack's loader gives it."""
    cls, unet_config, *_ = architectures.row_of(name)
    with torch.inference_mode():
        config = getattr(comfy.supported_models, cls)(dict(unet_config))
        config.set_inference_dtype(torch.float32, None)
        config.custom_operations = PackedOps
        model = config.get_model({}, "", device=torch.device("cpu"))
        model.diffusion_model.load_state_dict(dict(weights), strict=False)
        place = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=place, offload_device=place)
